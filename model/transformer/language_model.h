// The whole model: embedding, L blocks, final norm, head and loss; forward and backward (spec 1).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "model/layers/attention.h"
#include "model/layers/feed_forward.h"
#include "model/moe/moe_layer.h"
#include "model/transformer/batch.h"
#include "model/transformer/config.h"
#include "model/transformer/parameter_store.h"
#include "runtime/core/arena.h"
#include "runtime/core/context.h"

namespace emox {

/// Routing sums of all layers.
struct RoutingStatistics {
  TensorView counts;            ///< i64 [L,n_r]
  TensorView p_sum;             ///< f64 [L,n_r]
  TensorView z_sum;             ///< f64 [L,1]
  TensorView document_experts;  ///< i64 [L,1]
  LayerStatistics layer(std::int64_t l) const { return {counts[l], p_sum[l], z_sum[l], document_experts[l]}; }
};

/// Everything one micro-batch leaves for its backward pass.
struct Activations {
  struct Block {
    TensorView input;   ///< [T,D]
    TensorView middle;  ///< [T,D] after attention
    TensorView normed;  ///< [T,D] input of the feed-forward part
    TensorView rstd;    ///< [T]
    Attention::Saved attention;
    MoeLayer::Saved moe;
    TensorView dense_hidden;  ///< [T,2F]
  };
  std::vector<Block> blocks;
  TensorView output;        ///< [T,D] after the last block
  TensorView final_rstd;    ///< [T]
  TensorView final_normed;  ///< [T,D]; after the head's backward its gradient
};

/// What is wanted of the head and its loss.
struct LossRequest {
  TensorView sums;        ///< f64 [2] += over scored tokens: -log softmax, squared log-sum-exp
  bool gradient = false;  ///< of the head's weight and of final_normed, in which the normed activations are replaced
  double inverse_divisor = 1;  ///< as in ops::LmLossOptions
  double z_weight = 0;
  TensorView token_loss = {};  ///< [T] or null
};

/// What easy_ep asks of a forward pass (spec 6.2).
struct OutputScores {
  TensorView sums;    ///< f64 [L,N] added to: over tokens, |g E_i(h)| max(0, 1 - cos(h, h + y)); shared experts last
  TensorView output;  ///< [T,D] of one MoE layer
  TensorView change;  ///< f64 [T]
  OutputNorms norms;
};

/// A forward pass that is watched.
struct Observation {
  std::int64_t blocks = 0;                        ///< only the first ones run
  const RoutingStatistics* statistics = nullptr;  ///< added to, if given
  const OutputScores* outputs = nullptr;          ///< added to, if given
};

class LanguageModel {
 public:
  /// Reserves and allocates the parameters that this rank holds; gradients only for training. `experts`: how the routed
  /// experts are sharded, must outlive the model; null: all of them are here.
  LanguageModel(const ModelConfig& config, Context& ctx, bool training, ExpertParallel* experts = nullptr);

  /// Draws all weights from (seed, tensor, element): normal of std 0.02 cut at +-0.06, norm scales 1 (spec 1.4).
  void initialize(Context& ctx, std::uint64_t seed);
  /// The same for f32 elements [first, first + n) of one parameter, wherever they lie.
  static void draw(Context& ctx, std::uint64_t seed, const NamedParameter& parameter, TensorView part,
                   std::int64_t first);

  /// Reserves the activations of one micro-batch of at most `tokens` tokens / the scratch that all micro-batches share.
  Activations reserve(Arena& arena, std::int64_t tokens) const;
  void reserve_scratch(Arena& arena, std::int64_t tokens);

  /// Runs all blocks and the final norm, with the pools that came with the batch. Adds to `statistics` when given.
  void forward(Context& ctx, Activations& a, const DeviceBatch& batch, const RoutingStatistics* statistics);
  /// The first blocks, for what the observation collects; nothing else can be asked afterwards.
  void observe(Context& ctx, Activations& a, const DeviceBatch& batch, const Observation& observation);
  OutputScores reserve_output_scores(Arena& arena, std::int64_t tokens) const;
  /// Is told of the routing of every forward pass from now on. Empty: nobody looks.
  void observe_routing(RoutingObserver observer) { routing_observer_ = std::move(observer); }

  /// Evaluates with some routed experts only, from now on: for each layer, rising, those that its router sees; those of
  /// all ranks, all ranks the same. Weights must have been loaded; not for training. keep_all_experts() lifts it.
  void keep_experts(Context& ctx, const std::vector<std::vector<std::int32_t>>& routed);
  void keep_all_experts(Context& ctx);

  /// logits[T,V] of the last forward.
  void logits(Context& ctx, TensorView out, const Activations& a, const DeviceBatch& batch);
  /// Losses of the last forward.
  void loss(Context& ctx, Activations& a, const DeviceBatch& batch, const LossRequest& request);
  /// Told which gradients a backward pass is done with.
  using GradientsReady = std::function<void(std::span<const ParameterRange>)>;
  struct BackwardRequest {
    TensorView balance = {};    ///< f32 [L,n_r] or null, as in AuxiliaryGradients
    float z = 0;                ///< as there
    GradientsReady ready = {};  ///< may be empty; the head first, the blocks from the last to the first, the embedding
    /// With 0, a step's first micro-batch spares a pass that clears the gradients of the routed experts, nearly all.
    float expert_beta = 1.0F;
  };
  /// From the gradient left by loss() back to the embedding. Gradients of parameters are added to what is there; those
  /// of the routed experts to expert_beta times it.
  void backward(Context& ctx, Activations& a, const DeviceBatch& batch, const BackwardRequest& request);

  const ModelConfig& config() const { return config_; }
  ParameterStore& parameters() { return store_; }
  const ParameterStore& parameters() const { return store_; }
  /// f32 [L,n_r] added to p when experts are chosen (balance = bias); null otherwise.
  TensorView selection_bias() const { return selection_bias_; }
  /// Null for a dense model.
  ExpertParallel* experts() const { return experts_; }

 private:
  struct Block {
    Attention attention;
    ParameterSlot norm;
    std::optional<MoeLayer> moe;
    std::optional<FeedForward> dense;
    std::vector<ParameterRange> parameters;
  };
  struct Scratch {
    TensorView d;  ///< [T,D] gradient of the residual stream
    Attention::Scratch attention;
    MoeLayer::Scratch moe;
    TensorView dense_activation;  ///< [T,F]
    TensorView loss;              ///< u8
  };

  void forward_blocks(Context& ctx, Activations& a, const DeviceBatch& batch, const Observation& observation);
  void observe_outputs(Context& ctx, std::int64_t layer, TensorView y, TensorView normed, const MoeLayer::Saved& saved,
                       const OutputScores& o) const;
  TensorView selection_bias(std::int64_t layer) const;  ///< null without

  ModelConfig config_;
  std::unique_ptr<ExpertParallel> own_experts_;
  ExpertParallel* experts_ = nullptr;
  ParameterStore store_;
  ParameterSlot embedding_, final_norm_, head_;
  std::vector<Block> blocks_;
  std::vector<ParameterRange> embedding_parameters_, head_parameters_;
  Tensor rope_cos_, rope_sin_, selection_bias_;
  Scratch scratch_;
  RoutingObserver routing_observer_;
};

}  // namespace emox
