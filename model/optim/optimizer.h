// Gradient reduction, global norm, clipping and AdamW, sharded over the ranks (ZeRO stage 1; spec 4, design 4.6).
//
// Gradients are sums: dense ones over all ranks, an expert's over the ranks that hold it. Every element has one owner
// (parameter_shards.h), which alone keeps its moments, counts it in the norm, and updates it.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "model/optim/parameter_shards.h"
#include "model/transformer/parameter_store.h"
#include "parallel/mesh/process_mesh.h"
#include "runtime/core/context.h"

namespace emox {

struct AdamWConfig {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double weight_decay = 0.1;  ///< of every parameter but the input embedding
  double clip_norm = 1.0;     ///< 0: no clipping
};

/// The factor of clipping: min(1, clip / (norm + 1e-6)).
double clip_factor(double norm, double clip_norm);

class Optimizer {
 public:
  /// Allocates the moments of what this rank owns, and where weights are not f32, the f32 masters that they are rounded
  /// from: what is updated, saved and loaded as "weight". `store` and `mesh` must outlive this object.
  Optimizer(Context& ctx, const ParameterStore& store, ProcessMesh& mesh);

  /// When sums of gradients begin; default: in reduce_gradients.
  void reduce(ShardedBuffer::Reduce when) {
    when_ = when;
    shards_.reduce(when);
  }
  /// Whether new weights reach the other ranks while a device goes on; default: it waits for them in update.
  void gather_meanwhile(bool on) { gather_meanwhile_ = on; }
  /// Nothing is added to these gradients any more in this step. Collective.
  void start_reduction(Context& ctx, std::span<const ParameterRange> ready);
  /// Every owner gets the sums over ranks of its gradients; other elements are unspecified afterwards. Collective.
  void reduce_gradients(Context& ctx);
  /// sum f64 [1] += squares of the gradients that this rank owns; over ranks, the square of the global norm.
  void add_owned_squares(Context& ctx, TensorView sum) const;
  /// One AdamW update of what this rank owns, `step` of the run counting from 1, gradients multiplied by `grad_scale`;
  /// then all ranks get the new weights. Collective.
  void update(Context& ctx, const AdamWConfig& config, double learning_rate, double grad_scale, std::int64_t step);

  /// The moments have seen so many steps before the run's first one (a warm start): bias correction counts them, too.
  void set_steps_before(std::int64_t steps) { steps_before_ = steps; }
  std::int64_t steps_before() const { return steps_before_; }

  /// All gradients on every rank that holds the parameter, for inspection. Collective.
  void gather_gradients(Context& ctx);
  /// The weights on every rank, after what this rank owns has been loaded. Collective.
  void gather_weights(Context& ctx);
  /// What this rank owns becomes what `fill` writes into the f32 elements of a parameter that begin at `first`; then
  /// all ranks get it. Collective.
  void fill_weights(Context& ctx,
                    const std::function<void(const NamedParameter&, TensorView part, std::int64_t first)>& fill);
  /// What this rank owns of every parameter and its moments: together, over ranks, each element once.
  std::vector<OwnedPart> owned_parts() const;
  const ParameterShards& shards() const { return shards_; }
  std::size_t state_bytes() const;
  /// Where non-finite numbers are, in words: parameters whose weights, or owned gradients, have them, first ones first.
  std::string describe_non_finite(Context& ctx) const;

 private:
  /// The f32 elements of a piece that this rank owns: its master, or the weight itself.
  TensorView master(const ParameterShards::Piece& p) const;
  void round_masters(Context& ctx);
  TensorView flat_grad(const ParameterShards::Group& g) const { return store_.grad(store_.flat(g.group)); }
  const ParameterStore& store_;
  ParameterShards shards_;
  struct Moments {
    Tensor exp_avg, exp_avg_sq;  ///< [owned elements]
    Tensor master;               ///< [owned elements] f32; null where weights are f32
  };
  std::vector<Moments> moments_;  ///< of each group of shards_
  std::int64_t steps_before_ = 0;
  ShardedBuffer::Reduce when_ = ShardedBuffer::Reduce::AtEnd;
  bool gather_meanwhile_ = false;
};

}  // namespace emox
