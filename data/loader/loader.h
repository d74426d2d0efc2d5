// Which tokens a training step sees: a pure function of the step (design section 2).
//
// Sequence g of the run (g = step index * sequences a step + place in the step) belongs to one source, chosen by a
// fixed low-discrepancy pattern of the mixture weights, and is the n-th sequence of that source, n counted in closed
// form. The n-th sequence is window perm_e(n mod windows) of the source's token stream, e = n / windows the epoch,
// perm_e a keyed permutation. So no state is carried, any rank can read any sequence, and resuming needs the step
// number only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace emox {

/// `label:weight:path` of a recipe. Path is a directory written by `emox corpus`, or one flat token file.
struct SourceSpec {
  std::string label;
  double weight = 1.0;
  std::string path;
  /// Throws UsageError with the offending text and the expected form.
  static SourceSpec parse(const std::string& text);
};

struct Sequence {
  std::vector<std::int32_t> tokens;  ///< sequence_length ids
  std::int32_t label = 0;            ///< index of the source
};

struct LoaderConfig {
  std::vector<SourceSpec> sources;
  std::int64_t sequence_length = 0;
  std::int64_t sequences_per_step = 0;
  std::int64_t vocab_size = 0;
  std::uint64_t seed = 0;
};

class Loader {
 public:
  /// Opens every source and checks it: missing, empty, truncated, wrong dtype, fewer tokens than one sequence.
  explicit Loader(const LoaderConfig& config);
  ~Loader();

  /// Sequences [begin, end) of step `step` (counted from 1), end <= sequences_per_step.
  /// Throws IoError if a token id is not below vocab_size, naming file, position and id.
  std::vector<Sequence> read(std::int64_t step, std::int64_t begin, std::int64_t end) const;

  const std::vector<SourceSpec>& sources() const;
  /// How many passes over each source a run of `steps` steps makes.
  std::vector<double> epochs(std::int64_t steps) const;
  /// A line for every source that starts a second or later pass within this step, empty otherwise (no epoch is repeated
  /// silently).
  std::vector<std::string> epoch_notices(std::int64_t step) const;

 private:
  struct Source;
  struct Order;
  LoaderConfig config_;
  std::unique_ptr<Order> order_;
  std::vector<std::unique_ptr<Source>> sources_;
};

}  // namespace emox
