#include "launch/analysis/study/cell_retention.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "data/format/atomic_file.h"
#include "launch/analysis/inference/held_out_losses.h"
#include "launch/analysis/report/training.h"
#include "launch/run/run_directory.h"
#include "parallel/checkpoint/layout.h"
#include "runtime/core/error.h"
#include "runtime/telemetry/json_text.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kDocuments = 32;  ///< of a domain, that choose its experts
constexpr const char* kRandom = "random";

struct Choice {
  const char* name;  ///< in kSelections
  SelectionMethod method;
  std::int64_t examples;
  std::int64_t draws;
};

std::vector<Choice> choices_of(const StudyCell& cell) {
  std::vector<Choice> choices{{"layerwise", SelectionMethod::Layerwise, kDocuments, 1}};
  if (!cell.plan.every_selection) return choices;
  choices.push_back({"one-document", SelectionMethod::Layerwise, 1, 1});
  choices.push_back({kRandom, SelectionMethod::Random, 1, cell.plan.chance_draws});
  return choices;
}

/// One for each length of the run: a cell that is trained further must not take over what its younger model lost.
fs::path file_of(const StudyCell& cell, const char* kind) {
  return fs::path(cell.recipe.run.dir) / fmt::format("{}-{}.csv", kind, step_directory_name(cell.recipe.total_steps()));
}

std::optional<std::string> text_of(const fs::path& file) {
  if (!fs::exists(file)) return std::nullopt;
  std::ifstream in(file, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  require<IoError>(!in.bad() && in.is_open(), "cannot read {}", file.string());
  return text;
}

std::vector<RetentionRow> kept_rows(const StudyCell& cell) {
  const fs::path file = file_of(cell, "retention");
  const auto text = text_of(file);
  return text ? read_retention(*text, file.string()) : std::vector<RetentionRow>{};
}

/// The label as eval.jsonl holds it: bytes that are no UTF-8 are escaped there.
std::string written_label(const std::string& label) {
  return nlohmann::json::parse(json_text(nlohmann::json(label))).get<std::string>();
}

/// The loss of the final evaluation, by domain, in the order of the recipe; JSON has lost it.
std::vector<std::pair<std::string, double>> full_losses(const StudyCell& cell) {
  const RunDirectory run(cell.recipe.run.dir);
  const auto record = run.evaluation_after(cell.recipe.total_steps());
  std::vector<std::pair<std::string, double>> losses;
  if (!record) return losses;
  for (const std::string& source : cell.recipe.data.source) {
    const std::string label = SourceSpec::parse(source).label;
    const nlohmann::json domains = record->value("domains", nlohmann::json::object());
    const auto domain = domains.find(written_label(label));
    require<IoError>(domain != domains.end() && domain->is_object(), "{} holds no loss of {} after step {}",
                     run.evaluations().string(), label, cell.recipe.total_steps());
    const auto loss = domain->find("loss");
    if (domain->value("tokens", 0) > 0 && loss != domain->end() && loss->is_number())
      losses.emplace_back(label, loss->get<double>());
  }
  return losses;
}

/// Whether rows of the domain are there for every selection and number of experts.
bool has_domain(const StudyCell& cell, const std::string& domain, const std::vector<RetentionRow>& rows,
                const std::vector<ChanceRow>& chance) {
  std::map<std::pair<std::string, std::int64_t>, bool> found;
  for (const RetentionRow& r : rows)
    if (r.domain == domain) found[{r.selection, r.experts_kept}] = true;
  std::map<std::int64_t, std::int64_t> draws;
  for (const ChanceRow& r : chance)
    if (r.domain == domain) ++draws[r.experts_kept];
  for (const Choice& choice : choices_of(cell))
    for (const std::int64_t keep : cell.plan.keep)
      if (!found[{choice.name, keep}] || (choice.method == SelectionMethod::Random && draws[keep] < choice.draws))
        return false;
  return true;
}

std::vector<std::string> domains_left(const StudyCell& cell) {
  const auto rows = kept_rows(cell);
  const auto chance = cell_chance(cell);
  std::vector<std::string> left;
  for (const auto& [domain, loss] : full_losses(cell))
    if (!has_domain(cell, domain, rows, chance)) left.push_back(domain);
  return left;
}

/// What rank 0 sees: files of other nodes may be behind.
std::vector<std::string> domains_left(Session& session, const StudyCell& cell) {
  const std::vector<std::string>& sources = cell.recipe.data.source;
  std::vector<std::int64_t> left(sources.size(), 0);
  on_root(session, [&] {
    const auto seen = domains_left(cell);
    for (std::size_t d = 0; d < sources.size(); ++d)
      left[d] = std::find(seen.begin(), seen.end(), SourceSpec::parse(sources[d]).label) != seen.end() ? 1 : 0;
  });
  session.comm().broadcast(TensorView(left.data(), DType::I64, {static_cast<std::int64_t>(left.size())}), 0);
  std::vector<std::string> names;
  for (std::size_t d = 0; d < sources.size(); ++d)
    if (left[d] != 0) names.push_back(SourceSpec::parse(sources[d]).label);
  return names;
}

struct DomainRows {
  std::vector<RetentionRow> rows;
  std::vector<ChanceRow> chance;
};

DomainRows rows_of_domain(Session& session, const StudyCell& cell, const std::string& domain, LoadedModel& loaded,
                          HeldOutLosses& losses) {
  DomainRows found;
  const std::int64_t experts = cell.recipe.model.num_experts;
  for (const Choice& choice : choices_of(cell))
    for (const std::int64_t keep : cell.plan.keep) {
      double mean = 0;
      for (std::int64_t draw = 0; draw < choice.draws; ++draw) {
        const SelectionOptions options{choice.method,
                                       {keep},
                                       choice.examples,
                                       static_cast<std::uint64_t>(cell.seed),
                                       static_cast<std::uint32_t>(draw)};
        const ExpertSubset subset = loaded.select_for_domain(session, loaded.source(domain), options);
        const DomainLoss d = losses.with(subset, choice.name, domain).domains.front();
        require<IoError>(d.tokens > 0, "{} has no held-out token any more, and had some after the training", domain);
        const double loss = d.nats / static_cast<double>(d.tokens);
        mean += loss / static_cast<double>(choice.draws);
        if (choice.method == SelectionMethod::Random)
          found.chance.push_back({cell.model, cell.seed, domain, keep, experts, draw, loss});
      }
      found.rows.push_back({cell.model, cell.seed, domain, choice.name, keep, experts, mean});
    }
  return found;
}

/// The rows of other domains and these, in the order of the recipe, whatever was interrupted.
template <typename Row>
std::vector<Row> with_domain(std::vector<Row> all, const std::vector<Row>& rows, const StudyCell& cell,
                             const std::string& domain) {
  std::erase_if(all, [&](const Row& r) { return r.domain == domain; });  // an incomplete one
  all.insert(all.end(), rows.begin(), rows.end());
  std::vector<std::string> order;
  for (const std::string& source : cell.recipe.data.source) order.push_back(SourceSpec::parse(source).label);
  std::stable_sort(all.begin(), all.end(), [&](const Row& a, const Row& b) {
    return std::find(order.begin(), order.end(), a.domain) < std::find(order.begin(), order.end(), b.domain);
  });
  return all;
}

}  // namespace

