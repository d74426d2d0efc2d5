#include "launch/study/cell_retention.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "data/format/atomic_file.h"
#include "launch/inference/held_out_losses.h"
#include "launch/train/run_directory.h"
#include "parallel/checkpoint/layout.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kDocuments = 32;  ///< of a domain, that choose its experts

struct Choice {
  const char* name;  ///< in kSelections
  SelectionMethod method;
  std::int64_t examples;
};
constexpr Choice kChoices[] = {{"layerwise", SelectionMethod::Layerwise, kDocuments},
                               {"one-document", SelectionMethod::Layerwise, 1},
                               {"random", SelectionMethod::Random, 1}};

/// One for each length of the run: a cell that is trained further must not take over what its younger model lost.
fs::path kept_file(const StudyCell& cell) {
  return fs::path(cell.recipe.run.dir) /
         fmt::format("retention-{}.csv", step_directory_name(cell.recipe.total_steps()));
}

std::vector<std::string> domains_of(const StudyCell& cell) {  // the order of the recipe; JSON has lost it
  std::vector<std::string> labels;
  for (const std::string& source : cell.recipe.data.source) labels.push_back(SourceSpec::parse(source).label);
  return labels;
}

std::vector<RetentionRow> kept_rows(const StudyCell& cell) {
  const fs::path file = kept_file(cell);
  if (!fs::exists(file)) return {};
  std::ifstream in(file, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  require<IoError>(!in.bad() && in.is_open(), "cannot read {}", file.string());
  return read_retention(text, file.string());
}

/// Whether rows of the domain are there for every selection and number of experts.
bool has_domain(const std::vector<RetentionRow>& rows, const StudyCell& cell, const std::string& domain) {
  std::set<std::pair<std::string, std::int64_t>> found;
  for (const RetentionRow& r : rows)
    if (r.domain == domain) found.emplace(r.selection, r.experts_kept);
  for (const Choice& choice : kChoices)
    for (const std::int64_t keep : kept_numbers(cell.recipe.model))
      if (!found.contains({choice.name, keep})) return false;
  return true;
}

std::vector<std::string> domains_left(const StudyCell& cell) {
  const auto rows = kept_rows(cell);
  std::vector<std::string> left = domains_of(cell);
  std::erase_if(left, [&](const std::string& domain) { return has_domain(rows, cell, domain); });
  return left;
}

/// What rank 0 sees: files of other nodes may be behind.
std::vector<std::string> domains_left(Session& session, const StudyCell& cell) {
  const std::vector<std::string> domains = domains_of(cell);
  std::vector<std::int64_t> left(domains.size(), 0);
  on_root(session, [&] {
    const auto seen = domains_left(cell);
    for (std::size_t d = 0; d < domains.size(); ++d)
      left[d] = std::find(seen.begin(), seen.end(), domains[d]) != seen.end() ? 1 : 0;
  });
  session.comm().broadcast(TensorView(left.data(), DType::I64, {static_cast<std::int64_t>(left.size())}), 0);
  std::vector<std::string> names;
  for (std::size_t d = 0; d < domains.size(); ++d)
    if (left[d] != 0) names.push_back(domains[d]);
  return names;
}

std::vector<RetentionRow> rows_of_domain(Session& session, const StudyCell& cell, const std::string& domain,
                                         LoadedModel& loaded, HeldOutLosses& losses) {
  std::vector<RetentionRow> rows;
  for (const Choice& choice : kChoices)
    for (const std::int64_t keep : kept_numbers(cell.recipe.model)) {
      const SelectionOptions options{choice.method, {keep}, choice.examples, static_cast<std::uint64_t>(cell.seed)};
      const ExpertSubset subset = loaded.select_for_domain(session, loaded.source(domain), options);
      const Evaluation e = losses.with(subset, choice.name, domain);
      rows.push_back(
          {cell.model, cell.seed, domain, choice.name, keep, cell.recipe.model.num_experts, e.domains.front().loss()});
    }
  return rows;
}

}  // namespace

std::vector<std::int64_t> kept_numbers(const ModelConfig& model) {
  std::vector<std::int64_t> numbers;
  for (const std::int64_t parts : {2, 4, 8}) {
    const std::int64_t keep = std::max((2 * model.num_experts + parts) / (2 * parts), model.shared_experts + 1);
    if (keep < (numbers.empty() ? model.num_experts : numbers.back())) numbers.push_back(keep);
  }
  return numbers;
}

std::vector<RetentionRow> cell_rows(const StudyCell& cell) {
  const auto record = RunDirectory(cell.recipe.run.dir).evaluation_after(cell.recipe.total_steps());
  if (!record) return {};
  std::vector<RetentionRow> rows;
  const std::int64_t experts = cell.recipe.model.num_experts;
  for (const std::string& domain : domains_of(cell))
    rows.push_back({cell.model, cell.seed, domain, kSelections[0], experts, experts,
                    record->at("domains").at(domain).at("loss").get<double>()});
  const auto kept = kept_rows(cell);
  rows.insert(rows.end(), kept.begin(), kept.end());
  return rows;
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
    const auto rows = rows_of_domain(session, cell, left[d], loaded, losses);
    on_root(session, [&] {
      auto all = kept_rows(cell);
      std::erase_if(all, [&](const RetentionRow& r) { return r.domain == left[d]; });  // an incomplete domain
      all.insert(all.end(), rows.begin(), rows.end());
      const std::vector<std::string> domains = domains_of(cell);  // their order, whatever was interrupted
      std::stable_sort(all.begin(), all.end(), [&](const RetentionRow& a, const RetentionRow& b) {
        return std::find(domains.begin(), domains.end(), a.domain) <
               std::find(domains.begin(), domains.end(), b.domain);
      });
      write_file_atomically(kept_file(cell), write_retention(all));
    });
  }
  return true;
}

}  // namespace emox
