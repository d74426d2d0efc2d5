#include "launch/run/trainer.h"

#include <cstdio>

#include "launch/commands/command.h"
#include "launch/config/arguments.h"
#include "launch/config/recipe_file.h"
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
                                        .options = {"--trace", "--record-pools"},
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
  options.rate = sets_key(a.positional[0], a.overrides, "train.learning_rate") ? RateGiven::Yes : RateGiven::No;
  options.look_in = {std::filesystem::absolute(a.positional[0]).parent_path()};
  const StopSignals signals;
  return on_ranks(recipe.parallel, recipe.train.threads, [&](Session& session) {
    recipe.validate(session.comm().size());
    on_root(session.comm(), [&] {
      require<UsageError>(
          recipe.run.change.empty() || RunDirectory(recipe.run.dir).has_checkpoints(),
          "run.change = {} goes on with a run that is there, but {} holds no checkpoint: name the run's "
          "directory with --run.dir=DIR, or leave run.change out",
          recipe.run.change, recipe.run.dir);
    });
    std::vector<std::string> command{"emox", "train"};
    command.insert(command.end(), args.begin(), args.end());
    train(session, recipe, command, options);
    return static_cast<int>(kDone);
  });
}

}  // namespace emox
