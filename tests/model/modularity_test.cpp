// Measures of modularity on routing whose answer is known in closed form.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numbers>
#include <random>
#include <utility>

#include "model/modularity/contingency.h"
#include "model/modularity/measures.h"
#include "model/modularity/student.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

constexpr double kShares[] = {0.125, 0.25};

/// Documents of equal length: `count` picks for every expert and token that `uses(domain, token, expert)` allows.
template <typename Uses>
std::vector<DocumentPicks> documents_of(int domains, int each, int tokens, int experts, std::int64_t count,
                                        const Uses& uses) {
  std::vector<DocumentPicks> documents;
  for (int i = 0; i < domains * each; ++i) {
    DocumentPicks d{i % domains, {}};
    for (int t = 0; t < tokens; ++t)
      for (int e = 0; e < experts; ++e)
        if (uses(i % domains, t, e)) d.picks.push_back({t, e, count});
    documents.push_back(std::move(d));
  }
  return documents;
}

double correction_bits(std::int64_t surplus, std::int64_t picks) {
  return static_cast<double>(surplus) / (2.0 * static_cast<double>(picks) * std::numbers::ln2);
}

// Four domains, each with two experts of eight for itself, whatever the token: all of the topic, nothing of the token.
TEST(ModularityMeasures, DomainsWithTheirOwnExperts) {
  const auto documents = documents_of(4, 5, 10, 8, 3, [](int domain, int, int e) { return e / 2 == domain; });
  const std::int64_t picks = 4 * 5 * 10 * 2 * 3;
  const LayerModularity m = measure_layer(documents, 8, kShares, 0);
  EXPECT_EQ(m.concentration[0].top, 1);
  EXPECT_DOUBLE_EQ(m.concentration[0].value.value, 0.5);
  EXPECT_EQ(m.concentration[1].top, 2);
  EXPECT_DOUBLE_EQ(m.concentration[1].value.value, 1.0);
  EXPECT_NEAR(standard_error(m.concentration[0].value, documents), 0, 1e-12);  // all documents are alike
  EXPECT_NEAR(m.topic.correction, correction_bits(8 + 4 - 8 - 1, picks), 1e-12);
  EXPECT_NEAR(m.topic.bits.value, 2 + m.topic.correction, 1e-12);
  EXPECT_NEAR(m.topic.possible, 2, 1e-12);
  EXPECT_NEAR(m.topic.normalized.value, 1 + m.topic.correction / 2, 1e-12);
  EXPECT_NEAR(m.surface.correction, correction_bits(8 + 10 - 80 - 1, picks), 1e-12);
  EXPECT_NEAR(m.surface.bits.value, m.surface.correction, 1e-12);
  EXPECT_NEAR(m.surface.possible, 3, 1e-12);  // the experts' entropy, below that of ten tokens
  // Documents that exchange their domains still have two experts each: they say something about any labels.
  EXPECT_GT(m.topic.chance, 0.1);
  EXPECT_LT(m.topic.chance, 1.0);
}

// Sixteen tokens, eight experts, expert = token mod 8 in every document: all of the token, nothing of the topic.
TEST(ModularityMeasures, ExpertsThatBelongToTokens) {
  const auto documents = documents_of(4, 5, 16, 8, 3, [](int, int t, int e) { return t % 8 == e; });
  const std::int64_t picks = 4 * 5 * 16 * 3;
  const LayerModularity m = measure_layer(documents, 8, kShares, 0);
  EXPECT_DOUBLE_EQ(m.concentration[1].value.value, 0.25);
  EXPECT_NEAR(m.surface.possible, 3, 1e-12);
  EXPECT_NEAR(m.surface.bits.value, 3 + correction_bits(8 + 16 - 16 - 1, picks), 1e-12);
  EXPECT_NEAR(m.surface.normalized.value, m.surface.bits.value / 3, 1e-12);
  EXPECT_NEAR(m.topic.bits.value, correction_bits(8 + 4 - 32 - 1, picks), 1e-12);
  EXPECT_NEAR(m.topic.chance, m.topic.bits.value, 1e-12);  // documents are alike: exchanging them changes nothing
  EXPECT_LT(std::abs(m.surface.chance), 0.05);             // picks have exchanged their tokens
}

// Every domain has a token and an expert for itself: the document alone explains the token, and chance shows it.
TEST(ModularityMeasures, ChanceShowsWhatTheDocumentExplains) {
  const auto documents =
      documents_of(4, 5, 4, 4, 30, [](int domain, int t, int e) { return t == domain && e == domain; });
  const LayerModularity m = measure_layer(documents, 4, kShares, 0);
  EXPECT_NEAR(m.surface.bits.value, 2 + m.surface.correction, 1e-12);
  EXPECT_NEAR(m.surface.chance, m.surface.bits.value, 1e-12);
}

