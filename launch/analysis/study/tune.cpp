#include "launch/analysis/study/tune.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <tuple>

#include "launch/analysis/report/csv.h"
#include "launch/analysis/study/cell_retention.h"
#include "launch/run/run_directory.h"
#include "runtime/core/error.h"
#include "runtime/files/atomic_file.h"
#include "runtime/files/files.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

const std::vector<std::string> kHeader{"model", "seed", "settings", "steps", "loss", "experts_kept", "rise"};

constexpr const char* kDiverged = "diverged";
constexpr double kInfinite = std::numeric_limits<double>::infinity();

template <typename T>
T number(const std::string& text, const std::string& where) {
  T value{};
  const char* const last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), last, value);
  require<UsageError>(error == std::errc{} && end == last, "{}: '{}' is not a number", where, text);
  return value;
}

auto key_of(const TuneRow& r) { return std::tie(r.model, r.seed, r.settings, r.steps); }

/// The cell that such a row was found in, had this call made it. UsageError when no call with this recipe makes it.
StudyCell cell_of(const TuneRow& row, const CellsRequest& request, int ranks) {
  Recipe recipe = request.base;
  recipe.run.seed = row.seed;
  recipe.run.change.clear();  // this call does not go on with it, so it changes nothing in it
  std::vector<std::string> axes;
  for (std::size_t at = 0; at < row.settings.size();) {
    const std::size_t end = std::min(row.settings.find(' ', at), row.settings.size());
    axes.push_back(row.settings.substr(at, end - at));
    at = end + 1;
  }
  StudyCell cell = tuning_cells(recipe, {row.model}, 1, ranks, parse_tune(axes), request.options).front();
  require<UsageError>(cell.settings == row.settings, "'{}' is not how a tuning writes settings", row.settings);
  return cell;
}

/// Nothing while the cell is not finished.
std::vector<TuneRow> row_of(const StudyCell& cell) {
  if (!cell_is_complete(cell)) return {};
  TuneRow row{cell.model, cell.seed, cell.settings, cell.recipe.total_steps(), 0, 0, 0};
  double full = 0, domains = 0, kept = 0;
  for (const RetentionRow& r : cell_rows(cell)) {
    if (r.selection == kSelections[0]) {
      full += r.loss, ++domains;
    } else {
      kept += r.loss;
      row.experts_kept = r.experts_kept;
    }
  }
  row.loss = full / domains;
  if (row.experts_kept > 0) row.rise = (kept - full) / domains;
  return {row};
}

/// The row as its run tells it. UsageError unless the run is there, and of this recipe (but for its length) and data.
TuneRow confirmed(const TuneRow& old, const CellsRequest& request, const DataIdentity& data, int ranks) {
  const StudyCell now = cell_of(old, request, ranks);
  StudyCell then = now;
  if (then.recipe.total_steps() != old.steps) then.recipe.train.steps = old.steps;
  const RunDirectory run(now.recipe.run.dir);
  require<UsageError>(run.has_checkpoints(), "{} holds no checkpoint that would tell what it was made of",
                      now.recipe.run.dir);
  try {
    check_cell(then, data);
  } catch (const UsageError&) {  // trained further since?
    if (now.recipe.total_steps() <= old.steps) throw;
    check_cell(now, data);
  }
  const std::vector<TuneRow> found = row_of(then);
  if (found.empty() && std::isinf(old.loss)) return old;
  require<UsageError>(!found.empty(), "{} is not finished at step {}", now.recipe.run.dir, old.steps);
  return found.front();
}

/// Those rows of earlier calls that can stand beside this call's; the log names the others.
std::vector<TuneRow> comparable(const std::vector<TuneRow>& rows, Session& session, const CellsRequest& request,
                                const DataIdentity& data) {
  std::vector<TuneRow> kept;
  for (const TuneRow& row : rows) {
    try {
      kept.push_back(confirmed(row, request, data, session.comm().size()));
    } catch (const UsageError& e) {
      session.log().warn("tune.csv leaves out {} of seed {} with {} after {} steps: {}", row.model, row.seed,
                         row.settings, row.steps, e.message());
    }
  }
  return kept;
}

}  // namespace

std::string write_tune(const std::vector<TuneRow>& rows) {
  std::string text = csv_line(kHeader);
  for (const TuneRow& r : rows) {
    const bool part = r.experts_kept > 0;
    text += csv_line({r.model, fmt::format("{}", r.seed), r.settings, fmt::format("{}", r.steps),
                      std::isinf(r.loss) ? kDiverged : fmt::format("{}", r.loss),
                      part ? fmt::format("{}", r.experts_kept) : "", part ? fmt::format("{}", r.rise) : ""});
  }
  return text;
}

