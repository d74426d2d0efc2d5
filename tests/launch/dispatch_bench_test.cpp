// `emox bench dispatch`: its formula against counting, its plans against an example by hand, its JSON as promised.
#include "launch/bench/dispatch_bench.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "launch/bench/homes_replay.h"
#include "parallel/expert/pool_trace.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "tests/support/support.h"

namespace emox {
namespace {

// The mean over all choices of k experts of a pool, one by one.
double counted_ranks(const std::vector<std::int64_t>& held, std::int64_t k) {
  std::vector<std::size_t> rank_of;
  for (std::size_t r = 0; r < held.size(); ++r) rank_of.insert(rank_of.end(), idx(held[r]), r);
  std::int64_t choices = 0, ranks = 0;
  for (unsigned chosen = 0; chosen < 1U << rank_of.size(); ++chosen) {
    if (__builtin_popcount(chosen) != k) continue;
    std::set<std::size_t> visited;
    for (std::size_t e = 0; e < rank_of.size(); ++e)
      if ((chosen >> e & 1) != 0) visited.insert(rank_of[e]);
    ++choices;
    ranks += static_cast<std::int64_t>(visited.size());
  }
  return static_cast<double>(ranks) / static_cast<double>(choices);
}

TEST(DispatchBench, ExpectedRanksIsTheMeanOverAllChoices) {
  for (const std::vector<std::int64_t>& held : std::vector<std::vector<std::int64_t>>{{1},
                                                                                      {7},
                                                                                      {1, 1},
                                                                                      {4, 4},
                                                                                      {0, 3},
                                                                                      {5, 0, 1},
                                                                                      {2, 2, 2, 2},
                                                                                      {1, 2, 3, 4},
                                                                                      {3, 3, 0, 3},
                                                                                      {1, 1, 1, 1, 1, 1, 1},
                                                                                      {10, 1},
                                                                                      {6, 5, 1}}) {
    std::int64_t pool = 0;
    for (const std::int64_t a : held) pool += a;
    for (std::int64_t k = 1; k <= pool; ++k)
      EXPECT_NEAR(expected_ranks(held, k), counted_ranks(held, k), 1e-10)
          << k << " of " << testing::PrintToString(held);
  }
}

// R (1 - C(n - m, k) / C(n, k)), every rank holding m of n.
double even_ranks(int ranks, std::int64_t m, std::int64_t n, std::int64_t k) {
  double none = 1;
  for (std::int64_t i = 0; i < k; ++i)
    none *= std::max<double>(0, static_cast<double>(n - m - i)) / static_cast<double>(n - i);
  return ranks * (1 - none);
}

// 8 experts on 4 ranks, 2 to a node; picks of 2; 5 tokens in 4 documents. Rank by rank, token by token:
//   rank 0  {0,1,2}: 0 1 -> rank 0;          1 2 -> ranks 0, 1: a row to rank 1 with one pick
//   rank 1  all:     2 7 -> ranks 1, 3: a row to the other node, one pick
//           {4,6}:   4 6 -> ranks 2, 3: two rows to one other node, two picks
//   rank 2  {4,5}:   4 5 -> rank 2
//   rank 3  nothing
const std::vector<std::int32_t> kRankOf{0, 0, 1, 1, 2, 2, 3, 3};
std::vector<PlannedTokens> example() {
  return {{{0, 2}, {1, 1, 1, 0, 0, 0, 0, 0}, {0, 1, 1, 2}},
          {{0, 1, 2}, {1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 1, 0}, {2, 7, 4, 6}},
          {{0, 1}, {0, 0, 0, 0, 1, 1, 0, 0}, {4, 5}},
          {{0}, {}, {}}};
}
constexpr std::int64_t kWidth = 8;

void expect_example(const DispatchTraffic& t, std::int64_t times) {
  EXPECT_EQ(t.tokens, 5 * times);
  EXPECT_EQ(t.documents, 4 * times);
  EXPECT_DOUBLE_EQ(t.ranks_per_token, 8.0 / 5);
  EXPECT_DOUBLE_EQ(t.nodes_per_token, 6.0 / 5);
  EXPECT_DOUBLE_EQ(t.rows_sent_per_token, 4.0 / 5);
  EXPECT_DOUBLE_EQ(t.node_rows_sent_per_token, 2.0 / 5);
  EXPECT_DOUBLE_EQ(t.ranks_per_document, (2 + 4 + 2 + 1) / 4.0);
  EXPECT_DOUBLE_EQ(t.rows_max_over_mean, 3 / 2.5);  // 3, 2, 3, 2 expert rows
  // 4 rows of 8 floats travel four times; for 4 picks an expert number, a gate and its gradient.
  EXPECT_DOUBLE_EQ(t.bytes_per_token, (4 * 4 * kWidth * 4 + 4 * 12) / 5.0);
  EXPECT_GT(t.plan_ns_per_row, 0);
}

TEST(DispatchBench, PlansTheExample) {
  std::vector<PlannedTokens> tokens = example();
  expect_example(plan_traffic({4, 1, 2}, kRankOf, tokens, 2, kWidth), 1);
  // Replicas do not meet.
  const std::vector<PlannedTokens> once = tokens;
  tokens.insert(tokens.end(), once.begin(), once.end());
  expect_example(plan_traffic({4, 2, 2}, kRankOf, tokens, 2, kWidth), 2);
}

TEST(DispatchBench, WithoutPoolsADocumentReachesAllRanks) {
  std::vector<PlannedTokens> tokens = example();
  for (PlannedTokens& t : tokens) t.pools.clear();
  const DispatchTraffic t = plan_traffic({4, 1, 2}, kRankOf, tokens, 2, kWidth);
  EXPECT_DOUBLE_EQ(t.ranks_per_document, 4);
  EXPECT_DOUBLE_EQ(t.ranks_per_token, 8.0 / 5);
}

TEST(DispatchBench, OneRankSendsNothing) {
  const DispatchTraffic t =
      plan_traffic({1, 1, 8}, std::vector<std::int32_t>(8, 0), std::vector{example()[1]}, 2, kWidth);
  EXPECT_EQ(t.tokens, 2);
  EXPECT_EQ(t.ranks_per_token, 1);
  EXPECT_EQ(t.rows_sent_per_token, 0);
  EXPECT_EQ(t.bytes_per_token, 0);
}

// The example's documents as two layers of a recording; the second has every document on its rank's own experts.
void record(const std::filesystem::path& file) {
  PoolTraceWriter writer(file, {8, 2, 2});
  Context ctx;
  const Tensor segments = test::tensor_of<std::int32_t>({0, 2, 3, 4, 5}, {5});
  const std::vector<std::uint8_t> pools{1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,
                                        0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0};
  const Tensor pool = test::tensor_of(pools, {4, 8});
  writer.write(ctx, 1, 0, test::tensor_of<std::int32_t>({0, 1, 1, 2, 2, 7, 4, 5, 4, 6}, {5, 2}), {pool, segments});
  writer.write(ctx, 1, 1, test::tensor_of<std::int32_t>({0, 1, 0, 1, 2, 3, 4, 5, 6, 7}, {5, 2}), {{}, segments});
}

TEST(DispatchBench, ReplaysARecording) {
  const test::TemporaryDirectory folder;
  const auto file = folder.path() / "pools";
  record(file);
  // Dealt out in turn: the document of {4,6} comes to rank 3, and sends a row less.
  const auto r = replay_dispatch(file, {4, 1, 2}, {.width = kWidth});
  ASSERT_EQ(r["rows"].size(), 2U);
  EXPECT_EQ(r["rows"][0]["tokens"], 5);
  EXPECT_EQ(r["rows"][0]["documents"], 4);
  EXPECT_EQ(r["rows"][0]["documents_reused"], false);
  EXPECT_DOUBLE_EQ(r["rows"][0]["ranks_per_token"].get<double>(), 8.0 / 5);
  EXPECT_DOUBLE_EQ(r["rows"][0]["rows_sent_per_token"].get<double>(), 3.0 / 5);
  EXPECT_DOUBLE_EQ(r["rows"][0]["node_rows_sent_per_token"].get<double>(), 1.0 / 5);
  EXPECT_DOUBLE_EQ(r["rows"][0]["ranks_per_document"].get<double>(), 9.0 / 4);
  EXPECT_DOUBLE_EQ(r["rows"][1]["ranks_per_token"].get<double>(), 1);
  EXPECT_DOUBLE_EQ(r["rows"][1]["rows_sent_per_token"].get<double>(), 0);
  EXPECT_DOUBLE_EQ(r["rows"][1]["ranks_per_document"].get<double>(), 4);
  EXPECT_DOUBLE_EQ(r["mean"]["ranks_per_token"].get<double>(), 6.5 / 5);
  EXPECT_DOUBLE_EQ(r["mean"]["ranks_per_document"].get<double>(), 25.0 / 8);
  // More ranks than documents.
  const auto many = replay_dispatch(file, {8, 2, 2}, {.placement = "random", .placement_seed = 3, .width = kWidth});
  EXPECT_EQ(many["rows"][0]["documents_reused"], true);
  EXPECT_EQ(many["rows"][0]["documents"], 16);
  EXPECT_THROW(replay_dispatch(file, {9, 1, 2}, {.width = kWidth}), UsageError);
  EXPECT_THROW(replay_dispatch(folder.path() / "none", {4, 1, 2}, {.width = kWidth}), UsageError);
  EXPECT_THROW(replay_homes(file, {4, 1, 2}, {.width = kWidth}), UsageError);  // it has no tokens
}

// Two sequences of two tokens a micro-batch, of words that tell where their picks are: rank 0 has experts 0 and 1.
TEST(DispatchBench, ReplaysHomes) {
  const test::TemporaryDirectory folder;
  const auto file = folder.path() / "pools";
  {
    PoolTraceWriter writer(file, {4, 2, 1, false, 9});
    Context ctx;
    const Tensor segments = test::tensor_of<std::int32_t>({0, 2, 4}, {3});
    const Tensor to_other = test::tensor_of<std::int32_t>({2, 3, 2, 0, 0, 1, 1, 0}, {4, 2});
    for (int i = 0; i < 8; ++i) writer.write(ctx, i, 0, to_other, {{}, segments}, {2, {7, 8, 1, 2}});
  }
  const auto r = replay_homes(file, {2, 1, 1}, {.placement = "block", .width = kWidth, .sequences = 1});
  EXPECT_EQ(r["micro_batches"], 4);
  EXPECT_EQ(r["sequences_reused"], false);
  const auto &turn = r["rows"][1], &learned = r["rows"][2], &hindsight = r["rows"][3];
  // In turn both sequences are on the wrong rank and every token sends a row. At home only {2, 0} does, for expert 0.
  EXPECT_DOUBLE_EQ(turn["ranks_per_token"].get<double>(), 5 / 4.0);
  EXPECT_DOUBLE_EQ(turn["rows_sent_per_token"].get<double>(), 4 / 4.0);
  EXPECT_DOUBLE_EQ(turn["bytes_between_nodes"].get<double>(), 16.0 * kWidth);
  EXPECT_DOUBLE_EQ(hindsight["rows_sent_per_token"].get<double>(), 1 / 4.0);
  EXPECT_DOUBLE_EQ(learned["rows_sent_per_token"].get<double>(), 1 / 4.0);
  EXPECT_DOUBLE_EQ(hindsight["node_rows_sent_per_token"].get<double>(), 1 / 4.0);
  EXPECT_DOUBLE_EQ(hindsight["bytes_one_row_a_pick"].get<double>(), 16.0 * kWidth / 4);
  EXPECT_DOUBLE_EQ(learned["load_max_over_mean"].get<double>(), 5 / 4.0);
  EXPECT_DOUBLE_EQ(r["learned_share_of_hindsight"].get<double>(), 1);
  // More ranks than sequences: they are used again.
  const auto many = replay_homes(file, {2, 512, 8}, {.placement = "affinity", .width = kWidth, .sequences = 1});
  EXPECT_EQ(many["micro_batches"], 1);
  EXPECT_EQ(many["sequences_reused"], true);
  EXPECT_NE(homes_table(many).find("512 replica(s); sequences are used again"), std::string::npos);
  EXPECT_THROW(replay_homes(file, {5, 1, 8}, {}), UsageError);
}

nlohmann::json default_table() {
  const auto r = test::run_command(std::string(EMOX_BINARY) + " bench dispatch --json");
  EXPECT_EQ(r.exit_code, 0) << r.output;
  std::istringstream lines(r.output);
  std::string last;
  for (std::string line; std::getline(lines, line);) last = line;
  return nlohmann::json::parse(last);
}

void expect_promised_keys(const nlohmann::json& row) {
  for (const char* key : {"expert_parallel", "experts", "top_k"}) EXPECT_TRUE(row.at(key).is_number_integer()) << key;
  for (const char* key : {"ranks_per_token", "nodes_per_token", "rows_sent_per_token", "bytes"})
    EXPECT_TRUE(row.at(key).is_number()) << key;
  EXPECT_EQ(row.at("experts").get<int>() % row.at("expert_parallel").get<int>(), 0);
  const nlohmann::json& pool = row.at("pool");
  EXPECT_TRUE(pool.is_null() || pool.is_number_integer() || pool == "8-128") << pool;
  EXPECT_TRUE(row.at("placement") == "random" || row.at("placement") == "clustered") << row.at("placement");
}

void expect_within(const nlohmann::json& row, const char* key, double want) {
  EXPECT_NEAR(row.at(key).get<double>(), want, 0.02 * want) << key << " of " << row.dump();
}

// Formulas of our own: (2) for random placement; clustered, a pool fills ranks from its first one on.
double ranks_by_formula(const nlohmann::json& row, int ranks_a_part) {
  const int ep = row.at("expert_parallel").get<int>(), parts = (ep + ranks_a_part - 1) / ranks_a_part;
  const std::int64_t n = row.at("experts").get<std::int64_t>(), k = row.at("top_k").get<std::int64_t>(), m = n / parts;
  if (row.at("placement") == "random") return even_ranks(parts, m, n, k);
  const std::int64_t pool = row.at("pool").get<std::int64_t>(), full = pool / m;
  return full == 0 ? 1 : even_ranks(static_cast<int>(full), m, pool, k);
}

TEST(DispatchBench, TheTableIsWhatTheFormulasSay) {
  const nlohmann::json table = default_table();
  std::set<std::string> seen;
  for (const nlohmann::json& row : table.at("rows")) {
    expect_promised_keys(row);
    seen.insert(row["expert_parallel"].dump() + row["pool"].dump() + row["placement"].get<std::string>());
    for (const char* key : {"ranks_per_token", "nodes_per_token", "ranks_per_document"})
      expect_within(row, key, row.at(std::string("formula_") + key).get<double>());
    if (row["pool"] != "8-128" || row["placement"] == "random") {
      expect_within(row, "ranks_per_token", ranks_by_formula(row, 1));
      expect_within(row, "nodes_per_token", ranks_by_formula(row, 8));
    }
    const double ep = row["expert_parallel"].get<double>(), k = row["top_k"].get<double>();
    if (row["placement"] == "random") {
      // A rank's own experts are as likely as any other's.
      expect_within(row, "rows_sent_per_token", ranks_by_formula(row, 1) * (1 - 1 / ep));
      expect_within(row, "bytes", 16 * 2048 * ranks_by_formula(row, 1) * (1 - 1 / ep) + 12 * k * (1 - 1 / ep));
    } else {
      EXPECT_LE(row["ranks_per_token"].get<double>(),
                1.02 * even_ranks(static_cast<int>(ep), 128 / static_cast<int>(ep), 128, 8));
    }
  }
  EXPECT_EQ(seen.size(), table.at("rows").size()) << "a row twice";
  for (const char* ep : {"2", "4", "8", "16", "32", "64"}) {
    for (const char* pool : {"16", "32", "64", "\"8-128\""})
      for (const char* placement : {"random", "clustered"})
        EXPECT_EQ(seen.count(std::string(ep) + pool + placement), 1U);
    EXPECT_EQ(seen.count(std::string(ep) + "nullrandom"), 1U);
  }
  for (const nlohmann::json& row : table.at("planning")) EXPECT_GT(row.at("plan_ns_per_row").get<double>(), 0);
}

}  // namespace
}  // namespace emox
