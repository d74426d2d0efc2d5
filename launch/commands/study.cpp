#include "launch/study/study.h"

#include <fmt/format.h>

#include "launch/commands/command.h"
#include "launch/commands/on_ranks.h"
#include "launch/config/recipe_file.h"
#include "launch/report/html.h"
#include "launch/train/signals.h"

namespace emox {

int run_study(const std::vector<std::string>& args) {
  const Arguments a = parse_args(args, {.command = "emox study",
                                        .options = {"--seeds", "--cells"},
                                        .overrides = true,
                                        .min_positional = 1,
                                        .max_positional = 1,
                                        .positional = "RECIPE.ini"});
  const Recipe base = load_recipe(a.positional[0], a.overrides);
  const std::vector<std::string> models = parse_cells(a.value("--cells", "emo,standard"));
  const int seeds = whole_number("emox study", "--seeds", a.value("--seeds", "3"), 1);
  const StopSignals signals;
  return on_ranks(base.parallel, base.train.threads, [&](Session& session) {
    const std::vector<StudyCell> cells = study_cells(base, models, seeds, session.comm().size());
    std::vector<std::string> command{"emox", "study"};
    command.insert(command.end(), args.begin(), args.end());
    const StudyOutcome outcome = run_study_cells(session, base, cells, command);
    if (!outcome.complete) session.log().info("the study is not complete; the same command goes on from here");
    if (session.root() && !outcome.rows.empty())
      fmt::print("{}{}/report.html\n", report_summary(outcome.rows), base.run.dir);
    return static_cast<int>(kDone);
  });
}

}  // namespace emox