std::vector<TuneRow> read_tune(const std::string& text, const std::string& name) {
  std::vector<TuneRow> rows;
  for (const CsvLine& line : read_csv(text, name)) {
    const std::string where = fmt::format("{}:{}", name, line.number);
    if (line.number == 1) {
      require<UsageError>(line.fields == kHeader, "{}: the header is not '{}'", where, fmt::join(kHeader, ","));
      continue;
    }
    require<UsageError>(line.fields.size() == kHeader.size(), "{}: {} fields instead of {}", where, line.fields.size(),
                        kHeader.size());
    const auto& f = line.fields;
    rows.push_back({f[0], number<std::int64_t>(f[1], where), f[2], number<std::int64_t>(f[3], where),
                    f[4] == kDiverged ? kInfinite : number<double>(f[4], where),
                    f[5].empty() ? 0 : number<std::int64_t>(f[5], where),
                    f[6].empty() ? 0 : number<double>(f[6], where)});
  }
  return rows;
}

std::string tune_summary(const std::vector<TuneRow>& rows) {
  struct Mean {
    double loss = 0, rise = 0;
    std::int64_t seeds = 0, kept = 0;
  };
  std::vector<std::string> models;
  std::map<std::string, std::map<std::pair<std::string, std::int64_t>, Mean>> means;
  for (const TuneRow& r : rows) {
    if (std::find(models.begin(), models.end(), r.model) == models.end()) models.push_back(r.model);
    Mean& m = means[r.model][{r.settings, r.steps}];
    m.loss += r.loss, m.rise += r.rise, m.kept = r.experts_kept, ++m.seeds;
  }
  std::string text =
      "Loss on the tuning part, nats a token, mean over domains; its rise with so many experts kept (in brackets)\n";
  for (const std::string& model : models) {
    std::vector<std::pair<std::pair<std::string, std::int64_t>, Mean>> sorted(means[model].begin(), means[model].end());
    const auto loss = [](const auto& entry) { return entry.second.loss / static_cast<double>(entry.second.seeds); };
    std::stable_sort(sorted.begin(), sorted.end(), [&](const auto& a, const auto& b) { return loss(a) < loss(b); });
    text += fmt::format("{}\n", model);
    for (const auto& entry : sorted) {
      const Mean& m = entry.second;
      const std::string rise =
          m.kept > 0 ? fmt::format("{:+.4f} ({})", m.rise / static_cast<double>(m.seeds), m.kept) : std::string("-");
      const std::string mean = std::isinf(m.loss) ? kDiverged : fmt::format("{:.4f}", loss(entry));
      text += fmt::format("  {}  {:>12}  {} steps, {} seed(s): {}\n", mean, rise, entry.first.second, m.seeds,
                          entry.first.first);
    }
  }
  return text + "A study takes a setting over with --set MODEL:KEY=VALUE.\n";
}

TuneOutcome run_tuning(Session& session, const CellsRequest& request) {
  TuneOutcome outcome;
  const fs::path file = fs::path(request.base.run.dir) / "tune.csv";
  std::vector<TuneRow> earlier;  // on rank 0
  const auto begin = [&](const DataIdentity& data) {
    if (!fs::exists(file)) return;
    earlier = comparable(read_tune(read_text(file), file.string()), session, request, data);
  };
  std::vector<TuneRow> diverged;
  CellsRequest cells = request;
  cells.diverged = [&](const StudyCell& cell) {
    diverged.push_back({cell.model, cell.seed, cell.settings, cell.recipe.total_steps(), kInfinite, 0, 0});
  };
  const auto write = [&] {
    outcome.rows.clear();
    for (const StudyCell& cell : request.cells)
      for (TuneRow& row : row_of(cell)) outcome.rows.push_back(std::move(row));
    outcome.rows.insert(outcome.rows.end(), diverged.begin(), diverged.end());
    std::vector<TuneRow> all = earlier;
    std::erase_if(all, [&](const TuneRow& old) {
      return std::any_of(outcome.rows.begin(), outcome.rows.end(),
                         [&](const TuneRow& row) { return key_of(row) == key_of(old); });
    });
    all.insert(all.end(), outcome.rows.begin(), outcome.rows.end());
    if (!all.empty()) write_file_atomically(file, write_tune(all));
  };
  outcome.complete = run_cells(session, cells, begin, write);
  return outcome;
}

}  // namespace emox
