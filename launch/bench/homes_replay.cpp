#include "launch/bench/homes_replay.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "parallel/expert/learned_homes.h"
#include "parallel/expert/placement_optimiser.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

using nlohmann::ordered_json;

/// What one sequence asks of a placement, over all layers.
struct Demand {
  std::vector<double> ranks, nodes;  ///< [ranks], [nodes]: (token, layer)s with a pick there
  std::vector<double> picks;         ///< [layers, ranks]
  std::vector<double> all_picks;     ///< [ranks]
};

Demand demand_of(const ExpertPlacement& placement, int a_node, const RecordedMicroBatch& m, std::int64_t begin,
                 std::int64_t end, std::int64_t k) {
  const auto ranks = idx(placement.ranks());
  Demand d;
  d.ranks.assign(ranks, 0), d.all_picks.assign(ranks, 0);
  d.nodes.assign((ranks - 1) / idx(a_node) + 1, 0);
  d.picks.assign(m.size() * ranks, 0);
  std::vector<std::int64_t> rank_seen(ranks, -1), node_seen(d.nodes.size(), -1);
  for (std::size_t l = 0; l < m.size(); ++l) {
    const auto rank_of = placement.of_layer(static_cast<std::int64_t>(l));
    std::fill(rank_seen.begin(), rank_seen.end(), -1), std::fill(node_seen.begin(), node_seen.end(), -1);
    for (std::int64_t i = begin * k; i < end * k; ++i) {
      const auto r = idx(rank_of[idx(m[l].ids[idx(i)])]);
      ++d.picks[l * ranks + r], ++d.all_picks[r];
      if (std::exchange(rank_seen[r], i / k) == i / k) continue;
      ++d.ranks[r];
      if (std::exchange(node_seen[r / idx(a_node)], i / k) != i / k) ++d.nodes[r / idx(a_node)];
    }
  }
  return d;
}

/// Sums over the measured micro-batches for one way to place and to send home.
class Traffic {
 public:
  Traffic(const PlannedMesh& mesh, std::int64_t layers) : mesh_(mesh), layers_(idx(layers)) {
    whole_.assign(layers_ * idx(mesh.expert_parallel), 0);
  }
  void add(const std::vector<Demand>& sequences, const HomePlan& plan, std::int64_t tokens) {
    const auto ranks = idx(mesh_.expert_parallel), a_node = idx(mesh_.ranks_per_node);
    std::vector<double> load(idx(mesh_.data_parallel) * layers_ * ranks, 0);
    for (std::size_t s = 0; s < sequences.size(); ++s) {
      const Demand& d = sequences[s];
      const auto home = idx(plan.rank[s]), node = home / a_node;
      for (std::size_t r = 0; r < ranks; ++r) {
        visits_ += d.ranks[r];
        if (r != home) (r / a_node == node ? within_ : between_) += d.ranks[r];
        if (r != home) remote_picks_ += d.all_picks[r];
      }
      for (std::size_t n = 0; n < d.nodes.size(); ++n) {
        node_visits_ += d.nodes[n];
        if (n != node) node_rows_ += d.nodes[n];
      }
      tokens_ += static_cast<double>(tokens) * static_cast<double>(layers_);
      for (std::size_t x = 0; x < d.picks.size(); ++x) {
        load[idx(plan.cell[s]) * layers_ * ranks + x] += d.picks[x];
        whole_[x] += d.picks[x];
      }
    }
    for (std::size_t at = 0; at < load.size(); at += ranks) {
      const double fullest = max_over_mean(std::span(load).subspan(at, ranks));
      load_ += fullest, ++loads_, worst_ = std::max(worst_, fullest);
    }
  }
  ordered_json row(const char* placement, const char* homes, std::int64_t width) const {
    const double row_bytes = 4.0 * 4.0 * static_cast<double>(width);  // forth and back, both passes, f32
    double whole = 1;
    for (std::size_t at = 0; at < whole_.size(); at += idx(mesh_.expert_parallel))
      whole = std::max(whole, max_over_mean(std::span(whole_).subspan(at, idx(mesh_.expert_parallel))));
    return {{"placement", placement},
            {"homes", homes},
            {"ranks_per_token", visits_ / tokens_},
            {"nodes_per_token", node_visits_ / tokens_},
            {"rows_sent_per_token", (within_ + between_) / tokens_},
            {"node_rows_sent_per_token", node_rows_ / tokens_},
            {"bytes_within_nodes", within_ / tokens_ * row_bytes},
            {"bytes_between_nodes", between_ / tokens_ * row_bytes},
            {"two_level_bytes_between_nodes", node_rows_ / tokens_ * row_bytes},
            {"bytes_one_row_a_pick", remote_picks_ / tokens_ * row_bytes},
            {"load_max_over_mean", load_ / static_cast<double>(loads_)},
            {"load_max_over_mean_worst", worst_},
            {"load_max_over_mean_whole", whole}};
  }

