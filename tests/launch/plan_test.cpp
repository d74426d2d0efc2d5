// `emox plan`: its formulas against counting every case, drawing at random, and what ops say of themselves in a real
// step; its seconds against sums by hand; what it refuses.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "launch/bench/step_bench.h"
#include "launch/config/recipe_file.h"
#include "launch/plan/run_plan.h"
#include "launch/plan/step_model.h"
#include "launch/run/run_start.h"
#include "model/training/training_step.h"
#include "model/transformer/flops.h"
#include "runtime/core/error.h"
#include "runtime/telemetry/spans.h"
#include "tests/launch/tiny_program.h"

namespace emox {
namespace {

ModelConfig small_model(std::int64_t routed, std::int64_t k) {
  ModelConfig m;
  m.shared_experts = 1, m.num_experts = routed + 1, m.top_k = k + 1;
  m.pool = PoolMode::Off;
  return m;
}

/// f(picks) for all sets of k of n.
template <typename F>
void for_all_picks(int n, int k, F&& f) {
  for (unsigned bits = 0; bits < 1U << n; ++bits)
    if (std::popcount(bits) == k) f(bits);
}

// Every set of picks of every sender, followed on its way.
TEST(PlanTraffic, VisitsAreTheMeanOfAllPicks) {
  struct Case {
    int n, k, ranks, a_node;
  };
  for (const Case& c : {Case{7, 3, 4, 2}, {8, 2, 4, 4}, {9, 4, 6, 3}, {6, 1, 3, 1}, {10, 3, 2, 2}})
    for (const bool two_level : {false, true}) {
      const int n = c.n, k = c.k, ranks = c.ranks, a_node = c.a_node;
      SCOPED_TRACE(testing::Message() << n << " experts, " << k << " picks, " << ranks << " ranks, nodes of " << a_node
                                      << (two_level ? ", two-level" : ", flat"));
      std::vector<int> rank_of;
      for (int r = 0; r < ranks; ++r)
        for (int e = 0; e < n / ranks + (r < n % ranks ? 1 : 0); ++e) rank_of.push_back(r);
      double visited = 0, nodes = 0, intra = 0, inter = 0, remote = 0, cases = 0;
      for (int sender = 0; sender < ranks; ++sender)
        for_all_picks(n, k, [&](unsigned picks) {
          ++cases;
          std::set<int> to, to_nodes;
          for (int e = 0; e < n; ++e)
            if ((picks >> e & 1U) != 0) {
              to.insert(rank_of[idx(e)]), to_nodes.insert(rank_of[idx(e)] / a_node);
              remote += rank_of[idx(e)] != sender;
            }
          visited += static_cast<double>(to.size()), nodes += static_cast<double>(to_nodes.size());
          for (const int r : to) {
            const bool here = r / a_node == sender / a_node;
            const int gateway = r / a_node * a_node + sender % a_node;
            if (here) intra += r != sender;
            if (!here && !two_level) ++inter;
            if (!here && two_level) intra += r != gateway;
          }
          if (two_level) inter += static_cast<double>(to_nodes.size() - to_nodes.count(sender / a_node));
        });
      const ExpectedVisits v = expected_visits(small_model(n, k), ranks, a_node, two_level);
      EXPECT_NEAR(v.ranks, visited / cases, 1e-9);
      EXPECT_NEAR(v.nodes, nodes / cases, 1e-9);
      EXPECT_NEAR(v.rows_intra, intra / cases, 1e-9);
      EXPECT_NEAR(v.rows_inter, inter / cases, 1e-9);
      EXPECT_NEAR(v.remote_picks, remote / cases, 1e-9);
    }
}

// Documents draw pools, tokens pick from them, one rank of four counts what it gets.
TEST(PlanTraffic, SpreadIsThatOfDrawnDocuments) {
  ModelConfig m = small_model(32, 3);
  std::mt19937 random(7);
  for (const std::int64_t pool : {4, 8, 32}) {
    m.pool = PoolMode::Fixed, m.pool_size = pool;
    constexpr int kDocuments = 12, kTokens = 20, kTrials = 3000;
    std::vector<int> experts(32);
    std::iota(experts.begin(), experts.end(), 0);
    double sum = 0, squares = 0;
    for (int trial = 0; trial < kTrials; ++trial) {
      int picks = 0;
      for (int d = 0; d < kDocuments; ++d) {
        std::shuffle(experts.begin(), experts.end(), random);
        for (int t = 0; t < kTokens; ++t) {
          std::shuffle(experts.begin(), experts.begin() + pool, random);
          for (int i = 0; i < 3; ++i) picks += experts[idx(i)] % 4 == 0;
        }
      }
      sum += picks, squares += static_cast<double>(picks) * picks;
    }
    const double mean = sum / kTrials, deviation = std::sqrt(squares / kTrials - mean * mean);
    EXPECT_NEAR(mean, kDocuments * kTokens * 3 / 4.0, 3 * deviation / std::sqrt(kTrials));
    // A standard deviation from so many draws has 1.3 % of its own; the formula lets tokens draw from all experts.
    EXPECT_NEAR(picks_spread(m, 4, kDocuments * kTokens, kTokens), deviation / mean, 0.07 * deviation / mean) << pool;
  }
}

StepShape whole_shape(const Recipe& r) {
  StepShape s = step_shape(r, 1, 1);
  s.document_tokens = 1e12;
  return s;
}

// The FLOPs of a real step, as its ops report them.
TEST(PlanWork, ProductsAreThoseOfAStep) {
  for (const bool moe : {true, false}) {
    Recipe r = bench_preset("small");
    r.model.d_model = 64, r.model.layers = 3, r.model.expert_ff = 48, r.model.vocab_size = 300;
    r.model.num_experts = moe ? 9 : 0, r.model.top_k = moe ? 4 : 1, r.model.pool_min = 4, r.model.pool_max = 8;
    r.model.shared_experts = moe ? 1 : 0;
    if (!moe) r.model.dense_ff = 80, r.model.pool = PoolMode::Off;
    r.model.balance_scope = BalanceScope::MicroBatch;
    r.train.batch_sequences = 4, r.train.micro_batch_sequences = 2;
    Session session(make_self_communicator(), 1);
    const auto step = bench_step(session, r, {.steps = 1, .warmup = 0, .documents = 1e-9}, true);
    double dense = 0, experts = 0, head = 0, attention = 0;
    for (const auto& op : step["ops"]) {
      if (op["gflop_per_s"].is_null()) continue;
      const double flops = op["gflop_per_s"].get<double>() * 1e9 * op["seconds"].get<double>();
      const auto name = op["op"].get<std::string>();
      (name.starts_with("lm_head")     ? head
       : name.starts_with("experts")   ? experts
       : name.starts_with("attention") ? attention
                                       : dense) += flops;
    }
    const StepWork w = step_work(r, whole_shape(r), DType::F32);
    EXPECT_NEAR(w.dense, dense, 1e-9 * dense) << moe;
    EXPECT_NEAR(w.experts, experts, 1e-9 * experts + 1) << moe;
    EXPECT_NEAR(w.head, head, 1e-9 * head) << moe;
    EXPECT_NEAR(w.attention, attention, 1e-6 * attention) << moe;
    EXPECT_NEAR(w.useful, step["flops"].get<double>(), 1e-6 * w.useful) << moe;
  }
}

// Documents that end with one chance in 100 at every token.
TEST(PlanWork, AttentionStaysInDocuments) {
  Recipe r = bench_preset("small");
  r.model.intra_document_attention = true;
  StepShape shape = whole_shape(r);
  const double whole = step_work(r, shape, DType::F32).attention;
  shape.document_tokens = 100;
  double context = 0, sum = 0, all = 0;
  for (std::int64_t t = 0; t < r.model.sequence_length; ++t) {
    context = 1 + 0.99 * context;  // a token sees itself, and what the one before saw unless a document ended there
    sum += context, all += static_cast<double>(t + 1);
  }
  EXPECT_NEAR(step_work(r, shape, DType::F32).attention / whole, sum / all, 1e-6);
}

Hardware round_hardware(bool gpu) {
  Hardware h;
  h.name = "round", h.gpu = gpu, h.precision = gpu ? DType::BF16 : DType::F32;
  h.ranks_per_node = 4;
  h.memory = {1e12, "measured", ""}, h.gemm = {1e12, "measured", ""}, h.peak = {2e12, "datasheet", ""};
  h.copy = {1e11, "measured", ""};
  h.ops_tag = "measured";
  h.ops = {{64, 0.5, 0.5, 0.5, 0.25, 0.5, 0.5, 1e-3}, {256, 1, 1, 1, 0.5, 1, 1, 3e-3}};
  h.same_node = {{1e10, "measured", ""}, {1e-5, "measured", ""}};
  h.other_nodes = {{1e9, "measured", ""}, {1e-4, "measured", ""}};
  h.write = {1e9, "measured", ""}, h.read = {2e9, "measured", ""};
  return h;
}

double seconds_of(const StepEstimate& e, const std::string& phase) {
  for (const PhaseEstimate& p : e.phases)
    if (p.name == phase) return p.seconds;
  return -1;
}

TEST(PlanTimes, RatesLieBetweenTheMeasuredWidths) {
  const Hardware h = round_hardware(false);
  EXPECT_DOUBLE_EQ(rates_at(h, 32).dense, 0.5);
  EXPECT_DOUBLE_EQ(rates_at(h, 64).attention, 0.25);
  EXPECT_NEAR(rates_at(h, 128).dense, 0.75, 1e-12);  // half way on a scale of powers
  EXPECT_NEAR(rates_at(h, 128).layer_s, 2e-3, 1e-12);
  EXPECT_DOUBLE_EQ(rates_at(h, 1024).experts, 1);
}

// A dense model of one layer, by hand: d = 64, f = 32, 100 words, 8 sequences of 16 tokens on one rank.
TEST(PlanTimes, ADenseStepByHand) {
  Recipe r;
  ModelConfig& m = r.model;
  m.d_model = 64, m.layers = 1, m.heads = 2, m.vocab_size = 100, m.sequence_length = 16, m.num_experts = 0, m.top_k = 1;
  m.dense_ff = 32, m.shared_experts = 0, m.pool = PoolMode::Off, m.intra_document_attention = false;
  r.train.batch_sequences = 8, r.train.micro_batch_sequences = 4, r.train.steps = 10;
  StepShape shape = step_shape(r, 1, 4);
  EXPECT_EQ(shape.micro_batches, 2);
  shape.local_elements = 1000, shape.owned_elements = 1000;
  const StepEstimate e = estimate_step(r, shape, round_hardware(false));
  // 128 tokens x 2 x 3 passes' worth: q, k, v, out 4 x 64^2, the feed-forward layer 3 x 64 x 32.
  EXPECT_NEAR(seconds_of(e, "dense products"), 128 * 6 * (4 * 64 * 64 + 3 * 64 * 32) / 0.5e12, 1e-15);
  EXPECT_NEAR(seconds_of(e, "LM head"), 128 * 6 * 100 * 64 / 0.5e12, 1e-15);
  // A token sees 8.5 others on average: scores and values, 2 x 64 each.
  EXPECT_NEAR(seconds_of(e, "attention"), 3 * 128 * 4 * 64 * 8.5 / 0.25e12, 1e-15);
  EXPECT_NEAR(seconds_of(e, "optimizer"), (1000 * 28 + 1000 * 8) / 0.5e11, 1e-15);
  EXPECT_NEAR(seconds_of(e, "launches, threads"), 1e-3 * 1 * 2 * 2, 1e-15);
  EXPECT_EQ(seconds_of(e, "experts"), -1);
  EXPECT_EQ(seconds_of(e, "gradients"), -1);
  double all = 0;
  for (const PhaseEstimate& p : e.phases) all += p.seconds;
  EXPECT_DOUBLE_EQ(e.step_s, all);
  EXPECT_EQ(e.tag, "measured");
  EXPECT_NEAR(e.band, 0.1, 1e-12);
}

// 8 routed experts over 4 ranks of 2 nodes, one pick: three quarters of the rows leave, two of three of these the node.
TEST(PlanTimes, TransfersByHand) {
  Recipe r;
  ModelConfig& m = r.model;
  m.d_model = 256, m.layers = 2, m.heads = 2, m.sequence_length = 64, m.num_experts = 8, m.shared_experts = 0,
  m.top_k = 1;
  m.expert_ff = 128, m.pool = PoolMode::Off;
  r.train.batch_sequences = 4, r.train.micro_batch_sequences = 1, r.train.steps = 10;
  r.parallel.expert_parallel = 4, r.parallel.dispatch = DispatchKind::Flat;
  StepShape shape = step_shape(r, 4, 2);
  shape.imbalance = 1;
  const DispatchBytes bytes = dispatch_bytes(r, shape, DType::F32);
  const double rows = 64 * 4 * 256 * 4, numbers = 64 * 0.75 * 12;  // tokens x trips x width x bytes
  EXPECT_NEAR(bytes.intra, 0.25 * rows + numbers / 3, 1e-6);
  EXPECT_NEAR(bytes.inter, 0.5 * rows + numbers * 2 / 3, 1e-6);
  shape.gradients = {2, 1'000'000, 3, 500'000};
  const Hardware h = round_hardware(false);
  const StepEstimate e = estimate_step(r, shape, h);
  // Links work at once, so the slower one counts; 4 exchanges a layer and one of counts.
  EXPECT_NEAR(seconds_of(e, "dispatch and combine"), 2 * bytes.inter / 1e9 + 2 * 5 * 1e-4, 1e-12);
  EXPECT_NEAR(seconds_of(e, "gradients"), 1e6 / 1e10 + 5e5 / 1e9 + 2 * 1e-5 + 2 * 1e-4 + 3 * 1.5e6 / 1e11, 1e-12);
  shape.imbalance = 2;
  EXPECT_NEAR(seconds_of(estimate_step(r, shape, h), "experts"), 2 * seconds_of(e, "experts"), 1e-15);
}

// On a GPU the shared expert hides rows on their way out, and switches say so.
TEST(PlanTimes, WhatIsHidden) {
  Recipe r = bench_preset("emo-1b14b-block");
  r.parallel.expert_parallel = 4;
  StepShape shape = step_shape(r, 4, 4);
  shape.gradients = {1, 100'000'000, 0, 0};
  const Hardware h = round_hardware(true);
  const StepEstimate hides = estimate_step(r, shape, h);
  r.parallel.overlap_experts = r.parallel.overlap_gradients = false;
  const StepEstimate shows = estimate_step(r, shape, h);
  EXPECT_GT(hides.phases.size(), 8U);
  for (std::size_t i = 0; i < hides.phases.size(); ++i)
    EXPECT_NEAR(hides.phases[i].seconds + hides.phases[i].hidden, shows.phases[i].seconds + shows.phases[i].hidden,
                1e-12);
  EXPECT_LT(seconds_of(hides, "dispatch and combine"), seconds_of(shows, "dispatch and combine"));
  EXPECT_LT(seconds_of(hides, "gradients"), seconds_of(shows, "gradients"));
  EXPECT_LT(hides.exposed_s, shows.exposed_s);
}

PlanRequest request_on(const Hardware& h, int ranks) {
  PlanRequest request;
  request.ranks = ranks, request.ranks_per_node = 4;
  request.hardware = h;
  return request;
}

Recipe planned_recipe() {
  Recipe r = bench_preset("small");
  r.run.device = DeviceKind::Cpu;
  r.parallel.expert_parallel = 2;
  return r;
}

// To the byte: what is needed fits, one byte less does not.
TEST(PlanRun, FitsWhatFits) {
  const Recipe r = planned_recipe();
  Hardware h = round_hardware(false);
  const auto plan = plan_run(r, request_on(h, 4));
  EXPECT_TRUE(plan["fits"].get<bool>());
  const auto needs = plan["fit"]["needs_bytes"].get<double>();
  EXPECT_GT(plan["receive_buffers"]["p999_bytes"], plan["receive_buffers"]["expected_bytes"]);
  EXPECT_NEAR(needs,
              plan["most"]["total"].get<double>() + plan["receive_buffers"]["p999_bytes"].get<double>() -
                  plan["receive_buffers"]["expected_bytes"].get<double>(),
              1);
  h.memory.value = 4 * (needs + 1);
  EXPECT_TRUE(plan_run(r, request_on(h, 4))["fits"].get<bool>());
  h.memory.value = 4 * (needs - 1);
  EXPECT_FALSE(plan_run(r, request_on(h, 4))["fits"].get<bool>());
  h.base = {2, "measured", ""}, h.memory.value = 4 * (needs + 1);
  EXPECT_FALSE(plan_run(r, request_on(h, 4))["fits"].get<bool>());
}

TEST(PlanRun, HoursAndTokensAreOfItsStep) {
  const auto plan = plan_run(planned_recipe(), request_on(round_hardware(false), 4));
  const double step = plan["step_s"].get<double>();
  EXPECT_NEAR(plan["tokens_per_s"].get<double>(), 8 * 512 / step, 1e-6);
  EXPECT_NEAR(plan["hours"].get<double>(), 1000 * step / 3600, 1e-9);
  EXPECT_NEAR(plan["rank_hours"].get<double>(), 4 * plan["hours"].get<double>(), 1e-9);
  EXPECT_TRUE(plan["energy_kwh"].is_null());
  EXPECT_NEAR(plan["checkpoint"]["save_s"].get<double>(), plan["checkpoint"]["bytes"].get<double>() / 1e9, 1e-9);
  EXPECT_NEAR(plan["checkpoint"]["load_s"].get<double>(), plan["checkpoint"]["bytes"].get<double>() / 2e9, 1e-9);
}

TEST(PlanRun, ASearchIsSortedAndSaysWhatIsRefused) {
  Recipe r = planned_recipe();
  r.model.num_experts = 4, r.model.top_k = 2, r.model.pool_min = 2, r.model.pool_max = 3;  // three routed experts
  const auto found = search_meshes(r, request_on(round_hardware(false), 4));
  ASSERT_GE(found["meshes"].size(), 2U);
  double before = 0;
  for (const auto& m : found["meshes"]) {
    EXPECT_GE(m["step_s"].get<double>(), before);
    before = m["step_s"].get<double>();
    Recipe one = r;
    one.parallel.expert_parallel = m["expert_parallel"], one.train.micro_batch_sequences = m["micro_batch_sequences"];
    one.parallel.dispatch = DispatchKind::Auto;
    EXPECT_EQ(plan_run(one, request_on(round_hardware(false), 4))["step_s"], m["step_s"]);
  }
  ASSERT_EQ(found["refused"].size(), 1U);  // three experts over four ranks
  EXPECT_EQ(found["refused"][0]["expert_parallel"], 4);
  EXPECT_NE(found["refused"][0]["why"].get<std::string>().find("3"), std::string::npos);
}

class PlanCommand : public test::TinyProgram {};

TEST_F(PlanCommand, SaysWhatIsWrong) {
  write();
  expect(emox("plan " + path_ + " --hardware h100"), 2, {"there is no hardware h100; did you mean h100-sxm?"});
  expect(emox("plan " + path_ + " --hardware nowhere/x.json"), 2, {"nowhere/x.json"});
  expect(emox("plan " + path_ + " --search"), 2, {"name the --hardware"});
  expect(emox("plan " + path_ + " --hardware h200 --run.device=cpu"), 2, {"hardware h200 is a GPU"});
  expect(emox("plan " + path_ + " --hardware h200 --train.precision=f32"), 2,
         {"the rates of hardware h200 are those of bf16", "train.precision = f32"});
  expect(emox("plan " + path_ + " --hardware h200 --imbalance 0.5"), 2, {"--imbalance = 0.5"});
  std::ofstream(directory_.path() / "bad.json") << "{";
  expect(emox("plan " + path_ + " --hardware " + (directory_.path() / "bad.json").string()), 2,
         {"bad.json is no JSON"});
}

// Measured here, and used.
TEST_F(PlanCommand, RatesOfThisMachineMakeAPlan) {
  write();
  const std::string file = (directory_.path() / "here.json").string();
  expect(emox("bench rates --widths 64 --steps 1 --dir " + directory_.path().string() + " --output " + file), 0,
         {"here.json"});
  expect(emox("bench rates --widths 64 --output " + file), 2, {"exists"});
  expect(emox("bench rates --widths sixty"), 2, {"--widths"});
  const Hardware h = load_hardware(file);
  EXPECT_EQ(h.ops.size(), 1U);
  EXPECT_EQ(h.gemm.tag, "measured");
  EXPECT_EQ(h.other_nodes.bytes_s.tag, "assumed");
  const nlohmann::json plan = json_of("plan " + path_ + " --hardware " + file);
  EXPECT_GT(plan.at("step_s"), 0);
  EXPECT_TRUE(plan.at("fits"));
  expect(emox("plan " + path_ + " --hardware " + file), 0, {"a step of", "fits"});
  expect(emox("plan " + path_ + " --search --ranks 2 --hardware " + file), 0, {"expert_parallel", "yes"});
}

}  // namespace
}  // namespace emox
