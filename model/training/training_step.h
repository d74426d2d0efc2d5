// One optimizer step on this rank's sequences: forward, the one all-reduce of routing counts, backward, gradient sum,
// clipping, AdamW (design sections 2, 4.6 and 4.7).
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "model/moe/pools.h"
#include "model/optim/optimizer.h"
#include "model/training/step_config.h"
#include "model/transformer/language_model.h"
#include "parallel/mesh/process_mesh.h"
#include "runtime/core/arena.h"
#include "runtime/core/error.h"

namespace emox {

/// The loss or the gradient's norm of a step is not finite.
struct DivergedError : Error {
  using Error::Error;
};

/// What dispatch did in a step, over all ranks and layers; zeros for a dense model.
struct DispatchMetrics {
  double rows_sent_per_token = 0;  ///< rows to other ranks in one layer's forward pass
  double ranks_per_token = 0;      ///< distinct ranks with an expert of the token, its own included
  double nodes_per_token = 0;
  double bytes_intra_node = 0;    ///< sent between ranks of one node, forward and backward, plans included
  double bytes_inter_node = 0;    ///< sent between nodes
  double bytes_saved = 0;         ///< against one row a pick
  double exposed_comm_s = 0;      ///< spent inside exchanges, mean over ranks
  double rows_max_over_mean = 0;  ///< of the rows that a rank's experts worked on
  double ranks_per_document = 0;  ///< ranks that a document's pool can reach, mean over documents and layers; its free
                                  ///< tokens may go to others (ranks_per_token, rows_sent_per_token count those)
};

/// The step's global values; losses carry their weights, loss is their sum.
struct StepMetrics {
  double ce = 0, lm_z = 0, lb = 0, router_z = 0;
  double loss() const { return ce + lm_z + lb + router_z; }
  double grad_norm = 0;
  double load_max_over_mean = 0;    ///< of routed experts' picks, mean over layers
  double experts_per_document = 0;  ///< different routed experts that a document used, mean over documents and layers
  double pool_mean = 0;             ///< routed experts in a document's pool, mean over documents and layers
  bool stop = false;                ///< some rank voted to stop
  bool save = false;                ///< some rank voted for a checkpoint after this step
  bool save_finished = false;       ///< all ranks said so
  /// Seconds that ranks were at work, not waiting for others, in this step's passes and the update before it: on the
  /// CPU; NaN on a device, and without telemetry.
  double useful_s_min = 0, useful_s_mean = 0, useful_s_max = 0;
  DispatchMetrics dispatch;
};

/// What a rank has to say at the end of a step: it rides on the sum of the losses.
struct LateVotes {
  bool stop = false;  ///< end after this step
  bool save = false;  ///< save after this step
};
/// What a rank has to say that has nothing to do with the step.
struct StepVotes {
  bool save_finished = false;  ///< CheckpointSaver::finished() of this rank; rides on the routing counts
  std::function<LateVotes()> late =
      {};  ///< asked when the backward pass is done, so that a step does not hide a signal
};

/// What a step takes besides its model.
struct StepResources {
  const PoolSizes* pools = nullptr;        ///< must outlive the step; null: no pools
  std::int64_t label_count = 0;            ///< > 0 with moe.pool = label
  std::optional<double> free_memory = {};  ///< bytes that are free on this node; none: the system is asked
};

class TrainingStep {
 public:
  /// Reserves all memory of a step. Collective: what the memory is enough for is agreed, unless the mesh is only
  /// planned.
  TrainingStep(Context& ctx, const StepConfig& config, LanguageModel& model, ProcessMesh& mesh,
               const StepResources& resources);

  /// Draws the model's weights, as LanguageModel::initialize; of rounded ones, those they are rounded from. Collective.
  void initialize_weights(std::uint64_t seed);

  /// This rank's share of a step's sequences: [begin, end) of the global batch.
  std::int64_t share_begin() const { return batch_ * comm_.rank() / comm_.size(); }
  std::int64_t share_end() const { return batch_ * (comm_.rank() + 1) / comm_.size(); }

  /// Losses and gradients of one step, reduced to their owners; parameters are not touched. Error, on all ranks, when
  /// an op reported a wrong index (ops/fault.h); it names the op and the rank.
  StepMetrics compute_gradients(std::int64_t step, std::span<const SequenceInput> local, const StepVotes& votes = {});
  /// Clips and updates. Throws DivergedError when the loss or the norm is not finite: nothing is updated then.
  void update(std::int64_t step, double learning_rate, const StepMetrics& metrics);

