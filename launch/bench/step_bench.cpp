#include "launch/bench/step_bench.h"
#include "launch/run/run_start.h"

#include <sys/resource.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

#include "launch/bench/median.h"
#include "launch/run/gemm_rate.h"
#include "launch/run/sharding.h"
#include "model/training/training_step.h"
#include "model/transformer/flops.h"
#include "runtime/core/error.h"
#include "runtime/ops/basic.h"
#include "runtime/rng/philox.h"

namespace emox {
namespace {

using Clock = std::chrono::steady_clock;

// Documents of geometric length; three tokens of four come from the document's own window of the vocabulary.
std::vector<std::vector<std::int32_t>> synthetic_sequences(const Recipe& r, std::int64_t step, std::int64_t begin,
                                                           std::int64_t end) {
  const Philox philox(static_cast<std::uint64_t>(r.run.seed), RngPurpose::Test);
  const std::int64_t length = r.model.sequence_length, eos = r.data.eos_id(),
                     window = std::max<std::int64_t>(1, eos / 16);
  const double stop = std::min(1.0, 4.0 / static_cast<double>(length));
  std::vector<std::vector<std::int32_t>> sequences;
  for (std::int64_t s = begin; s < end; ++s) {
    std::vector<std::int32_t> tokens;
    std::int64_t base = 0;
    bool fresh = true;
    for (std::int64_t t = 0; t < length; ++t) {
      const PhiloxCounter at{static_cast<std::uint32_t>(step), static_cast<std::uint32_t>(s),
                             static_cast<std::uint32_t>(t), 0};
      const auto w = philox.words(at[0], at[1], at[2], 1);
      if (fresh) base = w[3] % (eos - window + 1);
      fresh = philox.uniform(at) < stop;
      tokens.push_back(static_cast<std::int32_t>(fresh ? eos : w[0] % 4 != 0 ? base + w[1] % window : w[2] % eos));
    }
    sequences.push_back(std::move(tokens));
  }
  return sequences;
}

// Bytes a second of a large copy, read and write counted: the limit of ops that only move data.
double copy_rate(Context& ctx) {
  Context quiet = ctx;
  quiet.telemetry = nullptr;
  const std::int64_t n = 32 << 20;
  const Tensor a(ctx.device, DType::F32, {n}), b(ctx.device, DType::F32, {n});
  std::vector<double> rates;
  for (int i = 0; i < 6; ++i) {
    const auto start = Clock::now();
    ops::copy(quiet, b, a);
    rates.push_back(8.0 * static_cast<double>(n) / std::chrono::duration<double>(Clock::now() - start).count());
  }
  return median(rates);
}

/// Null where there is nothing to be a share of.
nlohmann::ordered_json share_or_null(double part, double whole) {
  return whole > 0 ? nlohmann::ordered_json(part / whole) : nlohmann::ordered_json(nullptr);
}

nlohmann::ordered_json op_table(const Telemetry& telemetry, int steps, double step_s, double gemm, double copy) {
  std::vector<std::pair<double, nlohmann::ordered_json>> rows;
  for (const auto& [name, t] : telemetry.totals()) {
    if (name.starts_with("phase.") || name.starts_with("layer.") || name.starts_with("comm.")) continue;
    const double limit = t.flops > 0 ? t.flops / gemm : t.bytes / copy;  // 0: the op says of neither what it takes
    rows.push_back(
        {t.seconds,
         {{"op", name},
          {"calls", t.calls / steps},
          {"seconds", t.seconds / steps},
          {"share", t.seconds / steps / step_s},
          {"limit", t.flops > 0 ? "gemm" : "memory"},
          {"fraction_of_limit", limit > 0 ? share_or_null(limit, t.seconds) : nlohmann::ordered_json(nullptr)}}});
  }
  std::sort(rows.begin(), rows.end(), [](const auto& x, const auto& y) { return x.first > y.first; });
  auto table = nlohmann::ordered_json::array();
  for (auto& row : rows) table.push_back(std::move(row.second));
  return table;
}

}  // namespace

Recipe bench_preset(const std::string& name) {
  require<UsageError>(name == "small" || name == "mid", "unknown preset {}: use small or mid", name);
  const bool small = name == "small";
  Recipe r;
  r.run.name = name;
  ModelConfig& m = r.model;
  m.vocab_size = small ? 257 : 32000;
  m.d_model = small ? 256 : 512;
  m.layers = small ? 6 : 8;
  m.heads = small ? 4 : 8;
  m.num_experts = small ? 32 : 64;
  m.top_k = small ? 4 : 8;
  m.shared_experts = 1;
  m.expert_ff = 256;
  m.sequence_length = small ? 512 : 1024;
  m.pool = PoolMode::Uniform;
  m.pool_min = m.top_k;
  m.pool_max = m.num_experts;
  r.train.batch_sequences = small ? 8 : 4;
  r.train.micro_batch_sequences = r.train.batch_sequences;
  r.train.steps = 1000;
  r.data.source = {"synthetic:1:synthetic"};
  return r;
}

nlohmann::ordered_json bench_step(Session& session, const Recipe& recipe, const StepBenchOptions& options, bool ops) {
  Context& ctx = session.ctx();
  Sharding sharding(session.comm(), recipe.model, recipe.parallel);
  LanguageModel model(recipe.model, ctx, true, sharding.experts());
  model.initialize(ctx, 0);
  const auto pools = make_pool_sizes(recipe.model, 0);
  TrainingStep step(ctx, step_config(recipe), model, sharding.mesh(), {.pools = pools.get(), .label_count = 1});
  std::vector<double> rates, times;
  const auto measure_rate = [&] {
    for (int i = 0; i < 7; ++i) rates.push_back(gemm_rate(ctx, 1));
  };
  measure_rate();
  std::vector<double> flops;
  for (int i = 0; i < options.warmup + options.steps; ++i) {
    if (i == options.warmup) session.telemetry().clear();
    const auto tokens = synthetic_sequences(recipe, i + 1, step.share_begin(), step.share_end());
    std::vector<SequenceInput> inputs;
    for (std::size_t s = 0; s < tokens.size(); ++s)
      inputs.push_back({tokens[s], {}, step.share_begin() + static_cast<std::int64_t>(s), 0});
    const MicroBatch whole = make_micro_batch(recipe.model, recipe.data.eos_id(), inputs);
    session.comm().barrier();
    const auto start = Clock::now();
    const StepMetrics m = step.compute_gradients(i + 1, inputs);
    step.update(i + 1, 1e-3 * std::min(1.0, (i + 1) / 10.0), m);
    if (i < options.warmup) continue;
    times.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    rates.push_back(gemm_rate(ctx, 1));  // between the steps too: the clock of a shared machine drifts
    flops.push_back(step_flops(recipe.model, whole.tokens, whole.attention_segments));
  }
  measure_rate();
  const double step_s = median(times), work = median(flops), rate = median(rates);
  struct rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  nlohmann::ordered_json phases;
  for (const char* name : {"forward", "backward", "dispatch", "combine", "optimizer", "reduce"})
    phases[name] = session.telemetry().seconds(std::string("phase.") + name) / options.steps;
  // Seconds of the parts of a layer, and what the MoE layers spend on anything but experts: router, pools, plans, the
  // permutation of rows and their way back.
  nlohmann::ordered_json layers = nlohmann::ordered_json::object();
  double routing = 0, experts = 0;
  for (const auto& [name, total] : session.telemetry().totals()) {
    const double seconds = total.seconds / options.steps;
    if (name.starts_with("layer.")) layers[name.substr(6)] = seconds;
    if (name == "layer.router" || name == "layer.router_backward" || name == "phase.dispatch" ||
        name == "phase.combine")
      routing += seconds;
    if (name.starts_with("layer.") && name.find("expert") != std::string::npos) experts += seconds;
  }
  nlohmann::ordered_json out = {{"step_s", step_s},
                                {"step_min_s", *std::min_element(times.begin(), times.end())},
                                {"step_max_s", *std::max_element(times.begin(), times.end())},
                                {"tokens_per_s", static_cast<double>(recipe.tokens_per_step()) / step_s},
                                {"gemm_floor_s", work / rate},
                                {"ratio", step_s * rate / work},
                                {"flops", work * session.comm().size()},
                                {"peak_rss_bytes", usage.ru_maxrss * 1024},
                                {"threads", ctx.threads},
                                {"ranks", session.comm().size()},
                                {"phase_s", phases},
                                {"layer_s", layers},
                                {"routing_share", share_or_null(routing, routing + experts)},
                                {"gemm_gflops", rate / 1e9},
                                {"steps", options.steps},
                                {"preset", recipe.run.name},
                                {"processor", processor_name()}};
  if (ops) {
    const double copy = copy_rate(ctx);
    out["copy_gb_s"] = copy / 1e9;
    out["ops"] = op_table(session.telemetry(), options.steps, step_s, rate, copy);
  }
  return out;
}

}  // namespace emox
