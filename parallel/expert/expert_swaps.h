// The experts of one layer to parts of fixed sizes, by affinity, within a limit of load: greedy, then exchanges.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace emox {

/// [rows]: by how much the largest of each row of `values` [rows, columns] leads the next one; not below 0.
std::vector<double> leads(std::span<const double> values, std::size_t columns);

struct ExpertSwaps {
  std::size_t parts = 0;
  std::vector<double> affinity;    ///< [experts, parts]
  std::vector<double> load;        ///< [experts]
  std::vector<std::int64_t> room;  ///< [parts]; together as many as experts
  std::vector<double> limit;       ///< [parts] of load
  std::vector<std::int32_t> part;  ///< [experts]: the result

  /// Exchanges cost and gain affinity; a part's load above its limit costs what it is above, dearer and dearer until
  /// nothing is above or nothing helps.
  void place();
  /// Load above the limits.
  double excess() const;

 private:
  void greedy();
  /// Exchanges until none gains, with load above the limits at this price; true if the last state is within them.
  bool exchange(double price);
  std::vector<double> loads() const;
};

}  // namespace emox
