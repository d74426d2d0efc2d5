// Which tokens a training step sees: a pure function of the step (design section 2).
//
// Sequence g of the run (g = step index * sequences a step + place in the step) belongs to one source, chosen by a
// fixed low-discrepancy pattern of the mixture weights, and is the n-th sequence of that source, n counted in closed
// form. The n-th sequence is window perm_e(n mod windows) of the source's token stream, e = n / windows the epoch,
// perm_e a keyed permutation. So no state is carried, any rank can read any sequence, and resuming needs the step
// number only. Where a resume changed the batch or the sources, LoaderStart says how far each was read before.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/format/token_file.h"

namespace emox {

struct DataIdentity;

/// `label:weight:path` of a recipe. Path is a directory written by `emox corpus`, a token file, or several: a directory
/// of them, a list, a pattern (data/loader/source_files.h). The tokens of several are joined, in the order of the
/// names.
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

/// Where a run's present batch and sources began; all zero: with the run.
struct LoaderStart {
  /// How far a source was read by then, and which of the permutations orders its windows.
  struct Source {
    std::string label;  ///< empty: of text that the run does not read any more
    std::int64_t order = 0, read = 0;
    friend bool operator==(const Source&, const Source&) = default;
  };
  std::int64_t step = 0, sequences = 0;  ///< steps that were done by then, and all their sequences
  std::vector<Source> sources = {};      ///< those of the run so far
  /// The one with this label; a new one is added, unread and with an order of its own.
  Source& source_of(const std::string& label);
  friend bool operator==(const LoaderStart&, const LoaderStart&) = default;
};

struct LoaderConfig {
  std::vector<SourceSpec> sources;
  std::int64_t sequence_length = 0;
  std::int64_t sequences_per_step = 0;
  std::int64_t vocab_size = 0;
  std::uint64_t seed = 0;
  LoaderStart start = {};
  TokenWidth token_width = TokenWidth::Auto;
};

class Loader {
 public:
  /// Opens every source and checks it: missing, empty, truncated, wrong dtype, fewer tokens than one sequence.
  explicit Loader(const LoaderConfig& config);
  /// On the training files of `data` (a source of `config` each), which are not looked at again: many ranks do not open
  /// many files each.
  Loader(const LoaderConfig& config, const DataIdentity& data);
  ~Loader();

  /// Sequences [begin, end) of step `step` (counted from 1), end <= sequences_per_step.
  /// Throws IoError if a token id is not below vocab_size, naming file, position and id.
  std::vector<Sequence> read(std::int64_t step, std::int64_t begin, std::int64_t end) const;

  /// The batch and the sources of the config are read from there on.
  void begin_at(const LoaderStart& start);

  const std::vector<SourceSpec>& sources() const;
  /// How many passes over each source a run of `steps` steps makes.
  std::vector<double> epochs(std::int64_t steps) const;
  /// A line for every source that starts a second or later pass within this step, empty otherwise (no epoch is repeated
  /// silently).
  std::vector<std::string> epoch_notices(std::int64_t step) const;

 private:
  struct Source;
  struct Order;
  /// Sequences of the whole run before this step's.
  std::int64_t sequences_before(std::int64_t step) const;
  /// How many of the run's first g sequences are of this source; g >= start.sequences.
  std::int64_t read_before(std::int64_t g, std::size_t source) const;
  void begin();
  void add(const SourceSpec& spec, std::vector<TokenFile> files);
  LoaderConfig config_;
  std::unique_ptr<Order> order_;
  std::vector<std::unique_ptr<Source>> sources_;
};

}  // namespace emox
