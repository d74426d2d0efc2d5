#include "launch/run/divergence.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cstring>

#include "parallel/checkpoint/layout.h"

namespace emox {
namespace {

// A tenth, and so little that the decay alone does not let the weights grow.
double lower_rate(const TrainConfig& train) {
  const double tenth = train.learning_rate / 10;
  return tenth * train.weight_decay > 0.5 ? 0.1 / train.weight_decay : tenth;
}

/// As one word of a shell's command line.
std::string shell_word(const std::filesystem::path& path) {
  const std::string& text = path.native();
  const auto plain = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || std::strchr("_./=+-:,@%", c); };
  if (!text.empty() && std::all_of(text.begin(), text.end(), plain)) return text;
  std::string word = "'";
  for (const char c : text) word += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return word + "'";
}

/// Beside the checkpoints, where nothing is yet: an earlier divergence may have left its own there.
std::filesystem::path place_for(const std::filesystem::path& checkpoint) {
  const std::filesystem::path place = checkpoint.parent_path().parent_path() / checkpoint.filename();
  std::filesystem::path free = place;
  for (int i = 2; std::filesystem::exists(free); ++i) free = fmt::format("{}-{}", place.native(), i);
  return free;
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
        step_of(0), shell_word(saved[0]), shell_word(place_for(saved[0])), step_of(1), change);
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
