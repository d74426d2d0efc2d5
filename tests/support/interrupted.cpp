#include "tests/support/interrupted.h"

#include <utility>
#include <vector>

#include "launch/run/run_start.h"
#include "tests/support/training.h"

namespace emox::test {
namespace {

class Interruption final : public CollectiveObserver {
 public:
  Interruption(BeforeCollective before, std::shared_ptr<CollectiveObserver> next)
      : before_(std::move(before)), next_(std::move(next)) {}
  void enter(std::string_view op, std::size_t bytes) override {
    before_(op == "all_to_all_v" ? "all_to_all_v_finish" : op);
    if (next_) next_->enter(op, bytes);
  }
  void leave() noexcept override {
    if (next_) next_->leave();
  }
  void start_exchange() override { before_("all_to_all_v_start"); }
  std::shared_ptr<CollectiveObserver> part(Communicator& part, int color) override {
    return std::make_shared<Interruption>(before_, next_ ? next_->part(part, color) : nullptr);
  }
  void probe(const std::function<std::string()>& trouble) override {
    if (next_) next_->probe(trouble);
  }
  void note_progress() noexcept override {
    if (next_) next_->note_progress();
  }
  void note_io(bool begins) noexcept override {
    if (next_) next_->note_io(begins);
  }

 private:
  BeforeCollective before_;
  std::shared_ptr<CollectiveObserver> next_;
};

}  // namespace

namespace {

StepConfig with_reduce(StepConfig config, ShardedBuffer::Reduce reduce) {
  config.reduce = reduce;
  return config;
}

}  // namespace

void interrupt(Communicator& comm, BeforeCollective before) {
  comm.observe(std::make_shared<Interruption>(std::move(before), comm.observer()));
}

StepRank::StepRank(Communicator& comm, const Recipe& recipe, std::optional<double> free_memory,
                   ShardedBuffer::Reduce reduce, const Context& ctx)
    : recipe_(recipe),
      ctx_(ctx),
      sharding_(comm, recipe.model, recipe.parallel),
      model_(recipe.model, ctx_, true, sharding_.experts()),
      pools_(make_pool_sizes(recipe.model, static_cast<std::uint64_t>(recipe.run.seed))),
      step_(ctx_, with_reduce(step_config(recipe), reduce), model_, sharding_.mesh(),
            {.pools = pools_.get(), .label_count = 1, .free_memory = free_memory}) {
  ctx_.telemetry = &telemetry_;
  step_.initialize_weights(static_cast<std::uint64_t>(recipe.run.seed));
}

StepMetrics StepRank::step(std::int64_t number, const StepVotes& votes) {
  const std::int64_t length = recipe_.model.sequence_length;
  std::vector<std::vector<std::int32_t>> tokens;
  for (std::int64_t s = step_.share_begin(); s < step_.share_end(); ++s) {
    auto& sequence = tokens.emplace_back();
    for (std::int64_t t = 0; t < length; ++t)
      sequence.push_back(t % 16 == 15 ? static_cast<std::int32_t>(recipe_.data.eos_id())
                                      : static_cast<std::int32_t>((number * 31 + s * 17 + t * t * 7) % 256));
  }
  std::vector<SequenceInput> inputs;
  for (const auto& sequence : tokens)
    inputs.push_back({sequence, {}, step_.share_begin() + static_cast<std::int64_t>(inputs.size()), 0});
  const StepMetrics m = step_.compute_gradients(number, inputs, votes);
  step_.update(number, recipe_.train.learning_rate, m);
  return m;
}

Recipe step_recipe(int ranks, DispatchKind dispatch) {
  Recipe r = tiny_recipe({"made-up:1:nowhere"});
  r.model.d_model = 16, r.model.sequence_length = 32;
  r.train.batch_sequences = 2 * ranks;
  r.parallel.expert_parallel = ranks;
  r.parallel.dispatch = dispatch;
  r.validate(ranks);
  return r;
}

}  // namespace emox::test
