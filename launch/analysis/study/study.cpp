#include "launch/analysis/study/study.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <iterator>
#include <optional>
#include <set>
#include <tuple>

#include "data/format/atomic_file.h"
#include "launch/analysis/report/html.h"
#include "launch/analysis/study/cell_retention.h"
#include "launch/config/changes.h"
#include "launch/config/recipe_file.h"
#include "launch/run/run_directory.h"
#include "launch/run/run_start.h"
#include "model/transformer/parameter_count.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

struct CellName {
  std::string model;
  std::int64_t seed = 0;
  bool repeat = false;
};

/// "emo-seed4", "emo-seed4-repeat": nothing for other names.
std::optional<CellName> parse_cell_name(const std::string& name) {
  for (const std::string model : kCellModels) {
    const std::string begin = model + "-seed";
    std::int64_t seed = 0;
    const char* const last = name.data() + name.size();
    if (!name.starts_with(begin)) continue;
    const auto [end, error] = std::from_chars(name.data() + begin.size(), last, seed);
    const std::string rest(end, last);
    if (error == std::errc{} && (rest.empty() || rest == "-repeat") && seed >= 0)
      return CellName{model, seed, !rest.empty()};
  }
  return std::nullopt;
}

/// None when there is no such directory; one that cannot be read is an error: cells would be left out without a word.
std::vector<fs::path> directories_in(const fs::path& directory) {
  std::vector<fs::path> paths;
  if (!fs::exists(directory)) return paths;
  std::error_code error;
  for (fs::directory_iterator at(directory, error), end; !error && at != end; at.increment(error))
    paths.push_back(at->path());
  require<IoError>(!error, "cannot read {}: {}", directory.string(), error.message());
  return paths;
}

StudyCell remake(const CellsRequest& request, const CellName& name, int ranks) {
  Recipe recipe = request.base;
  recipe.run.seed = name.seed;
  recipe.run.change.clear();  // this call does not go on with it, so it changes nothing in it
  CellOptions options = request.options;
  options.left_out = nullptr;
  const StudyCell cell = study_cells(recipe, {name.model}, 1, ranks, options).front();
  return name.repeat ? rounding_repeat(cell, ranks) : cell;
}

/// These cells and those that other calls made of the same recipe, in one order, whichever call it is; on rank 0.
std::vector<StudyCell> with_earlier_cells(Session& session, const CellsRequest& request, const DataIdentity& data,
                                          std::vector<std::string>& remarks) {
  std::vector<StudyCell> cells = request.cells;
  std::set<std::string> names;
  for (const StudyCell& cell : cells) names.insert(cell.recipe.run.name);
  for (const fs::path& path : directories_in(fs::path(request.base.run.dir) / "cells")) {
    const std::string name = path.filename().string();
    const auto cell = parse_cell_name(name);
    if (!cell || names.contains(name) || !fs::exists(RunDirectory(path).recipe())) continue;
    try {
      StudyCell earlier = remake(request, *cell, session.comm().size());
      check_cell(earlier, data);
      cells.push_back(std::move(earlier));
    } catch (const UsageError& e) {
      session.log().warn("the report leaves out the cell {}: {}", name, e.message());
      remarks.push_back(
          fmt::format("Left out: the cell {}, which was made with other values or from other data.", name));
    }
  }
  std::sort(remarks.begin(), remarks.end());  // a directory has no order
  const auto place = [](const StudyCell& c) {
    return std::tuple(c.repeat, c.seed, std::find(std::begin(kCellModels), std::end(kCellModels), c.model));
  };
  std::sort(cells.begin(), cells.end(), [&](const auto& a, const auto& b) { return place(a) < place(b); });
  return cells;
}

/// Values of [model], [moe] and [train] that are not those of `emo`.
std::vector<std::string> differences(const Recipe& emo, const Recipe& recipe) {
  std::vector<std::string> changes = list_changes(emo, recipe);
  std::erase_if(changes, [](const std::string& change) {
    return !change.starts_with("model.") && !change.starts_with("moe.") && !change.starts_with("train.");
  });
  return changes;
}

