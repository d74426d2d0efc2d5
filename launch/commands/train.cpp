#include "launch/run/trainer.h"

#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "launch/commands/command.h"
#include "launch/config/arguments.h"
#include "launch/config/recipe_file.h"
#include "launch/plan/memory.h"
#include "launch/run/failure.h"
#include "launch/run/on_ranks.h"
#include "launch/run/run_directory.h"
#include "launch/run/signals.h"
#include "parallel/comm/together.h"
#include "runtime/core/error.h"

namespace emox {

int run_train(const std::vector<std::string>& args) {
  const Arguments a = parse_args(args, {.command = "emox train",
                                        .flags = {"--print-config", "--force"},
                                        .options = {"--trace", "--record-pools", "--profile-steps"},
                                        .overrides = true,
                                        .min_positional = 1,
                                        .max_positional = 1,
                                        .positional = "RECIPE.ini"});
  const Recipe recipe = load_recipe(a.positional[0], a.overrides);
  if (a.has("--print-config")) {
    recipe.validate(static_cast<int>(std::max<std::int64_t>(recipe.parallel.expert_parallel, 1)));
    std::fputs(to_ini(recipe, true).c_str(), stdout);
    return kDone;
  }
  for (const char* option : {"--trace", "--record-pools"})
    require<UsageError>(!a.has(option) || !a.value(option).empty(), "emox train: {} needs a file: write {}=FILE",
                        option, option);
  require<UsageError>(!a.has("--trace") || a.value("--trace") != a.value("--record-pools"),
                      "emox train: --trace and --record-pools name the same file, {}: each needs its own",
                      a.value("--trace"));
  TrainOptions options{a.value("--trace"), a.value("--record-pools")};
  options.force = a.has("--force");
  if (a.has("--profile-steps")) {
    options.profile = parse_step_range("--profile-steps", a.value("--profile-steps"));
    require<UsageError>(options.profile.last <= recipe.total_steps(),
                        "--profile-steps={}: the run has {} steps; give some of 1 to {}", a.value("--profile-steps"),
                        recipe.total_steps(), recipe.total_steps());
  }
  options.rate = sets_key(a.positional[0], a.overrides, "train.learning_rate") ? RateGiven::Yes : RateGiven::No;
  options.look_in = {std::filesystem::absolute(a.positional[0]).parent_path()};
  const StopSignals signals;
  return on_ranks(setup_of(recipe), [&](Session& session) {
    recipe.validate(session.comm().size());
    on_root(session.comm(), [&] {
      require<UsageError>(
          recipe.run.change.empty() || RunDirectory(recipe.run.dir).has_checkpoints(),
          "run.change = {} goes on with a run that is there, but {} holds no checkpoint: name the run's "
          "directory with --run.dir=DIR, or leave run.change out",
          recipe.run.change, recipe.run.dir);
    });
    options.memory_plan = [&] {
      return fmt::format("What this run takes on the rank with the most:\n{}",
                         memory_lines(plan_memory(recipe, session.comm().size(), session.comm().node_size(),
                                                  session.ctx().threads, session.choice())));
    };
    std::vector<std::string> command{"emox", "train"};
    command.insert(command.end(), args.begin(), args.end());
    train(session, recipe, command, options);
    return static_cast<int>(kDone);
  });
}

}  // namespace emox