std::vector<RetentionRow> cell_rows(const StudyCell& cell) {
  std::vector<RetentionRow> rows;
  const std::int64_t experts = std::max<std::int64_t>(cell.recipe.model.num_experts, 1);
  for (const auto& [domain, loss] : full_losses(cell))
    rows.push_back({cell.model, cell.seed, domain, kSelections[0], experts, experts, loss});
  if (rows.empty()) return rows;
  for (RetentionRow& row : kept_rows(cell)) {
    const auto& keep = cell.plan.keep;
    if (std::find(keep.begin(), keep.end(), row.experts_kept) != keep.end()) rows.push_back(std::move(row));
  }
  return rows;
}

std::vector<ChanceRow> cell_chance(const StudyCell& cell) {
  const fs::path file = file_of(cell, "chance");
  const auto text = text_of(file);
  return text ? read_chance(*text, file.string()) : std::vector<ChanceRow>{};
}

std::vector<std::pair<std::int64_t, double>> cell_training(const StudyCell& cell) {
  const auto text = text_of(RunDirectory(cell.recipe.run.dir).metrics());
  return text ? training_losses(*text) : std::vector<std::pair<std::int64_t, double>>{};
}

bool cell_is_complete(const StudyCell& cell) { return !cell_rows(cell).empty() && domains_left(cell).empty(); }

bool measure_retention(Session& session, const StudyCell& cell, const std::function<bool()>& go_on) {
  const std::vector<std::string> left = domains_left(session, cell);
  if (left.empty()) return true;
  LoadedModel loaded(session, cell.recipe.run.dir, {});
  if (loaded.manifest.step != cell.recipe.total_steps()) return false;
  HeldOutLosses losses(session, loaded);
  for (std::size_t d = 0; d < left.size(); ++d) {
    if (!go_on()) return true;
    session.log().info("{}: keeping a part of the experts, domain {} of {}, {}", cell.recipe.run.name, d + 1,
                       left.size(), left[d]);
    const DomainRows found = rows_of_domain(session, cell, left[d], loaded, losses);
    on_root(session, [&] {  // the draws first: a domain is complete by its rows and them
      if (!found.chance.empty())
        write_file_atomically(file_of(cell, "chance"),
                              write_chance(with_domain(cell_chance(cell), found.chance, cell, left[d])));
      write_file_atomically(file_of(cell, "retention"),
                            write_retention(with_domain(kept_rows(cell), found.rows, cell, left[d])));
    });
  }
  return true;
}

}  // namespace emox
