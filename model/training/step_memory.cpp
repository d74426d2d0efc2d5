// What a step holds in memory, and whether that is enough: TrainingStep::plan_memory.
#include <unistd.h>

#include <algorithm>
#include <limits>

#include "model/training/training_step.h"
#include "runtime/core/accelerator.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/telemetry/log.h"

namespace emox {

namespace {

/// Bytes that are free, of the host or the device; all there is where none is at hand (a plan).
double free_bytes(Device device) {
  if (device.type == DeviceType::Cpu)
    return static_cast<double>(sysconf(_SC_AVPHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  const Accelerator* const cuda = cuda::accelerator();
  return cuda != nullptr && cuda->count() > device.index ? static_cast<double>(cuda->properties(device.index).free)
                                                         : std::numeric_limits<double>::max();
}

}  // namespace

// True when it is on every rank: ranks that decide differently would meet in different collectives.
bool TrainingStep::on_all_ranks(bool here) const {
  if (comm_.transport() == "planned") return here;
  std::int64_t missing = here ? 0 : 1;
  comm_.all_reduce(TensorView(&missing, DType::I64, {1}), ReduceOp::Max);
  return missing == 0;
}

void TrainingStep::plan_memory(std::optional<double> free_memory) {
  const std::int64_t most = (batch_ + comm_.size() - 1) / comm_.size();  // sequences of the fullest rank
  micro_ = std::min(step_.micro_batch_sequences, most);
  micro_batches_ = (most + micro_ - 1) / micro_;
  const std::int64_t tokens = micro_ * config_.sequence_length, picks = config_.is_moe() ? config_.routed_top_k() : 1;
  constexpr std::int64_t kMostPicks = std::numeric_limits<std::int32_t>::max();
  require<UsageError>(
      tokens <= kMostPicks / picks,
      "train.micro_batch_sequences = {} x model.sequence_length = {} x {} routed picks a token are more "
      "than the {} rows that a micro-batch can number; use at most {} sequences",
      step_.micro_batch_sequences, config_.sequence_length, picks, kMostPicks,
      kMostPicks / picks / config_.sequence_length);

  Arena measure = Arena::measuring(ctx_.device, ctx_.activations);
  (void)model_.reserve(measure, tokens);
  const std::size_t one = measure.peak(), one_growing = measure.growing_bytes();
  model_.reserve_scratch(measure, tokens);
  const std::size_t scratch = measure.peak() - one, scratch_growing = measure.growing_bytes() - one_growing;

  // Under step scope the first backward pass needs every count of the step (design 4.7).
  const bool needs_all = config_.is_moe() && config_.balance == BalanceMode::Aux &&
                         config_.balance_scope == BalanceScope::Step && micro_batches_ > 1;
  if (needs_all) {
    const bool device = ctx_.device.type != DeviceType::Cpu;
    const double available = free_memory.value_or(free_bytes(ctx_.device));
    const double wanted = static_cast<double>(one + one_growing) * static_cast<double>(micro_batches_);
    // A device is this rank's alone, and what the host takes beside the model it does not.
    const bool fits = on_all_ranks(wanted < (device ? 0.8 * available : 0.5 * available / comm_.node_size()));
    recompute_ = step_.micro_batch_memory == MicroBatchMemory::Recompute ||
                 (step_.micro_batch_memory == MicroBatchMemory::Auto && !fits);
    if (ctx_.log != nullptr)
      ctx_.log->info(
          "balance over the whole step with {} micro-batches a rank: {}", micro_batches_,
          recompute_ ? fmt::format("the forward pass runs twice (holding all activations would take {:.0f} MiB a rank)",
                                   wanted / 1048576)
                     : fmt::format("all activations are held, {:.0f} MiB a rank", wanted / 1048576));
  }
  const std::int64_t kept = needs_all && !recompute_ ? micro_batches_ : 1;
  arena_ = Arena(ctx_.device, one * idx(kept) + scratch, ctx_.activations);
  activation_bytes_ = (one + one_growing) * idx(kept) + scratch + scratch_growing;
  const bool pooled = config_.is_moe() && config_.pool != PoolMode::Off;
  const DeviceBatch::PoolRoom pools{.layers = pooled ? config_.layers : 0,
                                    .mask_experts = label_pools_.empty() ? 0 : config_.routed_experts(),
                                    .free_tokens = pooled && config_.pool_free_tokens > 0};
  for (std::int64_t m = 0; m < kept; ++m) {
    slots_.push_back(model_.reserve(arena_, tokens));
    device_batches_.emplace_back(ctx_.device, tokens, pools);
  }
  model_.reserve_scratch(arena_, tokens);
}

}  // namespace emox
