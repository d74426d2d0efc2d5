#include "launch/analysis/modularity/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "runtime/core/error.h"

namespace emox {
namespace {

constexpr std::uint64_t kSeed = 0;  // of the shuffles: the same numbers every time
constexpr std::size_t kMostRows = 14;

ModularityRow row_of(const LayerModularity& m, std::span<const DocumentPicks> documents) {
  const auto interval = [&](const Measured& value, double chance) {
    return Interval{value.value, half_interval(value, documents), chance};
  };
  ModularityRow row;
  for (const Concentration& c : m.concentration) row.concentration.push_back(interval(c.value, c.chance));
  row.topic = interval(m.topic.normalized, m.topic.normalized_chance);
  row.surface = interval(m.surface.normalized, m.surface.normalized_chance);
  row.topic_bits = interval(m.topic.bits, m.topic.chance);
  row.surface_bits = interval(m.surface.bits, m.surface.chance);
  row.topic_possible = m.topic.possible, row.surface_possible = m.surface.possible;
  row.topic_correction = m.topic.correction, row.surface_correction = m.surface.correction;
  return row;
}

nlohmann::ordered_json json_of(double x) {
  return std::isfinite(x) ? nlohmann::ordered_json(x) : nlohmann::ordered_json(nullptr);
}

nlohmann::ordered_json json_of(const Interval& i) {
  return {{"value", json_of(i.value)},
          {"low", json_of(i.value - i.half)},
          {"high", json_of(i.value + i.half)},
          {"chance", json_of(i.chance)}};
}

nlohmann::ordered_json json_of(const Interval& share, const Interval& bits, double possible, double correction) {
  return {{"share_of_possible", json_of(share)},
          {"bits", json_of(bits)},
          {"possible_bits", json_of(possible)},
          {"miller_madow_bits", json_of(correction)}};
}

nlohmann::ordered_json json_of(const ModularityRow& row, const std::vector<std::int64_t>& tops) {
  nlohmann::ordered_json concentration = nlohmann::ordered_json::array();
  for (std::size_t i = 0; i < tops.size(); ++i) {
    nlohmann::ordered_json c = json_of(row.concentration[i]);
    c["experts"] = tops[i], c["share_of_experts"] = kConcentrationShares[i];
    concentration.push_back(std::move(c));
  }
  return {{"concentration", concentration},
          {"topic", json_of(row.topic, row.topic_bits, row.topic_possible, row.topic_correction)},
          {"surface", json_of(row.surface, row.surface_bits, row.surface_possible, row.surface_correction)}};
}

std::string number(double x) { return std::isfinite(x) ? fmt::format("{:.3f}", x) : std::string("-"); }

std::string cell(const Interval& i) {
  return fmt::format(" {:>6}{:>6}{:>6}", number(i.value), std::isfinite(i.value) ? number(i.half) : "",
                     number(i.chance));
}

std::string line(const std::string& label, const ModularityRow& row) {
  std::string text = fmt::format("{:>4}", label);
  for (const Interval& i : row.concentration) text += cell(i);
  return text + cell(row.topic) + cell(row.surface) + "\n";
}

}  // namespace

nlohmann::ordered_json Modularity::to_json() const {
  nlohmann::ordered_json by_layer = nlohmann::ordered_json::array();
  for (const ModularityRow& row : layers) by_layer.push_back(json_of(row, tops));
  return {{"step", step},
          {"documents", documents},
          {"domains", domains},
          {"tokens", tokens},
          {"routed_experts", routed_experts},
          {"routed_top_k", routed_top_k},
          {"eval_pool", eval_pool},
          {"files", files > 0 ? nlohmann::ordered_json(files) : nlohmann::ordered_json(nullptr)},
          {"interval", files > 0 ? "95 %, Student's t, over source files inside domains"
                                 : "95 %, Student's t, over documents inside domains as if each were a file: the "
                                   "corpus does not say which are pieces of one"},
          {"layers", by_layer},
          {"mean", json_of(mean, tops)}};
}

std::string Modularity::to_text() const {
  const std::string pools = eval_pool > 0 ? fmt::format(" in pools of {}", eval_pool) : "";
  std::string text = fmt::format("modularity after step {}: {} documents of {} domains, {} tokens,\n", step, documents,
                                 domains, tokens);
  text += fmt::format("{} picks a token of {} routed experts{}; +- 95 % over {}\n", routed_top_k, routed_experts, pools,
                      files > 0 ? fmt::format("{} files", files) : "documents");
  text += fmt::format("{:<5}{:<37}{}\n     ", "", "a document's picks in its best",
                      "a pick's expert tells, of the possible");
  for (const std::int64_t top : tops) text += fmt::format("{:<19}", fmt::format("{} experts", top));
  text += fmt::format("{:<19}{}\n", "about the topic", "about the token");
  text += "    ";
  for (int i = 0; i < 4; ++i) text += fmt::format(" {:>6}{:>5} {:>6}", "", "+-", "chance");
  text += "\n";
  const std::size_t rows = std::min(layers.size(), kMostRows);
  for (std::size_t i = 0; i < rows; ++i) {
    const std::size_t layer = rows < 2 ? i : i * (layers.size() - 1) / (rows - 1);
    text += line(fmt::format("{}", layer), layers[layer]);
  }
  text += line("mean", mean);
  text += fmt::format("bits: {:.3f} of {:.3f} on topic, {:.3f} of {:.3f} on token{}\n", mean.topic_bits.value,
                      mean.topic_possible, mean.surface_bits.value, mean.surface_possible,
                      rows < layers.size() ? fmt::format("; {} of {} layers", rows, layers.size()) : "");
  if (files == 0) text += "the corpus does not name files: pieces of one count as independent\n";
  return text + "chance: picks dealt at random; domains, tokens of a document exchanged\n";
}

HeldOutRouting::HeldOutRouting(LanguageModel& model, const std::vector<HeldOut>& held_out)
    : model_(&model), record_(model.config().layers) {
  require<UsageError>(model.experts() != nullptr, "--modularity: a dense model has no experts to measure");
  for (std::size_t s = 0; s < held_out.size(); ++s) {
    first_.push_back(domains_.size());
    domains_.insert(domains_.end(), held_out[s].documents.size(), static_cast<std::int32_t>(s));
    for (std::size_t d = 0; d < held_out[s].documents.size(); ++d)
      files_.push_back(held_out[s].files.empty() ? kOwnFile : held_out[s].files[d]);
  }
  model.observe_routing(
      [this](Context& ctx, std::int64_t layer, TensorView ids, const DocumentPools&) { record_.add(ctx, layer, ids); });
}

HeldOutRouting::~HeldOutRouting() { model_->observe_routing({}); }

PassObserver HeldOutRouting::observer() {
  return [this](std::span<const ScoredWindow> windows) {
    std::vector<RoutedToken> tokens;
    for (const ScoredWindow& w : windows)
      for (const std::int32_t token : w.tokens)
        tokens.push_back({static_cast<std::int32_t>(first_[w.domain] + w.document), token});
    record_.expect(std::move(tokens));
  };
}

Modularity HeldOutRouting::measure(Communicator& comm, std::int64_t step) const {
  const ModelConfig& config = model_->config();
  Modularity result;
  std::vector<LayerModularity> layers;
  std::vector<DocumentPicks> documents;
  for (std::int64_t l = 0; l < config.layers; ++l) {  // one at a time: the counts of all layers may be large
    documents = record_.gather(comm, l, domains_);
    if (comm.rank() != 0) continue;
    for (std::size_t d = 0; d < documents.size(); ++d) documents[d].file = files_[d];
    layers.push_back(measure_layer(documents, config.routed_experts(), kConcentrationShares, kSeed));
    result.layers.push_back(row_of(layers.back(), documents));
  }
  if (comm.rank() != 0) return result;
  const LayerModularity mean = mean_over_layers(layers);
  result.mean = row_of(mean, documents);
  for (const Concentration& c : mean.concentration) result.tops.push_back(c.top);
  std::set<std::pair<std::int32_t, std::int64_t>> files;
  for (std::size_t d = 0; d < files_.size(); ++d) files.emplace(domains_[d], files_[d]);
  const bool named = std::find(files_.begin(), files_.end(), kOwnFile) == files_.end();
  result.files = named ? static_cast<std::int64_t>(files.size()) : 0;
  std::int64_t picks = 0;
  for (const DocumentPicks& d : documents)
    for (const PickCount& p : d.picks) picks += p.count;
  result.step = step, result.documents = static_cast<std::int64_t>(documents.size());
  result.domains = static_cast<std::int64_t>(first_.size());
  result.routed_experts = config.routed_experts(), result.routed_top_k = config.routed_top_k();
  result.tokens = picks / result.routed_top_k;
  result.eval_pool = config.eval_pool;
  return result;
}

}  // namespace emox