 private:
  static double max_over_mean(std::span<const double> load) {
    const double sum = std::accumulate(load.begin(), load.end(), 0.0);
    return sum > 0 ? *std::max_element(load.begin(), load.end()) * static_cast<double>(load.size()) / sum : 1;
  }
  PlannedMesh mesh_;
  std::size_t layers_;
  double visits_ = 0, node_visits_ = 0, within_ = 0, between_ = 0, node_rows_ = 0, remote_picks_ = 0, tokens_ = 0;
  double load_ = 0, worst_ = 1;  ///< of a layer, group and micro-batch
  std::int64_t loads_ = 0;
  std::vector<double> whole_;  ///< [layers, ranks] of all that was measured
};

/// In turn: as training shares a batch out, consecutive sequences on a rank.
HomePlan in_turn(std::size_t sequences, const PlannedMesh& mesh) {
  HomePlan plan;
  const std::size_t each = sequences / idx(mesh.expert_parallel) / idx(mesh.data_parallel);
  for (std::size_t s = 0; s < sequences; ++s) {
    const auto place = static_cast<std::int32_t>(s / each);
    plan.rank.push_back(place % mesh.expert_parallel), plan.cell.push_back(place / mesh.expert_parallel);
  }
  return plan;
}

/// A planned micro-batch, and what is measured with it.
class Replay {
 public:
  Replay(const PlannedMesh& mesh, const ExpertPlacement& random, const ExpertPlacement& placement)
      : mesh_(mesh), random_(random), placement_(placement), learned_(mesh.expert_parallel) {
    traffic_.assign(4, Traffic(mesh, placement.layers()));
  }
  /// Of the half that is learned from: by recorded micro-batches, whatever is planned.
  void learn(const RecordedMicroBatch& m, std::int64_t top_k) {
    each_sequence(m, [&](std::int64_t begin, std::int64_t end, std::span<const std::int32_t> words) {
      learned_.observe(words, demand_of(placement_, mesh_.ranks_per_node, m, begin, end, top_k).ranks);
    });
    learned_.apply();
  }
  void measure(const RecordedMicroBatch& m, std::int64_t top_k, std::int64_t sequences_a_rank) {
    each_sequence(m, [&](std::int64_t begin, std::int64_t end, std::span<const std::int32_t> words) {
      placed_.push_back(demand_of(placement_, mesh_.ranks_per_node, m, begin, end, top_k));
      scattered_.push_back(demand_of(random_, mesh_.ranks_per_node, m, begin, end, top_k));
      words_.emplace_back(words.begin(), words.end());
      if (placed_.size() == idx(sequences_a_rank * mesh_.expert_parallel * mesh_.data_parallel)) finish();
    });
  }
  /// Whether the sequences that are left were used again to fill a first micro-batch.
  bool fill(std::int64_t sequences_a_rank) {
    if (measured_ > 0 || placed_.empty()) return false;
    const std::size_t n = placed_.size(), all = idx(sequences_a_rank * mesh_.expert_parallel * mesh_.data_parallel);
    for (std::size_t i = 0; placed_.size() < all; ++i)
      placed_.push_back(placed_[i % n]), scattered_.push_back(scattered_[i % n]), words_.push_back(words_[i % n]);
    finish();
    return true;
  }
  std::int64_t measured() const { return measured_; }
  ordered_json rows(const char* placement, std::int64_t width) const {
    auto rows = ordered_json::array();
    for (std::size_t i = 0; i < traffic_.size(); ++i)
      rows.push_back(traffic_[i].row(i == 0 ? "random" : placement,
                                     std::array{"in turn", "in turn", "learned", "hindsight"}.at(i), width));
    return rows;
  }

