#include "launch/analysis/placement/placement_study.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "runtime/core/error.h"

namespace emox {
namespace {

/// What a placement made of the measured documents.
class Tally {
 public:
  Tally(std::string name, ExpertPlacement placement, int ranks_per_node)
      : name_(std::move(name)),
        placement_(std::move(placement)),
        ranks_(placement_.ranks()),
        per_node_(ranks_per_node),
        nodes_((ranks_ - 1) / ranks_per_node + 1),
        load_(idx(placement_.layers() * ranks_), 0) {}

  void begin_micro_batch() { micro_load_.assign(load_.size(), 0); }
  void begin_document(std::int64_t tokens) {
    tokens_.push_back(tokens);
    rank_hits_.resize(rank_hits_.size() + idx(ranks_), 0);
    picks_.resize(picks_.size() + idx(ranks_), 0);
    node_hits_.resize(node_hits_.size() + idx(nodes_), 0);
  }
  void add_token(std::int64_t layer, std::span<const std::int32_t> picks) {
    ++time_;
    const auto rank_of = placement_.of_layer(layer);
    std::int64_t* const ranks = rank_hits_.data() + rank_hits_.size() - idx(ranks_);
    std::int64_t* const nodes = node_hits_.data() + node_hits_.size() - idx(nodes_);
    double* const all = picks_.data() + picks_.size() - idx(ranks_);
    for (const std::int32_t e : picks) {
      const std::int32_t r = rank_of[idx(e)];
      ++all[r];
      ++micro_load_[idx(layer * ranks_ + r)];
      if (seen(rank_seen_, r, ranks_)) continue;
      ++ranks[r];
      if (!seen(node_seen_, r / per_node_, nodes_)) ++nodes[r / per_node_];
    }
  }
  void end_micro_batch() {
    for (std::int64_t l = 0; l < placement_.layers(); ++l) {
      const auto begin = micro_load_.begin() + l * ranks_;
      const auto sum = std::accumulate(begin, begin + ranks_, 0.0);
      if (sum == 0) continue;
      micro_max_ += static_cast<double>(*std::max_element(begin, begin + ranks_)) * ranks_ / sum;
      ++micro_batches_;
    }
    for (std::size_t i = 0; i < load_.size(); ++i) load_[i] += micro_load_[i];
  }

  PlacementFigures figures() const {
    PlacementFigures f;
    f.name = name_;
    const std::vector<std::int32_t> home = assign_homes(picks_, tokens_, ranks_);
    double visits = 0, node_visits = 0, at_home = 0, node_at_home = 0, tokens = 0;
    for (std::size_t d = 0; d < tokens_.size(); ++d) {
      for (int r = 0; r < ranks_; ++r) visits += static_cast<double>(rank_hits_[d * idx(ranks_) + idx(r)]);
      for (int n = 0; n < nodes_; ++n) node_visits += static_cast<double>(node_hits_[d * idx(nodes_) + idx(n)]);
      at_home += static_cast<double>(rank_hits_[d * idx(ranks_) + idx(home[d])]);
      node_at_home += static_cast<double>(node_hits_[d * idx(nodes_) + idx(home[d] / per_node_)]);
      tokens += static_cast<double>(tokens_[d]);
    }
    const double each = tokens * static_cast<double>(placement_.layers());
    f.ranks = visits / each, f.nodes = node_visits / each;
    f.rows = visits * (1 - 1.0 / ranks_) / each;
    f.rows_home = (visits - at_home) / each;
    f.rows_home_inter = (node_visits - node_at_home) / each;
    for (std::int64_t l = 0; l < placement_.layers(); ++l) {
      const auto begin = load_.begin() + l * ranks_;
      const auto sum = std::accumulate(begin, begin + ranks_, 0.0);
      if (sum > 0)
        f.load_max_over_mean = std::max(f.load_max_over_mean,
                                        static_cast<double>(*std::max_element(begin, begin + ranks_)) * ranks_ / sum);
    }
    f.micro_load_max_over_mean = micro_batches_ > 0 ? micro_max_ / static_cast<double>(micro_batches_) : 1;
    return f;
  }

