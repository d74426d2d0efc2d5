#include "launch/study/study.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <memory>
#include <optional>

#include "data/format/atomic_file.h"
#include "data/loader/heldout.h"
#include "data/tokenize/tokenizer.h"
#include "launch/config/recipe_file.h"
#include "launch/report/html.h"
#include "launch/train/run_directory.h"
#include "launch/train/trainer.h"
#include "parallel/checkpoint/layout.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

void check_held_out(const Recipe& base) {
  std::vector<SourceSpec> sources;
  for (const std::string& s : base.data.source) sources.push_back(SourceSpec::parse(s));
  const HeldOutSet set = read_held_out(sources, base.data.eval_documents, *make_tokenizer(base.data.tokenizer_name()));
  require<UsageError>(set.skipped.empty(), "emox study compares cells by held-out documents, which are missing: {}",
                      fmt::join(set.skipped, "; "));
}

/// Nothing while the cell is not finished.
std::optional<std::vector<RetentionRow>> full_losses(const StudyCell& cell) {
  const auto record = RunDirectory(cell.recipe.run.dir).evaluation_after(cell.recipe.total_steps());
  if (!record) return std::nullopt;
  std::vector<RetentionRow> rows;
  const std::int64_t experts = cell.recipe.model.num_experts;
  for (const std::string& source : cell.recipe.data.source) {  // the record's own order is lost in JSON
    const std::string label = SourceSpec::parse(source).label;
    rows.push_back({cell.model, cell.seed, label, kSelections[0], experts, experts,
                    record->at("domains").at(label).at("loss").get<double>()});
  }
  return rows;
}

void check_cell(const StudyCell& cell) {
  const fs::path recipe = RunDirectory(cell.recipe.run.dir).recipe();
  if (fs::exists(recipe)) check_resume(load_recipe(recipe.string()), cell.recipe);
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

/// What the finished cells found, written when there is any; on rank 0.
std::vector<RetentionRow> write_results(const fs::path& directory, const std::string& name,
                                        const std::vector<StudyCell>& cells) {
  std::vector<RetentionRow> rows;
  for (const StudyCell& cell : cells)
    if (const auto found = full_losses(cell)) rows.insert(rows.end(), found->begin(), found->end());
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
  on_root(session, [&] {
    require<UsageError>(!RunDirectory(directory).has_checkpoints(),
                        "{} holds a training run: give the study a directory of its own, --run.dir={}-study",
                        directory.string(), directory.string());
    check_held_out(base);
    lease = std::make_unique<RunLease>(directory, LeaseHolder::self(command), timing);
    for (const StudyCell& cell : cells) check_cell(cell);
    write_file_atomically(directory / "recipe.ini", to_ini(base, true));
  });
  StudyOutcome outcome;
  std::int64_t finished = 1;  // whether the cell is, as rank 0 sees it
  for (std::size_t i = 0; i < cells.size() && finished != 0; ++i) {
    const StudyCell& cell = cells[i];
    const auto see = [&] {
      finished = session.root() && full_losses(cell) ? 1 : 0;
      session.comm().broadcast(TensorView(&finished, DType::I64, {1}), 0);
    };
    see();
    if (finished != 0) {
      session.log().info("cell {} of {}, {}: finished", i + 1, cells.size(), cell.recipe.run.name);
      continue;
    }
    TrainOptions options;
    options.lease = timing;
    options.among = {fmt::format("{}/{} {}", i + 1, cells.size(), cell.recipe.run.name),
                     session.root() ? steps_left(std::span(cells).subspan(i + 1)) : 0};
    session.log().info("cell {} of {}, {}: {} steps", i + 1, cells.size(), cell.recipe.run.name,
                       cell.recipe.total_steps());
    train(session, cell.recipe, command, options);
    on_root(session, [&] {
      lease->confirm();
      outcome.rows = write_results(directory, base.run.name, cells);
    });
    see();
  }
  outcome.complete = finished != 0;
  on_root(session, [&] { outcome.rows = write_results(directory, base.run.name, cells); });
  return outcome;
}

}  // namespace emox