std::vector<DocumentPicks> draw_independent(std::mt19937_64& random, int documents, int length, int domains, int tokens,
                                            int experts) {
  std::vector<DocumentPicks> all;
  for (int i = 0; i < documents; ++i) {
    std::vector<std::int64_t> cells(idx(tokens * experts), 0);
    for (int p = 0; p < length; ++p) ++cells[random() % cells.size()];
    DocumentPicks d{i % domains, {}};
    for (int c = 0; c < tokens * experts; ++c)
      if (cells[idx(c)] > 0) d.picks.push_back({c / experts, c % experts, cells[idx(c)]});
    all.push_back(std::move(d));
  }
  return all;
}

// 2 N ln 2 I is chi-squared with (a - 1)(b - 1) degrees of freedom when nothing depends on anything: the correction
// takes its mean away, and what is left is within 4 of its standard deviations.
TEST(ModularityMeasures, IndependentPicksTellNothing) {
  std::mt19937_64 random(7);
  const int length = 400, documents_drawn = 100, domains = 5, tokens = 20, experts = 16;
  const auto documents = draw_independent(random, documents_drawn, length, domains, tokens, experts);
  const LayerModularity m = measure_layer(documents, experts, kShares, 0);
  const double picks = length * documents_drawn;
  for (const auto& [info, others] : {std::pair{&m.topic, domains}, std::pair{&m.surface, tokens}}) {
    const double freedom = (others - 1.0) * (experts - 1.0), unit = 1 / (2 * picks * std::numbers::ln2);
    EXPECT_NEAR(info->bits.value, 0, 4 * std::sqrt(2 * freedom) * unit);
    EXPECT_NEAR(info->chance, 0, 4 * std::sqrt(2 * freedom) * unit);
    EXPECT_NEAR(info->correction, -freedom * unit, 1e-12);
  }
  // Picks dealt at random are what these are.
  for (const Concentration& c : m.concentration) {
    EXPECT_NEAR(c.value.value, c.chance, 5 * standard_error(c.value, documents));
    EXPECT_GT(c.value.value, c.share);  // the best of a finite document are above average
  }
}

// Files are of two kinds, so that picks of one file go together, in one document or in several. In 95 % of samples the
// interval must hold the value of the world, which is that of the two domains' mean distributions.
void expect_truth_in_nineteen_of_twenty_samples(int pieces) {
  const double kinds[2][2][4] = {{{.7, .1, .1, .1}, {.3, .5, .1, .1}}, {{.1, .1, .1, .7}, {.1, .1, .5, .3}}};
  const auto world = [&](int domain, int e) { return (kinds[domain][0][e] + kinds[domain][1][e]) / 2; };
  double truth = 0, entropy = 0;
  for (int e = 0; e < 4; ++e) {
    const double all = (world(0, e) + world(1, e)) / 2;
    entropy -= all * std::log2(all);
    for (int d = 0; d < 2; ++d) truth += world(d, e) / 2 * std::log2(world(d, e) / all);
  }
  ASSERT_GT(entropy, 1);  // the domains' entropy of one bit is the bound
  std::mt19937_64 random(3);
  int bits = 0, normalized = 0;
  constexpr int kSamples = 400;
  for (int s = 0; s < kSamples; ++s) {
    std::vector<DocumentPicks> documents;
    for (int i = 0; i < 80; ++i) {
      const double* p = kinds[i % 2][random() % 2];
      std::discrete_distribution<int> draw(p, p + 4);
      for (int piece = 0; piece < pieces; ++piece) {
        std::int64_t counts[4] = {};
        for (int n = 0; n < 100 / pieces; ++n) ++counts[draw(random)];
        DocumentPicks d{i % 2, {}, i};
        for (int e = 0; e < 4; ++e)
          if (counts[e] > 0) d.picks.push_back({0, e, counts[e]});
        documents.push_back(std::move(d));
      }
    }
    const LayerModularity m = measure_layer(documents, 4, kShares, 0);
    const auto holds = [&](const Measured& v) { return std::abs(v.value - truth) <= half_interval(v, documents); };
    bits += holds(m.topic.bits), normalized += holds(m.topic.normalized);
    EXPECT_TRUE(std::isnan(m.surface.normalized.value));  // one token: nothing to tell
  }
  for (const int held : {bits, normalized}) {
    EXPECT_GE(held, kSamples * 0.91);
    EXPECT_LE(held, kSamples * 0.985);
  }
}

TEST(ModularityMeasures, IntervalsHoldTheTruthInNineteenOfTwentySamples) {
  expect_truth_in_nineteen_of_twenty_samples(1);
  expect_truth_in_nineteen_of_twenty_samples(5);
}

