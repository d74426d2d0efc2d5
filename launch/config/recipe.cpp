#include "launch/config/recipe.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string_view>

#include "data/loader/loader.h"
#include "data/tokenize/tokenizer.h"
#include "launch/config/changes.h"
#include "launch/config/fields.h"
#include "parallel/mesh/process_mesh.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

void validate_run(const RunConfig& run) {
  change_keys(run.change);
  constexpr std::string_view kNameCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  require<UsageError>(!run.name.empty() && run.name.find_first_not_of(kNameCharacters) == std::string::npos,
                      "run.name = '{}' cannot name a directory: use letters, digits, '.', '_' and '-'", run.name);
}

void validate_schedule(const TrainConfig& train, std::int64_t total) {
  require<UsageError>(train.warmup_steps < total,
                      "train.warmup_steps = {} leaves no step of {} after the warm-up; use 0 to {}", train.warmup_steps,
                      total, total - 1);
  const std::int64_t most_decay = total - train.warmup_steps - 1;
  require<UsageError>(train.schedule != ScheduleKind::Wsd || (train.decay_steps > 0 && train.decay_steps <= most_decay),
                      "train.schedule = wsd: train.decay_steps = {}, but the rate falls over the last steps, after it "
                      "has stood at its peak; use 1 to {} (of {} steps, {} are the warm-up)",
                      train.decay_steps, most_decay, total, train.warmup_steps);
  if (train.anneal_from_step == 0) return;
  const std::int64_t first = train.anneal_from_step;
  require<UsageError>(first < total, "train.anneal_from_step = {} is not before the last step {}; use 1 to {}", first,
                      total, total - 1);
  require<UsageError>(train.schedule == ScheduleKind::Linear && train.min_lr_ratio == 0.0 && train.warmup_steps == 0,
                      "train.anneal_from_step = {} falls linearly to 0 without a warm-up: set train.schedule = linear, "
                      "train.min_lr_ratio = 0 and train.warmup_steps = 0 (now {}, {} and {})",
                      first, kScheduleNames[idx(train.schedule)], train.min_lr_ratio, train.warmup_steps);
}

void validate_data(const DataConfig& data, const ModelConfig& model) {
  require<UsageError>(model.vocab_size >= data.token_count(),
                      "model.vocab_size = {} is smaller than the {} ids of data.tokenizer = {}; use at least {}",
                      model.vocab_size, data.token_count(), data.tokenizer_name(), data.token_count());
  require<UsageError>(!data.source.empty(), "data.source is not set: give at least one, as label:weight:path");
  for (const std::string& source : data.source) SourceSpec::parse(source);
}

void validate_parallel(const Recipe& recipe, int ranks) {
  const ParallelConfig& parallel = recipe.parallel;
  const bool devices =
      parallel.communicator == CommunicatorKind::Nccl || parallel.communicator == CommunicatorKind::Staged;
  require<UsageError>(!devices || recipe.run.device != DeviceKind::Cpu,
                      "parallel.communicator = {} moves data between GPUs, but run.device = cpu; use auto or mpi",
                      kCommunicatorNames[idx(parallel.communicator)]);
  require<UsageError>(parallel.communicator != CommunicatorKind::Self || ranks == 1,
                      "parallel.communicator = self is for one rank, not {}; use auto or mpi", ranks);
  if (parallel.expert_parallel != 0)  // auto fits by its making
    check_expert_parallel(ranks, parallel.expert_parallel, recipe.model.is_moe() ? recipe.model.routed_experts() : 0);
  require<UsageError>(parallel.dispatch != DispatchKind::Local || parallel.expert_parallel <= 1,
                      "parallel.dispatch = local needs all experts on every rank, but parallel.expert_parallel is {}; "
                      "use flat or two_level",
                      parallel.expert_parallel);
  require<UsageError>(parallel.placement != PlacementKind::File || !parallel.placement_file.empty(),
                      "parallel.placement = file needs parallel.placement_file; give it, or use block or random");
}

void validate_checkpoint(const CheckpointConfig& checkpoint) {
  const std::int64_t every = checkpoint.every_steps, keep = checkpoint.keep_every_steps;
  require<UsageError>(
      keep == 0 || (every > 0 && keep % every == 0),
      "checkpoint.keep_every_steps = {} is not a multiple of checkpoint.every_steps = {}, so no checkpoint would "
      "be kept; use 0 or {}",
      keep, every, every > 0 ? fmt::format("a multiple of {}", every) : "set every_steps");
}

// Calls visit(field, its values before, its values now) for every key that differs.
template <typename Visit>
void for_changes(const Recipe& before, const Recipe& now, Visit&& visit) {
  Recipe old_copy = before, new_copy = now;
  const std::vector<Field> old_fields = fields_of(old_copy), new_fields = fields_of(new_copy);
  for (std::size_t i = 0; i < new_fields.size(); ++i) {
    const auto was = old_fields[i].values(), is = new_fields[i].values();
    if (was != is) visit(new_fields[i], fmt::format("{}", fmt::join(was, " ")), fmt::format("{}", fmt::join(is, " ")));
  }
}

}  // namespace

std::int32_t DataConfig::eos_id() const { return tokenizer == TokenizerKind::Byte ? kByteEos : kDolma2Eos; }
std::int64_t DataConfig::token_count() const {
  return tokenizer == TokenizerKind::Byte ? kByteVocabSize : kDolma2VocabSize;
}

std::int64_t Recipe::total_steps() const {
  if (train.steps > 0) return train.steps;
  return train.tokens / tokens_per_step() + (train.tokens % tokens_per_step() != 0 ? 1 : 0);
}

void Recipe::validate(int ranks) const {
  validate_run(run);
  model.validate();
  require<UsageError>(train.steps > 0 || train.tokens > 0,
                      "neither train.steps nor train.tokens is set; set one of them");
  require<UsageError>(train.steps == 0 || train.tokens == 0,
                      "train.steps = {} and train.tokens = {} are both set; set one of them to 0", train.steps,
                      train.tokens);
  validate_schedule(train, total_steps());
  require<UsageError>(
      train.batch_sequences >= ranks,
      "train.batch_sequences = {} is fewer than the {} ranks, so some would have nothing to do; use at least {}, "
      "or at most {} ranks",
      train.batch_sequences, ranks, ranks, train.batch_sequences);
  validate_data(data, model);
  validate_parallel(*this, ranks);
  validate_checkpoint(checkpoint);
}

std::vector<std::string> list_changes(const Recipe& before, const Recipe& now) {
  constexpr std::string_view kOwn[] = {"run.name", "run.dir", "run.change", "run.warm_start", "run.warm_start_state"};
  std::vector<std::string> changes;
  for_changes(before, now, [&](const Field& field, const std::string& was, const std::string& is) {
    if (std::count(std::begin(kOwn), std::end(kOwn), field.name()) == 0)
      changes.push_back(fmt::format("{}: {} -> {}", field.name(), was, is));
  });
  return changes;
}

}  // namespace emox
