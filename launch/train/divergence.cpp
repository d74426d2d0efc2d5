#include "launch/train/divergence.h"

#include <fmt/format.h>

#include "parallel/checkpoint/layout.h"

namespace emox {
namespace {

// A tenth, and so little that the decay alone does not let the weights grow.
double lower_rate(const TrainConfig& train) {
  const double tenth = train.learning_rate / 10;
  return tenth * train.weight_decay > 0.5 ? 0.1 / train.weight_decay : tenth;
}

}  // namespace

std::string advice_after_divergence(const Recipe& recipe, const std::filesystem::path& checkpoints,
                                    std::int64_t updated) {
  const TrainConfig& train = recipe.train;
  const auto saved = list_checkpoints(checkpoints);
  const auto step_of = [&](std::size_t i) { return step_of_directory(saved[i].filename().string()).value_or(0); };
  const std::string rate = fmt::format("--train.learning_rate={:.6g}", lower_rate(train));
  const std::string change = fmt::format("the same command with --run.change=train.learning_rate {}", rate);
  std::string advice;
  if (saved.empty())
    advice = fmt::format("No checkpoint was saved: begin again, by the same command with {}", rate);
  else if (step_of(0) < updated)
    advice = fmt::format("Resume from the last checkpoint, of step {}: {}", step_of(0), change);
  else if (saved.size() > 1)
    advice = fmt::format(
        "The last checkpoint, of step {}, holds the weights that gave this: move it away with `mv {} {}`, then resume "
        "from step {}: {}",
        step_of(0), saved[0].string(), checkpoints.parent_path().string(), step_of(1), change);
  else
    advice = fmt::format(
        "The only checkpoint, of step {}, holds the weights that gave this: begin again, by the same command with {} "
        "and another --run.dir=DIR",
        step_of(0), rate);
  advice += fmt::format(" (train.learning_rate is {:.6g}{})", train.learning_rate,
                        train.learning_rate * train.weight_decay >= 1
                            ? fmt::format("; times train.weight_decay = {:.6g} that is {:.6g}, and every update "
                                          "multiplies the weights by 1 - {:.6g}",
                                          train.weight_decay, train.learning_rate * train.weight_decay,
                                          train.learning_rate * train.weight_decay)
                            : "");
  return advice +
         "; train.warmup_steps, train.clip_norm and others can be changed in the same way. If it happens again at the "
         "same step, look at the data of that step";
}

}  // namespace emox