 private:
  /// Whether this token has been there; notes that it has.
  bool seen(std::vector<std::int64_t>& when, int place, int places) const {
    when.resize(idx(places), 0);
    return std::exchange(when[idx(place)], time_) == time_;
  }

  std::string name_;
  ExpertPlacement placement_;
  int ranks_, per_node_, nodes_;
  std::vector<std::int64_t> load_, micro_load_;               ///< [layers, ranks] picks
  std::vector<std::int64_t> tokens_, rank_hits_, node_hits_;  ///< [documents], [documents, ranks], [documents, nodes]
  std::vector<double> picks_;                                 ///< [documents, ranks]
  std::vector<std::int64_t> rank_seen_, node_seen_;
  std::int64_t time_ = 0, micro_batches_ = 0;
  double micro_max_ = 0;
};

/// f(micro-batch, number of its first document) for those of the recording from that step on.
template <typename F>
void each_micro_batch(const std::filesystem::path& recording, std::int64_t from_step, F&& f) {
  RecordedRun run(recording);
  RecordedMicroBatch micro;
  std::int64_t document = 0;
  while (run.next(micro)) {
    if (static_cast<std::int64_t>(micro.front().step) < from_step) continue;
    f(micro, document);
    document += static_cast<std::int64_t>(micro.front().segments.size()) - 1;
  }
}

DocumentProfiles choosing_documents(const std::filesystem::path& recording, const PlacementStudyOptions& o,
                                    const PoolTraceHeader& header) {
  DocumentProfiles all;
  all.layers = header.layers, all.experts = header.experts;
  std::int64_t count = 0;
  each_micro_batch(recording, o.from_step, [&](const RecordedMicroBatch& m, std::int64_t) {
    count += static_cast<std::int64_t>(m.front().segments.size()) - 1;
  });
  const std::int64_t stride = 2 * std::max<std::int64_t>(1, (count / 2 - 1) / o.most_documents + 1);
  each_micro_batch(recording, o.from_step, [&](const RecordedMicroBatch& m, std::int64_t first) {
    const auto documents = static_cast<std::int64_t>(m.front().segments.size()) - 1;
    for (std::int64_t d = 0; d < documents; ++d)
      if ((first + d) % stride == 0) add_document(all, m, d, o.least_tokens);
  });
  return all;
}

}  // namespace

PlacementStudy study_placement(const std::filesystem::path& recording, const PlacementStudyOptions& o) {
  PlacementStudy study;
  study.header = RecordedRun(recording).header();
  const std::int64_t layers = study.header.layers, experts = study.header.experts;
  const DocumentProfiles documents = choosing_documents(recording, o, study.header);
  require<UsageError>(documents.documents() > 0,
                      "the recording {} holds no document of {} tokens or more from step {} on to choose by",
                      recording.string(), o.least_tokens, o.from_step);
  study.chosen_by = documents.documents();
  study.chosen = choose_placement(documents, o.request);
  const int ranks = o.request.ranks, a_node = o.request.ranks_per_node;
  std::vector<Tally> tallies;
  tallies.emplace_back("block", ExpertPlacement::block(layers, experts, ranks), a_node);
  for (const std::uint64_t seed : {1U, 2U, 3U})
    tallies.emplace_back("random", ExpertPlacement::random(layers, experts, ranks, seed), a_node);
  tallies.emplace_back("affinity", study.chosen.placement, a_node);
  each_micro_batch(recording, o.from_step, [&](const RecordedMicroBatch& m, std::int64_t first) {
    const auto& segments = m.front().segments;
    for (Tally& t : tallies) t.begin_micro_batch();
    for (std::size_t d = 0; d + 1 < segments.size(); ++d) {
      if ((first + static_cast<std::int64_t>(d)) % 2 == 0) continue;
      ++study.measured, study.measured_tokens += segments[d + 1] - segments[d];
      const std::size_t k = study.header.top_k;
      for (Tally& t : tallies) {
        t.begin_document(segments[d + 1] - segments[d]);
        for (std::size_t l = 0; l < m.size(); ++l)
          for (std::int64_t i = segments[d]; i < segments[d + 1]; ++i)
            t.add_token(static_cast<std::int64_t>(l), std::span(m[l].ids).subspan(idx(i) * k, k));
      }
    }
    for (Tally& t : tallies) t.end_micro_batch();
  });
  require<UsageError>(study.measured > 0, "the recording {} has one document: half are for measuring",
                      recording.string());
  for (const Tally& t : tallies) study.figures.push_back(t.figures());
  PlacementFigures mean = study.figures[1];
  for (double PlacementFigures::*x :
       {&PlacementFigures::ranks, &PlacementFigures::nodes, &PlacementFigures::rows, &PlacementFigures::rows_home,
        &PlacementFigures::rows_home_inter, &PlacementFigures::load_max_over_mean,
        &PlacementFigures::micro_load_max_over_mean})
    mean.*x = (study.figures[1].*x + study.figures[2].*x + study.figures[3].*x) / 3;
  study.figures = {study.figures[0], mean, study.figures[4]};
  return study;
}

nlohmann::ordered_json to_json(const PlacementStudy& s, const PlacementRequest& request) {
  auto figures = nlohmann::ordered_json::array();
  for (const PlacementFigures& f : s.figures)
    figures.push_back({{"placement", f.name},
                       {"ranks_per_token", f.ranks},
                       {"nodes_per_token", f.nodes},
                       {"rows_sent_per_token", f.rows},
                       {"rows_sent_per_token_home", f.rows_home},
                       {"node_rows_sent_per_token_home", f.rows_home_inter},
                       {"load_max_over_mean", f.load_max_over_mean},
                       {"micro_batch_load_max_over_mean", f.micro_load_max_over_mean}});
  return {{"expert_parallel", request.ranks},
          {"ranks_per_node", request.ranks_per_node},
          {"experts", s.header.experts},
          {"layers", s.header.layers},
          {"top_k", s.header.top_k},
          {"documents_chosen_by", s.chosen_by},
          {"documents_measured", s.measured},
          {"tokens_measured", s.measured_tokens},
          {"home_share_of_choosing", s.chosen.home_share},
          {"load_max_over_mean_of_choosing", s.chosen.load_max_over_mean},
          {"placements", figures}};
}

std::string placement_table(const PlacementStudy& s, const PlacementRequest& request) {
  std::string text = fmt::format(
      "{} routed experts of {} layers, {} picks; over {} ranks, {} a node; chosen by {} documents, measured on {} "
      "others\n"
      "{:<10}{:>13}{:>13}{:>12}{:>12}{:>14}{:>10}{:>13}\n",
      s.header.experts, s.header.layers, s.header.top_k, request.ranks, request.ranks_per_node, s.chosen_by, s.measured,
      "placement", "ranks/token", "nodes/token", "rows sent", "from home", "between nodes", "max/mean", "micro-batch");
  for (const PlacementFigures& f : s.figures)
    text +=
        fmt::format("{:<10}{:>13.3f}{:>13.3f}{:>12.3f}{:>12.3f}{:>14.3f}{:>10.3f}{:>13.3f}\n", f.name, f.ranks, f.nodes,
                    f.rows, f.rows_home, f.rows_home_inter, f.load_max_over_mean, f.micro_load_max_over_mean);
  const PlacementFigures &random = s.figures[1], &affinity = s.figures[2];
  if (random.rows > 0)
    text += fmt::format(
        "rows sent, of those under random placement: {:.1f} %; with documents at home: {:.1f} %\n"
        "from home: a document on the rank that has most of its picks, known afterwards, ranks equally full\n",
        100 * affinity.rows / random.rows, 100 * affinity.rows_home / random.rows);
  return text;
}

}  // namespace emox
