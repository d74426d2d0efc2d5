#include "launch/config/unused_keys.h"

#include <fmt/format.h>

#include <algorithm>

#include "launch/config/fields.h"
#include "runtime/core/idx.h"

namespace emox {

std::vector<std::string> unused_keys(const Recipe& recipe) {
  Recipe set = recipe, defaults;
  const std::vector<Field> fields = fields_of(set), unset = fields_of(defaults);
  std::vector<std::string> lines;
  // `why` goes on after "has no effect".
  const auto unused = [&](const char* key, bool used, const std::string& why) {
    if (used) return;
    const auto found = std::find_if(fields.begin(), fields.end(), [&](const Field& f) { return f.name() == key; });
    const Field& other = unset[idx(found - fields.begin())];
    if (found->values() != other.values())
      lines.push_back(fmt::format("{} = {} has no effect{}", key, found->values().front(), why));
  };
  const auto with = [](const char* key, const char* const* names, auto value) {
    return fmt::format(" with {} = {}", key, names[idx(value)]);
  };
  const TrainConfig& train = recipe.train;
  const std::string schedule = with("train.schedule", kScheduleNames, train.schedule);
  unused("train.decay_steps", train.schedule == ScheduleKind::Wsd, schedule);
  unused("train.min_lr_ratio", train.schedule != ScheduleKind::Constant, schedule);
  unused("train.skip_window", train.skip_spikes > 0, " with train.skip_spikes = 0");
  unused("run.warm_start_state", !recipe.run.warm_start.empty(), " without run.warm_start");

  const ModelConfig& m = recipe.model;
  unused("model.dense_ff", !m.is_moe(), " in a model with experts");
  if (m.is_moe() && m.pool != PoolMode::Off) {
    const std::string pool = with("moe.pool", kPoolModeNames, m.pool);
    unused("moe.pool_size", m.pool == PoolMode::Fixed, pool);
    unused("moe.pool_from_step", m.pool_from_step < recipe.total_steps(),
           fmt::format(" but to leave out all pools: the run ends at step {}", recipe.total_steps()));
    unused("moe.pool_until_step", m.pool_until_step < recipe.total_steps(),
           fmt::format(": the run ends at step {}", recipe.total_steps()));
  }
  if (m.is_moe()) {
    const std::string balance = with("moe.balance", kBalanceModeNames, m.balance);
    unused("moe.bias_rate", m.balance == BalanceMode::Bias, balance);
    unused("moe.balance_weight", m.balance == BalanceMode::Aux, balance);
  }

  const ParallelConfig& parallel = recipe.parallel;
  const std::string placement = with("parallel.placement", kPlacementNames, parallel.placement);
  unused("parallel.placement_seed", parallel.placement == PlacementKind::Random, placement);
  unused("parallel.placement_file", parallel.placement == PlacementKind::File, placement);
  const std::string cpu = with("run.device", kDeviceNames, recipe.run.device);
  for (const char* key : {"parallel.overlap_experts", "parallel.overlap_gradients", "parallel.overlap_weights"})
    unused(key, recipe.run.device != DeviceKind::Cpu, cpu);
  unused("checkpoint.when_busy", recipe.checkpoint.async, " with checkpoint.async = false");
  return lines;
}

}  // namespace emox