TEST(ModularityMeasures, StandardErrorIsOfDocumentsInsideDomains) {
  const std::vector<DocumentPicks> documents{{0, {{0, 0, 1}}}, {0, {{0, 0, 1}}}, {1, {{0, 0, 1}}}};
  // Domain 0: mean 2, 2 / 1 * (1 + 1) = 4; domain 1 has one document: 3 * 3.
  EXPECT_DOUBLE_EQ(standard_error({0, {1, 3, -3}}, documents), std::sqrt(13.0));
  EXPECT_THROW((void)standard_error({0, {1, 3}}, documents), ShapeError);
}

// A file's documents are one draw: their influences add up before they are squared.
TEST(ModularityMeasures, StandardErrorIsOfFiles) {
  std::vector<DocumentPicks> documents(4, {0, {{0, 0, 1}}});
  documents[0].file = documents[1].file = 7, documents[2].file = 8;
  // Files 7, 8 and the last document: 4, -1, -3, of mean 0; 3 / 2 (16 + 1 + 9).
  const Measured measured{0, {1, 3, -1, -3}};
  EXPECT_DOUBLE_EQ(standard_error(measured, documents), std::sqrt(39.0));
  EXPECT_DOUBLE_EQ(half_interval(measured, documents), student_quantile(2) * std::sqrt(39.0));
  documents[2].domain = 1;  // files of other domains are others, whatever their number: (1 + 3, -3) and -1
  EXPECT_DOUBLE_EQ(standard_error(measured, documents), std::sqrt(2 * (3.5 * 3.5 + 3.5 * 3.5) + 1));
  for (DocumentPicks& d : documents) d.domain = 0, d.file = 7;
  EXPECT_TRUE(std::isinf(half_interval(measured, documents)));  // one file says nothing about others
}

// Cutting every file into more pieces alike changes neither value nor interval; taken for independent documents, they
// would make it narrower.
TEST(ModularityMeasures, PiecesOfAFileDoNotMakeTheIntervalNarrower) {
  std::mt19937_64 random(11);
  std::vector<DocumentPicks> files = draw_independent(random, 24, 60, 3, 6, 8), pieces;
  for (std::size_t i = 0; i < files.size(); ++i) {
    files[i].file = static_cast<std::int64_t>(i);
    pieces.insert(pieces.end(), 5, files[i]);
  }
  const LayerModularity one = measure_layer(files, 8, kShares, 0), cut = measure_layer(pieces, 8, kShares, 0);
  for (DocumentPicks& piece : pieces) piece.file = kOwnFile;
  const LayerModularity taken_apart = measure_layer(pieces, 8, kShares, 0);
  const auto half = [](const Measured& m, const std::vector<DocumentPicks>& documents) {
    return half_interval(m, documents);
  };
  std::vector<DocumentPicks> together = pieces;
  for (std::size_t i = 0; i < together.size(); ++i) together[i].file = static_cast<std::int64_t>(i / 5);
  EXPECT_NEAR(half(cut.concentration[1].value, together), half(one.concentration[1].value, files), 1e-12);
  EXPECT_NEAR(half(cut.topic.bits, together), half(one.topic.bits, files), 1e-12);
  EXPECT_NEAR(half(cut.surface.bits, together), half(one.surface.bits, files), 1e-12);
  EXPECT_NEAR(cut.concentration[1].value.value, one.concentration[1].value.value, 1e-12);
  EXPECT_LT(half(taken_apart.topic.bits, pieces), 0.5 * half(one.topic.bits, files));
}

// Files exchange their domains as a whole. With one file a domain every exchange tells as much: nothing shows that the
// experts know the domain rather than the file.
TEST(ModularityMeasures, ChanceOfTopicKeepsFilesWhole) {
  auto documents = documents_of(4, 5, 10, 8, 3, [](int domain, int, int e) { return e / 2 == domain; });
  const double by_document = measure_layer(documents, 8, kShares, 0).topic.chance;
  for (DocumentPicks& d : documents) d.file = 0;
  const LayerModularity m = measure_layer(documents, 8, kShares, 0);
  EXPECT_NEAR(m.topic.chance, m.topic.bits.value, 1e-12);
  EXPECT_LT(by_document, 1.0);
}

// Two layers that route alike say nothing new: the mean has the error of one. With influences that cancel it has none.
TEST(ModularityMeasures, MeanOverLayersKnowsThatLayersGoTogether) {
  std::mt19937_64 random(5);
  const auto documents = draw_independent(random, 30, 200, 3, 6, 8);
  const LayerModularity one = measure_layer(documents, 8, kShares, 0);
  const LayerModularity both[] = {one, one};
  const LayerModularity mean = mean_over_layers(both);
  EXPECT_DOUBLE_EQ(mean.surface.bits.value, one.surface.bits.value);
  EXPECT_DOUBLE_EQ(mean.topic.chance, one.topic.chance);
  EXPECT_DOUBLE_EQ(standard_error(mean.concentration[1].value, documents),
                   standard_error(one.concentration[1].value, documents));
  LayerModularity opposite = one;
  for (double& x : opposite.topic.bits.influence) x = -x;
  const LayerModularity against[] = {one, opposite};
  EXPECT_NEAR(standard_error(mean_over_layers(against).topic.bits, documents), 0, 1e-15);
  EXPECT_GT(standard_error(one.topic.bits, documents), 0);
}