  bool recomputes_forward() const { return recompute_; }
  /// True while a micro-batch of a step is routed for the first time.
  bool routing_is_new() const { return routing_is_new_; }
  /// Activations and scratch, as reserved.
  std::size_t activation_bytes() const { return activation_bytes_; }
  Optimizer& optimizer() { return optimizer_; }
  const Optimizer& optimizer() const { return optimizer_; }
  /// Memory of one micro-batch, free between steps: an evaluation uses it.
  std::int64_t max_tokens() const { return micro_ * config_.sequence_length; }
  Activations& spare_activations() { return slots_.front(); }
  DeviceBatch& spare_batch() { return device_batches_.front(); }
  /// Routing decisions of micro-batch m of the last step, for tests: its activations.
  const Activations& activations(std::size_t m) const { return slots_[recompute_ ? 0 : m % slots_.size()]; }

 private:
  struct Sums;
  /// Time that is this rank's own work, without what collectives took.
  class UsefulTime {
   public:
    void begin(const Context& ctx);
    /// `exchanges`: seconds inside exchanges of rows since begin().
    void end(const Context& ctx, double exchanges);
    /// What was added up since the last time.
    double take(const Context& ctx);

   private:
    using Clock = std::chrono::steady_clock;
    static double waited(const Context& ctx);
    Clock::time_point began_{};
    double waited_before_ = 0, seconds_ = 0;
  };
  void plan_memory(std::optional<double> free_memory);
  bool on_all_ranks(bool here) const;
  void reserve_sums();
  void make_micro_batches(std::span<const SequenceInput> local);
  void clear_statistics();
  void count_documents(std::size_t m, std::int64_t step, Sums& sums) const;
  void run_whole_step(std::int64_t step, const StepVotes& votes, Sums& sums);
  void run_micro_batches(std::int64_t step, const StepVotes& votes, Sums& sums);
  void throw_faults(const std::vector<double>& gathered) const;
  StepMetrics metrics_of(const Sums& sums, const StepVotes& votes);
  /// The part of totals_ that this rank adds up.
  TensorView own_total(std::int64_t at, std::int64_t n = 1) const;
  /// [L,n_r] of an integers tensor.
  TensorView counts_of(TensorView integers) const;
  DispatchMetrics dispatch_metrics(std::span<const double> counters, std::span<const double> rows_of_rank) const;
  void forward(std::size_t m, std::int64_t step, bool count);
  void head(std::size_t m);
  void backward(std::size_t m, bool balanced);
  void reduce_counts(const StepVotes& votes, Sums& sums);
  void balance_loss(double divisor);
  Activations& slot(std::size_t m) { return slots_[m % slots_.size()]; }
  DeviceBatch& batch_of(std::size_t m) { return device_batches_[m % device_batches_.size()]; }

  Context& ctx_;
  LanguageModel& model_;
  Communicator& comm_;
  Optimizer optimizer_;
  const StepConfig step_;
  const ModelConfig& config_;  ///< of step_
  const PoolSizes* pools_;
  std::vector<std::uint8_t> label_pools_;
  const std::int64_t batch_;  ///< sequences of a step
  std::int64_t micro_ = 1, micro_batches_ = 1;
  bool recompute_ = false;
  bool routing_is_new_ = false;
  double divisor_ = 1;

  std::size_t activation_bytes_ = 0;
  Arena arena_{Device{}, 0};
  std::vector<Activations> slots_;
  UsefulTime useful_;
  double exposed_seen_ = 0;  ///< of the spans "comm.exposed", in the last step
  std::vector<DeviceBatch> device_batches_;
  std::vector<MicroBatch> micro_host_;
  Tensor integers_;       ///< i64: counts [L,n_r], document experts [L], then documents, pool sizes, votes
  Tensor step_integers_;  ///< the same, sums over all ranks and over the count reductions of the step
  Tensor own_counts_;     ///< i64 [L,n_r] of this rank, for BalanceScope::Local
  Tensor p_sum_, z_sum_, balance_, totals_;
  RoutingStatistics statistics_;
};

}  // namespace emox
