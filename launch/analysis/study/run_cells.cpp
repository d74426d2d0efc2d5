#include "launch/analysis/study/run_cells.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <span>

#include "data/loader/heldout.h"
#include "data/tokenize/tokenizer.h"
#include "launch/analysis/study/cell_retention.h"
#include "launch/config/changes.h"
#include "launch/config/recipe_file.h"
#include "launch/run/evaluator.h"
#include "launch/run/lease_wait.h"
#include "launch/run/run_data.h"
#include "launch/run/run_directory.h"
#include "launch/run/signals.h"
#include "launch/run/stop_request.h"
#include "launch/run/trainer.h"
#include "model/training/training_step.h"
#include "parallel/checkpoint/layout.h"
#include "parallel/comm/progress.h"
#include "parallel/comm/together.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

void check_held_out(Session& session, const Recipe& recipe, const std::vector<fs::path>& bases) {
  std::vector<SourceSpec> sources;
  for (const SourceSpec& s : sources_of(recipe.data)) sources.push_back(find_held_out(s, bases).spec);
  const HeldOutSet set =
      read_held_out(sources, recipe.data.eval_documents, *make_tokenizer(recipe.data.tokenizer_name()),
                    kHeldOutParts[idx(recipe.data.eval_part)], token_width(recipe.data));
  require<UsageError>(set.skipped.empty(), "emox study compares cells by held-out documents, which are missing: {}",
                      fmt::join(set.skipped, "; "));
  std::size_t scored = 0;
  for (const HeldOut& source : set.sources) {
    if (!source.documents.empty())
      ++scored;
    else
      session.log().warn("{} has no held-out text: it has no rows, and is in no mean", source.label);
  }
  require<UsageError>(scored > 0, "emox study compares cells by held-out documents, and no source has any");
}

/// Steps of the cell that are saved.
std::int64_t steps_done(const StudyCell& cell) {
  const auto saved = list_checkpoints(RunDirectory(cell.recipe.run.dir).checkpoints());
  return saved.empty() ? 0 : step_of_directory(saved.front().filename().string()).value_or(0);
}

std::int64_t steps_left(std::span<const StudyCell> cells) {
  std::int64_t left = 0;
  for (const StudyCell& cell : cells) left += cell.recipe.total_steps() - steps_done(cell);
  return left;
}

}  // namespace

void check_cell(const StudyCell& cell, const DataIdentity& data) {
  const RunStart start = plan_from_newest(cell.recipe, RunDirectory(cell.recipe.run.dir).checkpoints());
  require<UsageError>(start.new_changes == 0 || start.step < cell.recipe.total_steps(),
                      "the cell {} is trained to its last step: run.change = {} would change nothing in it, and the "
                      "report would say otherwise; leave it out, or give the study another run.dir",
                      cell.recipe.run.name, cell.recipe.run.change);
  // Only a cell that goes on can go on with other data; of a finished one nothing would be of them.
  const std::vector<std::string> changes = change_keys(cell.recipe.run.change);
  const bool other_data = std::find(changes.begin(), changes.end(), "data.source") != changes.end();
  if (!other_data || start.step >= cell.recipe.total_steps()) check_data_of_run(cell.recipe.run.dir, data);
}

bool run_cells(Session& session, const CellsRequest& request, const std::function<void(const DataIdentity&)>& begin,
               const std::function<void()>& write) {
  const fs::path directory = request.base.run.dir;
  const std::vector<StudyCell>& cells = request.cells;
  std::unique_ptr<RunLease> lease;  // on rank 0
  on_root(session.comm(), [&] {
    require<UsageError>(!RunDirectory(directory).has_checkpoints(),
                        "{} holds a training run: give the study a directory of its own, --run.dir={}-study",
                        directory.string(), directory.string());
    RunDirectory(directory).check_is_run("cells");
    std::vector<fs::path> bases{fs::path()};
    bases.insert(bases.end(), request.look_in.begin(), request.look_in.end());
    check_held_out(session, cells.front().recipe, bases);
    const DataIdentity data = identify_data(cells.front().recipe, bases);
    lease = take_lease_within({request.base.run.wait_s, [&](const std::string& who) { session.log().info("{}", who); },
                               [&] {
                                 report_progress(session.comm());
                                 return StopSignals::received() == 0;
                               }},
                              directory, request.command, request.timing);
    for (const StudyCell& cell : cells) check_cell(cell, data);
    fs::create_directories(directory / "cells");  // tells the study's directory from other people's
    begin(data);
  });
  const StopSignals signals;  // of the whole study, so that one that ends a cell's training is still seen after it
  StopRequest stop(session, request.base.run.stop_after_minutes, {directory / "STOP"});
  for (std::size_t i = 0; i < cells.size(); ++i) {
    const StudyCell& cell = cells[i];
    // What rank 0 sees decides for all.
    const auto seen = [&](const std::function<bool()>& see) {
      bool yes = false;
      on_root(session.comm(), [&] { yes = see(); });
      return root_says(session.comm(), yes);
    };
    if (seen([&] { return cell_is_complete(cell); })) {
      session.log().info("cell {} of {}, {}: finished", i + 1, cells.size(), cell.recipe.run.name);
      continue;
    }
    bool diverged = false;
    const auto train_it = [&] {
      TrainOptions options;
      options.may_diverge = static_cast<bool>(request.diverged);
      options.lease = request.timing;
      options.look_in = request.look_in;
      options.stop_file = directory / "STOP";
      options.among = {fmt::format("{}/{} {}", i + 1, cells.size(), cell.recipe.run.name),
                       session.root() ? steps_left(std::span(cells).subspan(i + 1)) : 0};
      session.log().info("cell {} of {}, {}: {} steps", i + 1, cells.size(), cell.recipe.run.name,
                         cell.recipe.total_steps());
      try {
        train(session, cell.recipe, request.command, options);
      } catch (const DivergedError& e) {
        if (!request.diverged) throw;
        session.log().warn("{} diverged: {}", cell.recipe.run.name, e.message());
        request.diverged(cell);
        diverged = true;
      }
    };
    const auto write_all = [&] {
      on_root(session.comm(), [&] {
        lease->confirm();
        write();
      });
    };
    const auto evaluated = [&] { return seen([&] { return !cell_rows(cell).empty(); }); };
    const auto measure = [&] {
      try {
        return measure_retention(session, cell, [&] { return !stop.agreed(); });
      } catch (const EvaluationStopped&) {  // the domain is measured again
        return true;
      }
    };
    if (!evaluated()) train_it();
    write_all();
    if (evaluated() && !measure()) {  // the last save failed, or was damaged since
      session.log().warn("{} has no intact checkpoint of step {}: its last steps are repeated", cell.recipe.run.name,
                         cell.recipe.total_steps());
      train_it();
      if (evaluated())
        require<IoError>(measure(), "{} holds no intact checkpoint of step {} although it was just saved",
                         cell.recipe.run.dir, cell.recipe.total_steps());
    }
    write_all();
    if (!diverged && !seen([&] { return cell_is_complete(cell); })) return false;
  }
  on_root(session.comm(), write);
  return true;
}

}  // namespace emox
