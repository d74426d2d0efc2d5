// Golden cases on several ranks: how a case is shared out, and how its results are put together again.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "launch/config/recipe.h"
#include "parallel/comm/communicator.h"
#include "runtime/core/idx.h"
#include "tests/support/golden.h"

namespace emox::test {

/// Ranks are threads, on simulated nodes of two; experts lie at random.
struct GoldenMesh {
  int ranks = 1;
  std::int64_t expert_parallel = 1;
  DispatchKind dispatch = DispatchKind::Flat;

  ParallelConfig parallel() const;
  std::string text() const;
};
/// One rank first, then 2 and 4: experts over all ranks, over some, and on every rank. Those for which the model has
/// enough routed experts; of a dense model, those without sharded experts.
std::vector<GoldenMesh> golden_meshes(const ModelConfig& model);

/// Runs the body once a rank: on one rank in the caller's thread with golden_context(), else in threads.
void run_on_mesh(const GoldenMesh& mesh, const std::function<void(Context&, Communicator&)>& body);

/// This rank's part of n things in order; a rank may get none. The longest part has most_of(n, ranks).
struct Part {
  std::int64_t begin = 0, end = 0;
  std::int64_t size() const { return end - begin; }
  template <typename T>
  std::span<const T> of(const std::vector<T>& all, std::int64_t each = 1) const {
    return std::span(all).subspan(idx(begin * each), idx(size() * each));
  }
};
Part part_of(std::int64_t n, const Communicator& comm);
inline std::int64_t most_of(std::int64_t n, int ranks) { return (n + ranks - 1) / ranks; }

/// An array [blocks, tokens, ...] of which every rank computes its own tokens. Ranks put different parts at once.
template <typename T>
class ByRank {
 public:
  ByRank(std::int64_t blocks, int ranks) : ranks_(idx(ranks)), parts_(idx(blocks) * ranks_) {}
  void put(std::int64_t block, int rank, std::vector<T> values) {
    parts_.at(idx(block) * ranks_ + idx(rank)) = std::move(values);
  }
  /// All blocks, each with its ranks' tokens in the order of ranks.
  std::vector<T> all() const {
    std::vector<T> joined;
    for (const std::vector<T>& p : parts_) joined.insert(joined.end(), p.begin(), p.end());
    return joined;
  }

 private:
  std::size_t ranks_;
  std::vector<std::vector<T>> parts_;
};

/// Sums over the ranks that hold a tensor, in the order of ranks.
GoldenTensors sum_over_ranks(const std::vector<GoldenTensors>& by_rank);
/// Every tensor once; ranks that hold the same one must hold the same bits.
GoldenTensors union_over_ranks(const std::vector<GoldenTensors>& by_rank);

}  // namespace emox::test
