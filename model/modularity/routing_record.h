// Counts of a model's picks by document, layer and token, while it runs; what measures.h reads.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "model/modularity/measures.h"
#include "parallel/comm/communicator.h"
#include "runtime/core/context.h"
#include "runtime/core/idx.h"
#include "runtime/core/tensor.h"

namespace emox {

/// A token that is about to be routed: what it is, and its document (numbered over all ranks).
struct RoutedToken {
  std::int32_t document = 0, token = 0;
};

class RoutingRecord {
 public:
  explicit RoutingRecord(std::int64_t layers) : counts_(idx(layers)) {}

  /// The tokens of the next forward pass, in its order.
  void expect(std::vector<RoutedToken> tokens) { tokens_ = std::move(tokens); }
  /// Their picks in a layer: ids i32 [T,k]. For ExpertParallel::observe. ShapeError for another number of tokens.
  void add(Context& ctx, std::int64_t layer, TensorView ids);

  /// Collective. A layer's documents on rank 0, empty elsewhere: `domains[i]` is that of document i. A
  /// document's tokens may have been routed on any ranks.
  std::vector<DocumentPicks> gather(Communicator& comm, std::int64_t layer,
                                    const std::vector<std::int32_t>& domains) const;

 private:
  using Cell = std::pair<std::int32_t, std::int32_t>;                      // token, expert
  using Documents = std::map<std::int32_t, std::map<Cell, std::int32_t>>;  // in order, so that ranks do not matter
  std::vector<RoutedToken> tokens_;
  std::vector<Documents> counts_;  // [layers]
};

}  // namespace emox
