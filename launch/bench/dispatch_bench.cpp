#include "launch/bench/dispatch_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "parallel/expert/placement_optimiser.h"
#include "parallel/expert/pool_trace.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/rng/philox.h"

namespace emox {
namespace {

using nlohmann::ordered_json;

constexpr std::int64_t kExperts = 128, kTopK = 8;

struct PoolKind {
  const char* name;
  std::int64_t low, high;
};
constexpr PoolKind kPools[] = {
    {"", kExperts, kExperts}, {"16", 16, 16}, {"32", 32, 32}, {"64", 64, 64}, {"8-128", 8, 128}};

/// Draws for one document, one number after another.
class Draws {
 public:
  Draws(const Philox& philox, std::uint32_t a, std::uint32_t b) : philox_(philox), a_(a), b_(b) {}
  std::int64_t below(std::int64_t n) { return philox_.uniform_int(0, n - 1, {a_, b_, next_++, 0}); }

 private:
  const Philox& philox_;
  std::uint32_t a_, b_, next_ = 0;
};

/// The first `count` entries of `v` become a uniform choice of that many, in random order.
void choose(std::vector<std::int32_t>& v, std::int64_t count, Draws& draws) {
  const auto n = static_cast<std::int64_t>(v.size());
  for (std::int64_t i = 0; i < count; ++i) std::swap(v[idx(i)], v[idx(i + draws.below(n - i))]);
}

/// Consecutive experts from a rank's first one, on as few nodes as can be: perfect clustering under block placement.
std::int64_t clustered_start(std::int64_t size, const PlannedMesh& mesh, Draws& draws) {
  const std::int64_t on_rank = kExperts / mesh.expert_parallel,
                     on_node = std::min<std::int64_t>(kExperts, on_rank * mesh.ranks_per_node);
  const std::int64_t node = draws.below(kExperts / on_node);
  const std::int64_t room = size <= on_node ? (on_node - size) / on_rank : 0;
  return node * on_node + draws.below(room + 1) * on_rank;
}

/// Tokens of all ranks, and what the formulas say for them: document by document for clustered pools, by (2) for random
/// ones.
struct Documents {
  std::vector<PlannedTokens> ranks;
  double expected_ranks = 0, expected_nodes = 0, expected_document_ranks = 0;
};

std::vector<std::int64_t> shares(std::span<const std::int32_t> experts, std::span<const std::int32_t> rank_of,
                                 const PlannedMesh& mesh, int ranks_a_part) {
  std::vector<std::int64_t> experts_of_rank(idx((mesh.expert_parallel + ranks_a_part - 1) / ranks_a_part), 0);
  for (const std::int32_t e : experts) ++experts_of_rank[idx(rank_of[idx(e)] / ranks_a_part)];
  return experts_of_rank;
}

Documents make_documents(const PlannedMesh& mesh, const PoolKind& pool, bool clustered,
                         std::span<const std::int32_t> rank_of, const DispatchBenchOptions& o) {
  const Philox philox(o.seed, RngPurpose::Test);
  const int ranks = mesh.expert_parallel * mesh.data_parallel;
  Documents d;
  d.ranks.resize(idx(ranks));
  const std::int64_t documents = std::max<std::int64_t>(o.documents, ranks);
  std::vector<std::int32_t> all(idx(kExperts));
  std::iota(all.begin(), all.end(), 0);
  // Formulas (2) and (3): random pools under any placement visit what unrestricted picks do. (5): a whole document.
  const auto even_ranks = shares(all, rank_of, mesh, 1), even_nodes = shares(all, rank_of, mesh, mesh.ranks_per_node);
  for (std::int64_t doc = 0; doc < documents; ++doc) {
    Draws draws(philox, static_cast<std::uint32_t>(doc), static_cast<std::uint32_t>(mesh.expert_parallel));
    const std::int64_t size = pool.low + draws.below(pool.high - pool.low + 1);
    std::vector<std::int32_t> members = all;
    if (clustered)
      std::rotate(members.begin(), members.begin() + clustered_start(size, mesh, draws), members.end());
    else
      choose(members, size, draws);
    members.resize(idx(size));
    const auto held_ranks = clustered ? shares(members, rank_of, mesh, 1) : even_ranks;
    d.expected_ranks += expected_ranks(held_ranks, kTopK);
    d.expected_nodes +=
        expected_ranks(clustered ? shares(members, rank_of, mesh, mesh.ranks_per_node) : even_nodes, kTopK);
    d.expected_document_ranks +=
        clustered
            ? static_cast<double>(std::count_if(held_ranks.begin(), held_ranks.end(), [](auto a) { return a > 0; }))
            : expected_ranks(even_ranks, size);
    PlannedTokens& t = d.ranks[idx(doc % ranks)];
    t.segments.push_back(t.segments.back() + static_cast<std::int32_t>(o.tokens_per_document));
    if (*pool.name != '\0') {
      std::vector<std::uint8_t> mask(idx(kExperts), 0);
      for (const std::int32_t e : members) mask[idx(e)] = 1;
      t.pools.insert(t.pools.end(), mask.begin(), mask.end());
    }
    for (std::int64_t i = 0; i < o.tokens_per_document; ++i) {
      choose(members, kTopK, draws);
      t.ids.insert(t.ids.end(), members.begin(), members.begin() + kTopK);
    }
  }
  for (double* sum : {&d.expected_ranks, &d.expected_nodes, &d.expected_document_ranks})
    *sum /= static_cast<double>(documents);
  return d;
}

ordered_json row_of(const PlannedMesh& mesh, std::int64_t experts, std::int64_t top_k, const ordered_json& pool,
                    const std::string& placement, const DispatchTraffic& t) {
  return {{"expert_parallel", mesh.expert_parallel},
          {"data_parallel", mesh.data_parallel},
          {"ranks_per_node", mesh.ranks_per_node},
          {"experts", experts},
          {"top_k", top_k},
          {"pool", pool},
          {"placement", placement},
          {"ranks_per_token", t.ranks_per_token},
          {"nodes_per_token", t.nodes_per_token},
          {"rows_sent_per_token", t.rows_sent_per_token},
          {"node_rows_sent_per_token", t.node_rows_sent_per_token},
          {"ranks_per_document", t.ranks_per_document},
          {"rows_max_over_mean", t.rows_max_over_mean},
          {"bytes", t.bytes_per_token},
          {"plan_ns_per_row", t.plan_ns_per_row},
          {"tokens", t.tokens},
          {"documents", t.documents}};
}

ordered_json pool_json(const PoolKind& pool) {
  if (*pool.name == '\0') return nullptr;
  return pool.low == pool.high ? ordered_json(pool.low) : ordered_json(pool.name);
}

// Planning time a row for more and more ranks: as many tokens on each, pools of 32, random placement.
ordered_json planning_rows(const DispatchBenchOptions& o) {
  auto rows = ordered_json::array();
  for (const int ranks : {4, 16, 64, 256, 1024}) {
    const PlannedMesh mesh{std::min(ranks, 64), ranks / std::min(ranks, 64), 8};
    DispatchBenchOptions each = o;
    each.documents = 16L * ranks;
    const auto placement = ExpertPlacement::random(1, kExperts, mesh.expert_parallel, o.seed);
    const Documents d = make_documents(mesh, kPools[2], false, placement.of_layer(0), each);
    double best = 1e300;
    for (int i = 0; i < 3; ++i)
      best = std::min(best, plan_traffic(mesh, placement.of_layer(0), d.ranks, kTopK, o.width).plan_ns_per_row);
    rows.push_back({{"ranks", ranks},
                    {"expert_parallel", mesh.expert_parallel},
                    {"data_parallel", mesh.data_parallel},
                    {"plan_ns_per_row", best}});
  }
  return rows;
}

/// Of every `stride`-th document of the recording.
DocumentProfiles profiles_of(const std::filesystem::path& recording, std::int64_t stride) {
  RecordedRun run(recording);
  DocumentProfiles p;
  p.layers = run.header().layers, p.experts = run.header().experts;
  RecordedMicroBatch micro;
  std::int64_t document = 0;
  while (run.next(micro))
    for (std::size_t d = 0; d + 1 < micro.front().segments.size(); ++d, ++document)
      if (document % stride == 0) add_document(p, micro, static_cast<std::int64_t>(d), 1);
  return p;
}

}  // namespace

ordered_json bench_dispatch(const DispatchBenchOptions& o) {
  std::vector<PlannedMesh> meshes = o.meshes;
  if (meshes.empty())
    for (const int ep : {2, 4, 8, 16, 32, 64}) meshes.push_back({ep, 1, 8});
  auto rows = ordered_json::array();
  for (const PlannedMesh& mesh : meshes) {
    require<UsageError>(mesh.expert_parallel >= 1 && kExperts % mesh.expert_parallel == 0,
                        "emox bench dispatch: --expert-parallel = {} does not divide the {} experts of the synthetic "
                        "documents; use a power of two up to {}, or --replay FILE",
                        mesh.expert_parallel, kExperts, kExperts);
    for (const PoolKind& pool : kPools)
      for (const bool clustered : {false, true}) {
        if (clustered && *pool.name == '\0') continue;  // no pool, nothing to cluster
        const auto placement = clustered ? ExpertPlacement::block(1, kExperts, mesh.expert_parallel)
                                         : ExpertPlacement::random(1, kExperts, mesh.expert_parallel, o.seed);
        const Documents d = make_documents(mesh, pool, clustered, placement.of_layer(0), o);
        ordered_json row = row_of(mesh, kExperts, kTopK, pool_json(pool), clustered ? "clustered" : "random",
                                  plan_traffic(mesh, placement.of_layer(0), d.ranks, kTopK, o.width));
        row["formula_ranks_per_token"] = d.expected_ranks;
        row["formula_nodes_per_token"] = d.expected_nodes;
        row["formula_ranks_per_document"] = d.expected_document_ranks;
        rows.push_back(std::move(row));
      }
  }
  return {{"rows", rows}, {"planning", planning_rows(o)}};
}

ordered_json replay_dispatch(const std::filesystem::path& recording, const PlannedMesh& mesh,
                             const ReplayOptions& options) {
  PoolTraceHeader header;
  std::map<std::uint32_t, std::vector<PoolRecord>> layers;
  const auto files = pool_trace_files(recording);
  for (const auto& file : files) {
    PoolTraceReader reader(file);
    require<UsageError>(file == files.front() || reader.header() == header, "{} and {} are of different models",
                        files.front().string(), file.string());
    header = reader.header();
    while (auto record = reader.next()) layers[record->layer].push_back(std::move(*record));
  }
  require<UsageError>(layers.size() == header.layers, "the recording {} holds {} of {} layers", recording.string(),
                      layers.size(), header.layers);
  const std::int64_t experts = header.experts, k = header.top_k;
  const int ep = mesh.expert_parallel, ranks = ep * mesh.data_parallel;
  require<UsageError>(ep >= 1 && ep <= experts,
                      "--expert-parallel = {}: the recording has {} routed experts, at least one a rank is needed", ep,
                      experts);
  const std::string& placement_name = options.placement;
  const ExpertPlacement placement =
      placement_name == "block"    ? ExpertPlacement::block(header.layers, experts, ep)
      : placement_name == "random" ? ExpertPlacement::random(header.layers, experts, ep, options.placement_seed)
      : placement_name == "affinity"
          ? choose_placement(profiles_of(recording, 2),
                             {.ranks = ep, .ranks_per_node = mesh.ranks_per_node, .load_limit = options.load_limit})
                .placement
          : ExpertPlacement::from_file(placement_name, header.layers, experts, ep);
  auto rows = ordered_json::array();
  ordered_json mean;
  for (const auto& [layer, records] : layers) {
    std::vector<std::pair<const PoolRecord*, std::size_t>> documents;
    for (const PoolRecord& r : records)
      for (std::size_t d = 0; d + 1 < r.segments.size(); ++d) documents.emplace_back(&r, d);
    require<UsageError>(!documents.empty(), "the recording {} holds no documents", recording.string());
    std::vector<PlannedTokens> tokens(idx(ranks));
    const std::size_t dealt = std::max(documents.size(), tokens.size());
    for (std::size_t i = 0; i < dealt; ++i) {
      const auto& [record, doc] = documents[i % documents.size()];
      PlannedTokens& t = tokens[i % tokens.size()];
      const std::int64_t begin = record->segments[doc], end = record->segments[doc + 1];
      t.segments.push_back(t.segments.back() + static_cast<std::int32_t>(end - begin));
      const auto mask = record->pools.begin() + static_cast<std::int64_t>(doc) * experts;
      t.pools.insert(t.pools.end(), mask, mask + experts);
      t.ids.insert(t.ids.end(), record->ids.begin() + begin * k, record->ids.begin() + end * k);
    }
    ordered_json row = row_of(mesh, experts, k, "recorded", placement_name,
                              plan_traffic(mesh, placement.of_layer(layer), tokens, k, options.width));
    row["layer"] = layer;
    row["documents_reused"] = documents.size() < tokens.size();
    if (mean.is_null())
      mean = row;
    else
      for (auto& [key, value] : mean.items())
        if (value.is_number_float()) value = value.get<double>() + row[key].get<double>();
    rows.push_back(std::move(row));
  }
  for (auto& [key, value] : mean.items())
    if (value.is_number_float()) value = value.get<double>() / static_cast<double>(layers.size());
  mean["layer"] = nullptr;
  return {{"rows", rows}, {"mean", mean}};
}

std::string dispatch_table(const ordered_json& result) {
  const bool formulas = result.contains("planning");
  std::string text =
      fmt::format("{:>4} {:>5} {:>8} {:<10} {:>11} {:>11} {:>9} {:>9} {:>9} {:>9}\n", "EP", "layer", "pool",
                  "placement", "ranks/token", "nodes/token", "ranks/doc", "rows sent", "max/mean", "MiB/Mtok");
  const auto with_formula = [&](const ordered_json& r, const char* key) {
    const std::string formula = fmt::format("formula_{}", key);
    return r.contains(formula) ? fmt::format("{:.2f} ({:.2f})", r[key].get<double>(), r[formula].get<double>())
                               : fmt::format("{:.2f}", r[key].get<double>());
  };
  const auto line = [&](const ordered_json& r, const std::string& layer) {
    text += fmt::format(
        "{:>4} {:>5} {:>8} {:<10} {:>11} {:>11} {:>9} {:>9.3f} {:>9.2f} {:>9.0f}\n", r["expert_parallel"].get<int>(),
        layer,
        r["pool"].is_null()     ? "-"
        : r["pool"].is_string() ? r["pool"].get<std::string>()
                                : std::to_string(r["pool"].get<int>()),
        r["placement"].get<std::string>(), with_formula(r, "ranks_per_token"), with_formula(r, "nodes_per_token"),
        fmt::format("{:.2f}", r["ranks_per_document"].get<double>()), r["rows_sent_per_token"].get<double>(),
        r["rows_max_over_mean"].get<double>(), r["bytes"].get<double>() * 1e6 / 1048576);
  };
  for (const auto& r : result["rows"])
    line(r, r.contains("layer") ? std::to_string(r["layer"].get<int>()) : std::string("-"));
  if (result.contains("mean")) line(result["mean"], "mean");
  if (formulas) {
    text += "In brackets: what the formulas say for uniform picks.\nPlanning:";
    for (const auto& p : result["planning"])
      text += fmt::format("  {} ranks {:.1f} ns/row", p["ranks"].get<int>(), p["plan_ns_per_row"].get<double>());
    text += "\n";
  }
  return text;
}

}  // namespace emox
