#include "launch/study/study.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <utility>

#include "data/format/atomic_file.h"
#include "data/loader/heldout.h"
#include "data/tokenize/tokenizer.h"
#include "launch/config/recipe_file.h"
#include "launch/report/html.h"
#include "launch/study/cell_retention.h"
#include "launch/train/run_directory.h"
#include "launch/train/signals.h"
#include "launch/train/trainer.h"
#include "parallel/checkpoint/layout.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

void check_held_out(const Recipe& base) {
  std::vector<SourceSpec> sources;
  for (const std::string& s : base.data.source) sources.push_back(SourceSpec::parse(s));
  const HeldOutSet set = read_held_out(sources, base.data.eval_documents, *make_tokenizer(base.data.tokenizer_name()),
                                       kHeldOutParts[static_cast<std::size_t>(base.data.eval_part)]);
  require<UsageError>(set.skipped.empty(), "emox study compares cells by held-out documents, which are missing: {}",
                      fmt::join(set.skipped, "; "));
}

void check_cell(const StudyCell& cell) {
  const fs::path recipe = RunDirectory(cell.recipe.run.dir).recipe();
  if (fs::exists(recipe)) check_resume(load_recipe(recipe.string()), cell.recipe);
}

/// "emo-seed4": nothing for other names.
std::optional<std::pair<std::string, std::int64_t>> model_and_seed(const std::string& name) {
  for (const std::string model : kCellModels) {
    const std::string begin = model + "-seed";
    std::int64_t seed = 0;
    const char* const last = name.data() + name.size();
    if (!name.starts_with(begin)) continue;
    const auto [end, error] = std::from_chars(name.data() + begin.size(), last, seed);
    if (error == std::errc{} && end == last && seed >= 0) return std::pair(model, seed);
  }
  return std::nullopt;
}

/// These cells and those that other calls made of the same recipe, in one order, whichever call it is; on rank 0.
std::vector<StudyCell> with_earlier_cells(Session& session, const Recipe& base, std::vector<StudyCell> cells) {
  std::set<std::string> names;
  for (const StudyCell& cell : cells) names.insert(cell.recipe.run.name);
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(fs::path(base.run.dir) / "cells", none)) {
    const std::string name = entry.path().filename().string();
    const auto cell = model_and_seed(name);
    if (!cell || names.contains(name) || !fs::exists(RunDirectory(entry.path()).recipe())) continue;
    try {
      Recipe recipe = base;
      recipe.run.seed = cell->second;
      cells.push_back(study_cells(recipe, {cell->first}, 1, session.comm().size()).front());
      check_cell(cells.back());
    } catch (const UsageError& e) {
      session.log().warn("the report leaves out the cell {}: {}", name, e.message());
      std::erase_if(cells, [&](const StudyCell& c) { return c.recipe.run.name == name; });
    }
  }
  const auto place = [](const StudyCell& c) {
    return std::pair(c.seed, std::find(std::begin(kCellModels), std::end(kCellModels), c.model));
  };
  std::sort(cells.begin(), cells.end(), [&](const auto& a, const auto& b) { return place(a) < place(b); });
  return cells;
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

/// Collective: whether a signal has reached any rank.
bool stop_asked(Session& session, const StopSignals& signals) {
  std::int64_t asked = signals.received() != 0 ? 1 : 0;
  session.comm().all_reduce(TensorView(&asked, DType::I64, {1}), ReduceOp::Max);
  return asked != 0;
}

/// What the finished cells found, written when there is any; on rank 0.
std::vector<RetentionRow> write_results(const fs::path& directory, const std::string& name,
                                        const std::vector<StudyCell>& cells) {
  std::vector<RetentionRow> rows;
  for (const StudyCell& cell : cells)
    if (const auto found = cell_rows(cell); !found.empty()) rows.insert(rows.end(), found.begin(), found.end());
  if (rows.empty()) return rows;
  write_file_atomically(directory / "retention.csv", write_retention(rows));
  write_file_atomically(directory / "report.html", report_html(rows, "Study " + name));
  return rows;
}

}  // namespace

StudyOutcome run_study_cells(Session& session, const Recipe& base, const std::vector<StudyCell>& cells,
                             const std::vector<std::string>& command, const LeaseTiming& timing) {
  const fs::path directory = base.run.dir;
  std::unique_ptr<RunLease> lease;  // on rank 0
  std::vector<StudyCell> reported;  // there, too
  on_root(session, [&] {
    require<UsageError>(!RunDirectory(directory).has_checkpoints(),
                        "{} holds a training run: give the study a directory of its own, --run.dir={}-study",
                        directory.string(), directory.string());
    check_held_out(base);
    lease = std::make_unique<RunLease>(directory, LeaseHolder::self(command), timing);
    for (const StudyCell& cell : cells) check_cell(cell);
    reported = with_earlier_cells(session, base, cells);
    write_file_atomically(directory / "recipe.ini", to_ini(base, true));
  });
  const StopSignals signals;  // of the whole study, so that one that ends a cell's training is still seen after it
  StudyOutcome outcome;
  for (std::size_t i = 0; i < cells.size(); ++i) {
    const StudyCell& cell = cells[i];
    // What rank 0 sees decides for all.
    const auto seen = [&](const std::function<bool()>& see) {
      std::int64_t yes = 0;
      on_root(session, [&] { yes = see() ? 1 : 0; });
      session.comm().broadcast(TensorView(&yes, DType::I64, {1}), 0);
      return yes != 0;
    };
    if (seen([&] { return cell_is_complete(cell); })) {
      session.log().info("cell {} of {}, {}: finished", i + 1, cells.size(), cell.recipe.run.name);
      continue;
    }
    const auto train_it = [&] {
      TrainOptions options;
      options.lease = timing;
      options.among = {fmt::format("{}/{} {}", i + 1, cells.size(), cell.recipe.run.name),
                       session.root() ? steps_left(std::span(cells).subspan(i + 1)) : 0};
      session.log().info("cell {} of {}, {}: {} steps", i + 1, cells.size(), cell.recipe.run.name,
                         cell.recipe.total_steps());
      train(session, cell.recipe, command, options);
    };
    const auto write = [&] {
      on_root(session, [&] {
        lease->confirm();
        outcome.rows = write_results(directory, base.run.name, reported);
      });
    };
    const auto evaluated = [&] { return seen([&] { return !cell_rows(cell).empty(); }); };
    const auto measure = [&] {
      return measure_retention(session, cell, [&] { return !stop_asked(session, signals); });
    };
    if (!evaluated()) train_it();
    write();
    if (evaluated() && !measure()) {  // the last save failed, or was damaged since
      session.log().warn("{} has no intact checkpoint of step {}: its last steps are repeated", cell.recipe.run.name,
                         cell.recipe.total_steps());
      train_it();
      if (evaluated())
        require<IoError>(measure(), "{} holds no intact checkpoint of step {} although it was just saved",
                         cell.recipe.run.dir, cell.recipe.total_steps());
    }
    write();
    if (!seen([&] { return cell_is_complete(cell); })) return outcome;
  }
  outcome.complete = true;
  on_root(session, [&] { outcome.rows = write_results(directory, base.run.name, reported); });
  return outcome;
}

}  // namespace emox
