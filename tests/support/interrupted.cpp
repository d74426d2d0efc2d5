#include "tests/support/interrupted.h"

#include <utility>
#include <vector>

#include "tests/support/training.h"

namespace emox::test {
namespace {

class InterruptedCommunicator final : public Communicator {
 public:
  InterruptedCommunicator(Communicator& inner, BeforeCollective before) : inner_(inner), before_(std::move(before)) {}
  InterruptedCommunicator(std::unique_ptr<Communicator> inner, BeforeCollective before)
      : owned_(std::move(inner)), inner_(*owned_), before_(std::move(before)) {}
  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  const std::vector<int>& nodes() const override { return inner_.nodes(); }
  std::string_view transport() const override { return inner_.transport(); }

 private:
  void do_all_reduce(TensorView x, ReduceOp op) override {
    before_("all_reduce");
    inner_.all_reduce(x, op);
  }
  void do_all_gather(TensorView out, TensorView in) override {
    before_("all_gather");
    inner_.all_gather(out, in);
  }
  void do_all_gather_v(TensorView x, std::span<const std::int64_t> cuts) override {
    before_("all_gather_v");
    inner_.all_gather_v(x, cuts);
  }
  void do_reduce_scatter(TensorView x, std::span<const std::int64_t> cuts) override {
    before_("reduce_scatter");
    inner_.reduce_scatter(x, cuts);
  }
  void do_broadcast(TensorView x, int root) override {
    before_("broadcast");
    inner_.broadcast(x, root);
  }
  void do_all_to_all_v_start(const RowExchange& e) override {
    before_("all_to_all_v_start");
    inner_.all_to_all_v_start(e.out, e.recv_rows, e.in, e.send_rows);
  }
  void do_all_to_all_v_finish(const RowExchange&) override {
    before_("all_to_all_v_finish");
    inner_.all_to_all_v_finish();
  }
  void do_all_to_all_v_abandon() noexcept override { inner_.all_to_all_v_abandon(); }
  void do_barrier() override {
    before_("barrier");
    inner_.barrier();
  }
  std::unique_ptr<Communicator> do_split(int color, int key) override {
    before_("split");
    return std::make_unique<InterruptedCommunicator>(inner_.split(color, key), before_);
  }

  std::unique_ptr<Communicator> owned_;  // of a part; the world belongs to somebody else
  Communicator& inner_;
  BeforeCollective before_;
};

}  // namespace

std::unique_ptr<Communicator> make_interrupted(Communicator& inner, BeforeCollective before) {
  return std::make_unique<InterruptedCommunicator>(inner, std::move(before));
}

StepRank::StepRank(Communicator& comm, const Recipe& recipe, std::optional<double> free_memory)
    : recipe_(recipe),
      sharding_(comm, recipe.model, recipe.parallel),
      model_(recipe.model, ctx_, true, sharding_.experts()),
      pools_(make_pool_sizes(recipe.model, static_cast<std::uint64_t>(recipe.run.seed))),
      step_(ctx_, recipe, model_, sharding_.mesh(), pools_.get(), 1, std::nullopt, free_memory) {
  model_.initialize(ctx_, static_cast<std::uint64_t>(recipe.run.seed));
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
