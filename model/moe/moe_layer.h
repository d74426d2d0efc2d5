// Mixture-of-experts layer without its norm (spec 0): router with document pools, routed experts through a dispatcher,
// shared experts on the spot.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "model/layers/feed_forward.h"
#include "model/moe/pools.h"
#include "model/transformer/batch.h"
#include "model/transformer/config.h"
#include "model/transformer/parameter_store.h"
#include "parallel/expert/expert_parallel.h"
#include "runtime/core/arena.h"
#include "runtime/core/context.h"
#include "runtime/ops/moe.h"

namespace emox {

/// Routing sums of one layer over the micro-batches that share a balance statistic.
struct LayerStatistics {
  TensorView counts;            ///< i64 [n_r] picks
  TensorView p_sum;             ///< f64 [n_r] sum of p over tokens
  TensorView z_sum;             ///< f64 [1] sum of squared log-sum-exp
  TensorView document_experts;  ///< i64 [1] different experts, summed over documents
};

/// Gradients of the auxiliary losses with respect to the router's outputs, the same for every token.
struct AuxiliaryGradients {
  TensorView balance;  ///< f32 [n_r] d loss / d p_i; null: no balance loss
  float z = 0;         ///< weight / divisor of the squared log-sum-exp
};

/// How large the experts' outputs are, as one rank's tokens see them: for choosing experts (spec 6.2).
struct OutputNorms {
  TensorView routed;   ///< [T * k_r] |g E_i(x)| of each pick, in the order of ids
  TensorView shared;   ///< [n_s * T] |E_s(x)|
  TensorView scratch;  ///< [T,D]
};

/// Looks at every layer's decisions before they are planned: ids i32 [T,k].
using RoutingObserver = std::function<void(Context&, std::int64_t layer, TensorView ids, const DocumentPools&)>;

class MoeLayer {
 public:
  struct Saved {
    ops::TopkResult route;  ///< p [T,N], lse [T], ids, gates [T,k_r]
    std::unique_ptr<DispatchHandle> handle;
    GrowingTensor* rows = nullptr;       ///< [R,D] dispatched inputs
    GrowingTensor* row_gates = nullptr;  ///< [R]
    GrowingTensor* hidden = nullptr;     ///< [R,2F]
    TensorView shared_hidden;            ///< [n_s,T,2F], flat
  };
  /// Shared by all layers of a model: contents do not survive a call.
  struct Scratch {
    TensorView logits;                    ///< [T,N], also their gradient
    TensorView scores;                    ///< [docs <= T, n_r]
    TensorView pool;                      ///< u8 [docs <= T, n_r]
    TensorView dgates;                    ///< [T,k_r]
    GrowingTensor* activation = nullptr;  ///< [max(R,T),F]
    GrowingTensor* row_out = nullptr;     ///< [R,D]
    GrowingTensor* drow_gates = nullptr;  ///< [R]
  };

  /// `experts` must outlive the layer.
  MoeLayer(const ModelConfig& config, std::int64_t layer, ParameterStore& store, ExpertParallel& experts);
  Saved reserve(Arena& arena, std::int64_t tokens) const;
  Scratch reserve_scratch(Arena& arena, std::int64_t tokens) const;
  OutputNorms reserve_norms(Arena& arena, std::int64_t tokens) const;

  /// From now on the router sees only these routed experts (rising), and a token picks at most so many (spec 6.1); all
  /// n_r of them lift that. Its rows, and of `selection_bias` (f32 [n_r] or null) the elements, are taken as they are
  /// now; the experts stay where they are. Only for evaluation: backward() is a ShapeError.
  void keep(Context& ctx, const std::vector<std::int32_t>& experts, TensorView selection_bias,
            const ParameterStore& store);
  /// Routed picks of a token: k_r, or as many as experts are kept.
  std::int64_t picks() const { return std::min(config_.routed_top_k(), choices_); }

  /// What a forward pass is of, and what it leaves besides its output.
  struct Pass {
    TensorView x;  ///< [T,D] normed
    const DeviceBatch& batch;
    TensorView selection_bias = {};               ///< f32 [n_r] or null
    const LayerStatistics* statistics = nullptr;  ///< added to; with kept experts their first elements are those
    const RoutingObserver* observer = nullptr;
    const OutputNorms* norms = nullptr;  ///< assigned; that costs one more exchange
  };
  /// y[T,D] += experts(x).
  void forward_add(Context& ctx, TensorView y, Saved& saved, const Scratch& scratch, const ParameterStore& store,
                   const Pass& pass) const;
  /// What a backward pass is of.
  struct BackwardPass {
    TensorView x;  ///< as in the forward pass
    TensorView dy;
    AuxiliaryGradients auxiliary;
    float expert_beta = 1.0F;  ///< 0 in a step's first micro-batch
  };
  /// dx[T,D] assigned; parameters' gradients accumulated, those of the routed experts to expert_beta times what was
  /// there.
  void backward(Context& ctx, TensorView dx, const Saved& saved, const Scratch& scratch, const ParameterStore& store,
                const BackwardPass& pass) const;

  ParameterSlot router() const { return router_; }

 private:
  /// Returns the pools, null without, and who is free of them.
  DocumentPools route(Context& ctx, const Saved& saved, const Scratch& scratch, const ParameterStore& store,
                      const Pass& pass) const;
  void add_shared_experts(Context& ctx, TensorView y, const Saved& saved, const Scratch& scratch,
                          const ParameterStore& store, const Pass& pass) const;
  void make_room(Context& ctx, const Saved& saved, const Scratch& scratch) const;
  ops::TopkResult routing_of(const Saved& saved, std::int64_t tokens) const;

  ModelConfig config_;
  std::int64_t layer_;
  ParameterSlot router_;  ///< [N,D], the shared experts' dead rows last (spec 2.1)
  ParameterSlot up_;      ///< [n_local,2F,D]
  ParameterSlot down_;    ///< [n_local,D,F]
  std::vector<FeedForward> shared_;
  std::unique_ptr<TokenDispatcher> dispatcher_;
  std::int64_t choices_;  ///< routed experts that the router sees
  Tensor kept_ids_;       ///< i32 [choices], null while all are seen
  Tensor kept_rows_;      ///< [choices,D] of the router
  Tensor kept_bias_;      ///< [choices] or null
};

}  // namespace emox