 private:
  template <typename F>
  static void each_sequence(const RecordedMicroBatch& m, F&& f) {
    const std::int64_t length = m.front().sequence_length;
    for (std::int64_t begin = 0; begin < m.front().segments.back(); begin += length)
      f(begin, begin + length, std::span(m.front().tokens).subspan(idx(begin), idx(length)));
  }
  void finish() {
    const auto tokens = static_cast<std::int64_t>(words_.front().size());
    std::vector<double> expected, known;
    for (std::size_t s = 0; s < placed_.size(); ++s) {
      const std::vector<double> score = learned_.scores(words_[s]);
      expected.insert(expected.end(), score.begin(), score.end());
      // The rows that a home saves are what its rank is visited.
      known.insert(known.end(), placed_[s].ranks.begin(), placed_[s].ranks.end());
    }
    const HomePlan turn = in_turn(placed_.size(), mesh_);
    traffic_[0].add(scattered_, turn, tokens);
    traffic_[1].add(placed_, turn, tokens);
    traffic_[2].add(placed_, plan_homes(expected, mesh_.expert_parallel, mesh_.data_parallel), tokens);
    traffic_[3].add(placed_, plan_homes(known, mesh_.expert_parallel, mesh_.data_parallel), tokens);
    ++measured_;
    for (std::size_t s = 0; s < placed_.size(); ++s) learned_.observe(words_[s], placed_[s].ranks);
    learned_.apply();
    placed_.clear(), scattered_.clear(), words_.clear();
  }
  PlannedMesh mesh_;
  const ExpertPlacement &random_, &placement_;
  LearnedHomes learned_;
  std::vector<Traffic> traffic_;
  std::int64_t measured_ = 0;
  std::vector<Demand> placed_, scattered_;
  std::vector<std::vector<std::int32_t>> words_;
};

/// Whole sequences as documents: what is sent home is a sequence.
DocumentProfiles sequences_of_half(const std::filesystem::path& recording, std::int64_t half) {
  constexpr std::int64_t kMost = 20'000;
  RecordedRun run(recording);
  DocumentProfiles p;
  p.layers = run.header().layers, p.experts = run.header().experts;
  RecordedMicroBatch m;
  for (std::int64_t i = 0; i < half && run.next(m) && p.documents() < kMost; ++i) {
    const std::int32_t length = static_cast<std::int32_t>(m.front().sequence_length), all = m.front().segments.back();
    std::vector<std::int32_t> bounds;
    for (std::int32_t at = 0; at <= all; at += length) bounds.push_back(at);
    m.front().segments = bounds;
    for (std::size_t s = 0; s + 1 < bounds.size(); ++s) add_document(p, m, static_cast<std::int64_t>(s), 1);
  }
  return p;
}

}  // namespace

