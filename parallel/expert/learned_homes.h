// Homes: which rank computes which sequence of a step. They must be known before the forward pass, so they are
// predicted from a sequence's tokens by a table that is learned from what routers picked in earlier steps.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace emox {

/// Features of a sequence are its tokens, pairs and triples of neighbouring tokens, hashed into `buckets` counts of
/// length 1. The predicted share of picks on a rank is linear in them; its weights follow the error of the
/// predictions, each bucket with a rate that falls with the errors it has seen. Memory: buckets x (ranks + 1) numbers,
/// whatever the vocabulary. Where all ranks add their errors (one all-reduce of errors()) and apply them, the table is
/// the same everywhere.
class LearnedHomes {
 public:
  explicit LearnedHomes(int ranks, std::int64_t buckets = 1 << 14);

  int ranks() const { return ranks_; }
  /// [ranks] share of a sequence's picks, in all layers, that is expected on each rank; no tokens: equal shares.
  std::vector<double> scores(std::span<const std::int32_t> tokens) const;
  /// What became of a sequence: picks[ranks], of all layers. Nothing changes before apply().
  void observe(std::span<const std::int32_t> tokens, std::span<const double> picks);
  /// [buckets x ranks + buckets + 1] sums of what was observed since apply(): to be added up over the ranks.
  std::span<double> errors() { return errors_; }
  /// Learns from errors() and clears them. Without any observation nothing changes.
  void apply();
  /// What a checkpoint keeps: [buckets x ranks + buckets]. `restore` takes the same; ShapeError else.
  std::vector<double> state() const;
  void restore(std::span<const double> state);

 private:
  struct Feature {
    std::size_t bucket;
    double value;
  };
  std::vector<Feature> features(std::span<const std::int32_t> tokens) const;
  int ranks_;
  std::size_t buckets_;
  std::vector<double> weights_;  ///< [buckets, ranks]
  std::vector<double> seen_;     ///< [buckets] squares of errors
  std::vector<double> errors_;   ///< [buckets, ranks], then squares [buckets], then sequences [1]
};

/// Where sequences are computed: on a rank of an expert group, in one of the cells (micro-batches of groups).
struct HomePlan {
  std::vector<std::int32_t> rank, cell;  ///< [sequences]
};

/// Sequences to ranks by `scores` [sequences, ranks] (shares of their picks): every rank of every cell gets equally
/// many, the sum of scores is improved by exchanges between two ranks until none helps. Then each rank's sequences go
/// to the cells so that no cell asks much more of a rank's experts than another does. Ties go to the earlier sequence
/// and rank, so the same scores give the same plan everywhere. Time: sequences x (ranks + log) + ranks^2 an exchange
/// round. UsageError unless ranks x cells divides the sequences.
HomePlan plan_homes(std::span<const double> scores, int ranks, int cells = 1);

}  // namespace emox
