// How often two things occur together, and what one tells about the other, in bits.
#pragma once

#include <cstdint>
#include <vector>

namespace emox {

class Contingency {
 public:
  Contingency(std::int64_t rows, std::int64_t columns);
  void add(std::int64_t row, std::int64_t column, std::int64_t count);
  std::int64_t total() const { return total_; }

  double row_entropy() const { return entropy(rows_); }
  double column_entropy() const { return entropy(columns_); }
  /// Plug-in mutual information: of the frequencies as if they were probabilities. Too large on average for a finite
  /// sample.
  double information() const;
  /// To be added to information(): (occupied rows + occupied columns - occupied cells - 1) / (2 total), in bits (Miller
  /// 1955, for each of the three entropies). Assumes that counts are of independent draws.
  double miller_madow() const;

  /// log2 p(row, column) / (p(row) p(column)) of a cell that is not empty; information() is its mean.
  double pointwise(std::int64_t row, std::int64_t column) const;
  /// -log2 p(row), -log2 p(column): the entropies are their means.
  double row_surprise(std::int64_t row) const;
  double column_surprise(std::int64_t column) const;

 private:
  double entropy(const std::vector<std::int64_t>& counts) const;
  std::int64_t total_ = 0;
  std::vector<std::int64_t> rows_, columns_, cells_;
};

}  // namespace emox