ordered_json replay_homes(const std::filesystem::path& recording, const PlannedMesh& mesh,
                          const ReplayOptions& options) {
  std::int64_t count = 0;
  RecordedMicroBatch m;
  RecordedRun counted(recording);
  const PoolTraceHeader header = counted.header();
  require<UsageError>(header.vocabulary > 0,
                      "the recording {} has no tokens, which homes are learned from: record it again with this emox",
                      recording.string());
  while (counted.next(m)) ++count;
  const std::int64_t half = count / 2, layers = header.layers, experts = header.experts;
  require<UsageError>(half > 0, "the recording {} has {} micro-batch: half are for learning, half are measured",
                      recording.string(), count);
  const int ep = mesh.expert_parallel;
  require<UsageError>(ep >= 1 && ep <= experts,
                      "--expert-parallel = {}: the recording has {} routed experts, at least one a rank is needed", ep,
                      experts);
  const auto random = ExpertPlacement::random(layers, experts, ep, options.placement_seed);
  const std::string& name = options.placement;
  const ExpertPlacement placement =
      name == "block"    ? ExpertPlacement::block(layers, experts, ep)
      : name == "random" ? random
      : name == "affinity"
          ? choose_placement(sequences_of_half(recording, half),
                             {.ranks = ep, .ranks_per_node = mesh.ranks_per_node, .load_limit = options.load_limit})
                .placement
          : ExpertPlacement::from_file(name, layers, experts, ep);
  Replay replay(mesh, random, placement);
  RecordedRun run(recording);
  for (std::int64_t i = 0; run.next(m); ++i)
    if (i < half)
      replay.learn(m, header.top_k);
    else
      replay.measure(m, header.top_k, options.sequences);
  const bool reused = replay.fill(options.sequences);
  const ordered_json rows = replay.rows(name.c_str(), options.width);
  const auto sent = [&](std::size_t i) { return rows[i]["rows_sent_per_token"].get<double>(); };
  ordered_json result{{"expert_parallel", ep},
                      {"data_parallel", mesh.data_parallel},
                      {"ranks_per_node", mesh.ranks_per_node},
                      {"experts", experts},
                      {"top_k", header.top_k},
                      {"sequences_a_rank", options.sequences},
                      {"micro_batches", replay.measured()},
                      {"sequences_reused", reused},
                      {"rows", rows}};
  // What homes save, learned of what could be known afterwards.
  const double could = sent(1) - sent(3);
  result["learned_share_of_hindsight"] = could > 1e-12 ? ordered_json((sent(1) - sent(2)) / could) : ordered_json();
  const double a_pick = rows[0]["bytes_one_row_a_pick"].get<double>();
  for (auto& row : result["rows"]) {
    const double bytes = row["bytes_within_nodes"].get<double>() + row["bytes_between_nodes"].get<double>();
    row["saved_of_random"] = sent(0) > 0 ? 1 - row["rows_sent_per_token"].get<double>() / sent(0) : 0.0;
    row["saved_of_one_row_a_pick"] = a_pick > 0 ? 1 - bytes / a_pick : 0.0;  // of random placement in turn
  }
  return result;
}

std::string homes_table(const ordered_json& r) {
  std::string text = fmt::format(
      "{} micro-batches of {} sequence(s) a rank, experts over {} ranks ({} a node), {} replica(s){}\n"
      "{:<10} {:<10}{:>12}{:>12}{:>11}{:>11}{:>13}{:>14}{:>10}{:>10}\n",
      r["micro_batches"].get<std::int64_t>(), r["sequences_a_rank"].get<std::int64_t>(),
      r["expert_parallel"].get<int>(), r["ranks_per_node"].get<int>(), r["data_parallel"].get<int>(),
      r["sequences_reused"].get<bool>() ? "; sequences are used again" : "", "placement", "homes", "ranks/token",
      "nodes/token", "rows sent", "of random", "KiB in nodes", "KiB between", "max/mean", "worst");
  for (const auto& row : r["rows"])
    text += fmt::format("{:<10} {:<10}{:>12.3f}{:>12.3f}{:>11.3f}{:>9.1f} %{:>13.2f}{:>14.2f}{:>10.3f}{:>10.3f}\n",
                        row["placement"].get<std::string>(), row["homes"].get<std::string>(),
                        row["ranks_per_token"].get<double>(), row["nodes_per_token"].get<double>(),
                        row["rows_sent_per_token"].get<double>(), 100 * (1 - row["saved_of_random"].get<double>()),
                        row["bytes_within_nodes"].get<double>() / 1024, row["bytes_between_nodes"].get<double>() / 1024,
                        row["load_max_over_mean"].get<double>(), row["load_max_over_mean_worst"].get<double>());
  if (!r["learned_share_of_hindsight"].is_null())
    text += fmt::format("learned homes save {:.1f} % of what homes in hindsight do\n",
                        100 * r["learned_share_of_hindsight"].get<double>());
  return text;
}

}  // namespace emox
