// A rank that fails in the middle of a training step, at whichever collective a test says.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>

#include "launch/config/recipe.h"
#include "launch/run/sharding.h"
#include "model/training/training_step.h"
#include "parallel/comm/communicator.h"
#include "runtime/telemetry/spans.h"

namespace emox::test {

/// Called before each collective, by its name; "all_to_all_v_start" and "all_to_all_v_finish" are two. May throw.
using BeforeCollective = std::function<void(std::string_view name)>;

/// `before` is called first in every collective of `comm`, and of what is split from it.
void interrupt(Communicator& comm, BeforeCollective before);

/// One rank of an EMO run with experts sharded over all ranks, on made-up tokens: it reads no files.
class StepRank {
 public:
  /// `free_memory`: bytes that are free on the rank's node; nothing: what the system says. `reduce`: when sums of
  /// gradients begin.
  /// `ctx`: where it computes.
  StepRank(Communicator& comm, const Recipe& recipe, std::optional<double> free_memory = std::nullopt,
           ShardedBuffer::Reduce reduce = ShardedBuffer::Reduce::AtEnd, const Context& ctx = {});
  /// Gradients and update.
  StepMetrics step(std::int64_t number, const StepVotes& votes = {});
  LanguageModel& model() { return model_; }
  /// Spans of the steps.
  Telemetry& telemetry() { return telemetry_; }
  Context& context() { return ctx_; }
  bool recomputes_forward() const { return step_.recomputes_forward(); }

 private:
  const Recipe recipe_;
  Telemetry telemetry_;
  Context ctx_;
  Sharding sharding_;
  LanguageModel model_;
  std::unique_ptr<PoolSizes> pools_;
  TrainingStep step_;
};

/// tests/support/training.h's tiny recipe with fewer tokens, for StepRank.
Recipe step_recipe(int ranks, DispatchKind dispatch);

}  // namespace emox::test
