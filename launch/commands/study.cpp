// `emox study`: EMO against its baselines, and the tuning of each on its own.
#include "launch/analysis/study/study.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iterator>

#include "launch/analysis/report/html.h"
#include "launch/analysis/study/tune.h"
#include "launch/commands/command.h"
#include "launch/config/arguments.h"
#include "launch/config/recipe_file.h"
#include "launch/run/failure.h"
#include "launch/run/on_ranks.h"
#include "launch/run/signals.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

constexpr const char* kCommand = "emox study";

int report(Session& session, const CellsRequest& request) {
  const StudyOutcome outcome = run_study_cells(session, request);
  if (!outcome.complete) session.log().info("the study is not complete; the same command goes on from here");
  if (session.root() && !outcome.rows.empty())
    fmt::print("{}{}/report.html\n", report_summary(outcome.rows, outcome.notes), request.base.run.dir);
  return kDone;
}

int tune(Session& session, const CellsRequest& request) {
  const TuneOutcome outcome = run_tuning(session, request);
  if (!outcome.complete) session.log().info("the tuning is not complete; the same command goes on from here");
  if (session.root() && !outcome.rows.empty())
    fmt::print("{}{}/tune.csv\n", tune_summary(outcome.rows), request.base.run.dir);
  return kDone;
}

/// The first seed of emo and standard once more, where they are among the cells.
void add_repeats(std::vector<StudyCell>& cells, std::int64_t seed, int ranks) {
  std::vector<StudyCell> repeats;
  for (const StudyCell& cell : cells)
    if (cell.seed == seed && (cell.model == kCellModels[0] || cell.model == kCellModels[1]))
      repeats.push_back(rounding_repeat(cell, ranks));
  cells.insert(cells.end(), std::make_move_iterator(repeats.begin()), std::make_move_iterator(repeats.end()));
}

}  // namespace

int run_study(const std::vector<std::string>& args) {
  const Arguments a = parse_args(args, {.command = kCommand,
                                        .flags = {"--repeat-rounding", "--print-config"},
                                        .options = {"--seeds", "--cells", "--chance-draws"},
                                        .lists = {"--set", "--tune"},
                                        .overrides = true,
                                        .min_positional = 1,
                                        .max_positional = 1,
                                        .positional = "RECIPE.ini"});
  CellsRequest request;
  request.base = load_recipe(a.positional[0], a.overrides);
  const std::string cells = a.value("--cells", "emo,standard");
  const std::vector<std::string> models = parse_cells(cells);
  const std::vector<TuneAxis> axes = parse_tune(a.list("--tune"));
  const int seeds = whole_number(kCommand, "--seeds", a.value("--seeds", axes.empty() ? "3" : "1"), 1);
  std::vector<std::string> left_out;
  request.options.settings = parse_settings(a.list("--set"));
  request.options.chance_draws = whole_number(kCommand, "--chance-draws", a.value("--chance-draws", "8"), 1);
  if (cells == "all") request.options.left_out = &left_out;
  require<UsageError>(axes.empty() || !a.has("--repeat-rounding"),
                      "{}: --repeat-rounding is for the report: leave it out with --tune", kCommand);
  if (a.has("--print-config")) {
    request.base.validate(static_cast<int>(std::max<std::int64_t>(request.base.parallel.expert_parallel, 1)));
    std::fputs(to_ini(request.base, true).c_str(), stdout);
    return kDone;
  }
  request.look_in = {std::filesystem::absolute(a.positional[0]).parent_path()};
  request.command = {"emox", "study"};
  request.command.insert(request.command.end(), args.begin(), args.end());
  const StopSignals signals;
  return on_ranks(setup_of(request.base), [&](Session& session) {
    const int ranks = session.comm().size();
    if (!axes.empty()) {
      request.cells = tuning_cells(request.base, models, seeds, ranks, axes, request.options);
      return tune(session, request);
    }
    request.cells = study_cells(request.base, models, seeds, ranks, request.options);
    if (a.has("--repeat-rounding")) add_repeats(request.cells, request.base.run.seed, ranks);
    return report(session, request);
  });
}

}  // namespace emox