// Layers of other entropies: value and chance are both means of the layers' ratios, not ratios of means.
TEST(ModularityMeasures, TheMeansValueAndChanceAreOfOneKind) {
  std::mt19937_64 random(6);
  const auto documents = draw_independent(random, 30, 200, 3, 6, 8);
  std::vector<DocumentPicks> few = documents;  // two experts only
  for (DocumentPicks& d : few) {
    std::map<std::pair<std::int32_t, std::int32_t>, std::int64_t> merged;
    for (const PickCount& p : d.picks) merged[{p.token, p.expert % 2}] += p.count;
    d.picks.clear();
    for (const auto& [pair, count] : merged) d.picks.push_back({pair.first, pair.second, count});
  }
  const LayerModularity layers[] = {measure_layer(documents, 8, kShares, 0), measure_layer(few, 8, kShares, 0)};
  const LayerModularity mean = mean_over_layers(layers);
  ASSERT_GT(layers[0].surface.possible, 1.5 * layers[1].surface.possible);
  for (const auto part : {&LayerModularity::topic, &LayerModularity::surface}) {
    const Information &a = layers[0].*part, &b = layers[1].*part, &m = mean.*part;
    EXPECT_DOUBLE_EQ(m.normalized.value, (a.bits.value / a.possible + b.bits.value / b.possible) / 2);
    EXPECT_DOUBLE_EQ(m.normalized_chance, (a.chance / a.possible + b.chance / b.possible) / 2);
  }
}

TEST(ModularityMeasures, RepeatAndRefuse) {
  std::mt19937_64 random(9);
  const auto documents = draw_independent(random, 12, 50, 3, 6, 8);
  const LayerModularity a = measure_layer(documents, 8, kShares, 4), b = measure_layer(documents, 8, kShares, 4);
  EXPECT_EQ(a.surface.chance, b.surface.chance);
  EXPECT_EQ(a.topic.chance, b.topic.chance);
  EXPECT_EQ(a.concentration[0].chance, b.concentration[0].chance);
  EXPECT_NE(measure_layer(documents, 8, kShares, 5).surface.chance, a.surface.chance);
  EXPECT_THROW(measure_layer({}, 8, kShares, 0), ShapeError);
  const std::vector<DocumentPicks> empty{{0, {}}}, outside{{0, {{0, 8, 1}}}};
  EXPECT_THROW(measure_layer(empty, 8, kShares, 0), ShapeError);
  EXPECT_THROW(measure_layer(outside, 8, kShares, 0), ShapeError);
  EXPECT_THROW(mean_over_layers({}), ShapeError);
}

// Published tables of Student's t, two-sided 95 %.
TEST(ModularityMeasures, QuantilesOfStudentsT) {
  for (const auto& [freedom, quantile] :
       {std::pair{1, 12.7062}, std::pair{2, 4.3027}, std::pair{3, 3.1824}, std::pair{10, 2.2281}, std::pair{11, 2.2010},
        std::pair{15, 2.1314}, std::pair{30, 2.0423}, std::pair{120, 1.9799}, std::pair{1000000, 1.9600}})
    EXPECT_NEAR(student_quantile(freedom), quantile, 2e-4) << freedom;
  EXPECT_TRUE(std::isinf(student_quantile(0)));
}

TEST(ModularityMeasures, ContingencyOfAKnownTable) {
  Contingency table(2, 2);  // 3/8 1/8 / 1/8 3/8
  table.add(0, 0, 3), table.add(0, 1, 1), table.add(1, 0, 1), table.add(1, 1, 2), table.add(1, 1, 1);
  EXPECT_EQ(table.total(), 8);
  EXPECT_DOUBLE_EQ(table.row_entropy(), 1);
  EXPECT_DOUBLE_EQ(table.column_entropy(), 1);
  EXPECT_NEAR(table.information(), 1 - (-.75 * std::log2(.75) - .25 * std::log2(.25)), 1e-12);
  EXPECT_NEAR(table.pointwise(0, 0), std::log2(1.5), 1e-12);
  EXPECT_DOUBLE_EQ(table.row_surprise(0), 1);
  EXPECT_NEAR(table.miller_madow(), correction_bits(2 + 2 - 4 - 1, 8), 1e-12);
}

}  // namespace
}  // namespace emox