void describe_models(const CellsRequest& request, const std::vector<StudyCell>& cells, StudyNotes& notes) {
  Recipe emo = request.base;
  for (const StudyCell& cell : cells)
    if (cell.model == kCellModels[0] && !cell.repeat) emo = cell.recipe;
  std::set<std::string> known;
  for (const StudyCell& cell : cells) {
    if (!known.insert(cell.model).second) continue;
    const ParameterCount count = count_parameters(cell.recipe.model);
    std::vector<std::string> changes = differences(emo, cell.recipe);
    const std::string label = model_label(cell.model, cell.recipe);
    notes.models.push_back({cell.model, label, count.total, count.active, fmt::format("{}", fmt::join(changes, "; "))});
    std::erase_if(changes, [](const std::string& change) { return change.starts_with("moe."); });
    if (!changes.empty())
      notes.remarks.push_back(fmt::format("{}, beyond [moe]: {}.", label, fmt::join(changes, "; ")));
  }
  for (const StudyCell& cell : cells)  // a part of such a run had other values than the tables say
    for (const std::string& line :
         change_lines(plan_from_newest(cell.recipe, RunDirectory(cell.recipe.run.dir).checkpoints()).changes))
      notes.remarks.push_back(fmt::format("{} was changed at {}.", cell.recipe.run.name, line));
}

/// What the finished cells found, written when there is any; on rank 0.
void write_results(const CellsRequest& request, const std::vector<StudyCell>& cells, const StudyNotes& about,
                   StudyOutcome& outcome) {
  outcome.rows.clear();
  outcome.notes = about;
  for (const StudyCell& cell : cells) {
    const auto found = cell_rows(cell);
    auto& rows = cell.repeat ? outcome.notes.repeats : outcome.rows;
    rows.insert(rows.end(), found.begin(), found.end());
    if (found.empty() || cell.repeat) continue;
    const auto draws = cell_chance(cell);
    outcome.notes.chance.insert(outcome.notes.chance.end(), draws.begin(), draws.end());
    outcome.notes.training.push_back({cell.model, cell.seed, cell_training(cell)});
  }
  if (outcome.rows.empty()) return;
  const fs::path directory = request.base.run.dir;
  write_file_atomically(directory / "retention.csv", write_retention(outcome.rows));
  write_file_atomically(directory / "chance.csv", write_chance(outcome.notes.chance));
  write_file_atomically(directory / "repeats.csv", write_retention(outcome.notes.repeats));
  if (const std::string svg = retention_svg(outcome.rows, outcome.notes); !svg.empty())
    write_file_atomically(directory / "retention.svg", svg);
  if (const std::string svg = training_svg(outcome.notes); !svg.empty())
    write_file_atomically(directory / "loss.svg", svg);
  write_file_atomically(directory / "report.html",
                        report_html(outcome.rows, "Study " + request.base.run.name, outcome.notes));
}

}  // namespace

StudyOutcome run_study_cells(Session& session, const CellsRequest& request) {
  StudyOutcome outcome;
  StudyNotes about;
  std::vector<StudyCell> reported;  // on rank 0
  const auto begin = [&](const DataIdentity& data) {
    reported = with_earlier_cells(session, request, data, about.remarks);
    describe_models(request, reported, about);
    if (request.options.left_out != nullptr)
      for (const std::string& line : *request.options.left_out) about.remarks.push_back("Left out: " + line);
    for (const std::string& remark : about.remarks) session.log().info("{}", remark);
    std::vector<std::string> notes;
    RunDirectory(request.base.run.dir).write_recipe(request.base, notes);
    for (const std::string& note : notes) session.log().warn("{}", note);
  };
  outcome.complete = run_cells(session, request, begin, [&] { write_results(request, reported, about, outcome); });
  return outcome;
}

}  // namespace emox
