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
#include "runtime/core/accelerator.h"
#include "runtime/core/error.h"
#include "runtime/rng/philox.h"

namespace emox {
namespace {

using Clock = std::chrono::steady_clock;

// Documents of geometric length, `documents` a sequence on average; three tokens of four come from the document's own
// window of the vocabulary.
std::vector<std::vector<std::int32_t>> synthetic_sequences(const Recipe& r, double documents, std::int64_t step,
                                                           std::int64_t begin, std::int64_t end) {
  const Philox philox(static_cast<std::uint64_t>(r.run.seed), RngPurpose::Test);
  const std::int64_t length = r.model.sequence_length, eos = r.data.eos_id(),
                     window = std::max<std::int64_t>(1, eos / 16);
  const double stop = std::min(1.0, documents / static_cast<double>(length));
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

/// Null where there is nothing to be a share of.
nlohmann::ordered_json share_or_null(double part, double whole) {
  return whole > 0 ? nlohmann::ordered_json(part / whole) : nlohmann::ordered_json(nullptr);
}

/// Of a GPU: what tensors took at most and what ops share besides, and all that is taken there; null on the CPU.
nlohmann::ordered_json device_memory(const Context& ctx, std::int64_t peak) {
  if (ctx.queue == nullptr) return nullptr;
  const DeviceProperties p = cuda::accelerator()->properties(ctx.device.index);
  return {{"tensors_peak", peak}, {"op_scratch", ctx.queue->counters().workspace}, {"in_use", p.memory - p.free}};
}

/// What an op table is of.
struct OpTable {
  int steps = 1;
  double step_s = 0, gemm = 0, copy = 0;         ///< limits: FLOP/s, bytes/s
  double attention = 0, attention_backward = 0;  ///< FLOPs of a step: where documents end is not read from a device
};

nlohmann::ordered_json op_table(Telemetry& telemetry, const OpTable& of) {
  const auto& [steps, step_s, gemm, copy, attention, attention_backward] = of;
  std::vector<std::pair<double, nlohmann::ordered_json>> rows;
  for (const auto& [name, total] : telemetry.totals()) {
    if (name.starts_with("phase.") || name.starts_with("layer.") || name.starts_with("comm.")) continue;
    SpanTotal t = total;
    if (t.flops == 0 && name == "attention") t.flops = attention * steps;
    if (t.flops == 0 && name == "attention_backward") t.flops = attention_backward * steps;
    const double limit = t.flops > 0 ? t.flops / gemm : t.bytes / copy;  // 0: the op says of neither what it takes
    rows.push_back(
        {t.seconds,
         {{"op", name},
          {"calls", t.calls / steps},
          {"seconds", t.seconds / steps},
          {"share", t.seconds / steps / step_s},
          {"gflop_per_s", t.flops > 0 ? share_or_null(t.flops / 1e9, t.seconds) : nlohmann::ordered_json(nullptr)},
          {"gb_per_s", t.bytes > 0 ? share_or_null(t.bytes / 1e9, t.seconds) : nlohmann::ordered_json(nullptr)},
          {"limit", t.flops > 0 ? "gemm" : "memory"},
          {"fraction_of_limit", limit > 0 ? share_or_null(limit, t.seconds) : nlohmann::ordered_json(nullptr)}}});
  }
  std::sort(rows.begin(), rows.end(), [](const auto& x, const auto& y) { return x.first > y.first; });
  auto table = nlohmann::ordered_json::array();
  for (auto& row : rows) table.push_back(std::move(row.second));
  return table;
}

/// Layers of the released EMO with its vocabulary: what one GPU holds of it, at the micro-batch that it was trained
/// with. Four of those make a step, so that the optimizer, which works at EP = 1 on 128 experts a layer, has a usual
/// share.
Recipe emo_block() {
  Recipe r;
  ModelConfig& m = r.model;
  m.vocab_size = 100352;
  m.d_model = 2048;
  m.layers = 2;
  m.heads = 16;
  m.num_experts = 128;
  m.top_k = 8;
  m.shared_experts = 1;
  m.expert_ff = 1024;
  m.sequence_length = 4096;
  m.intra_document_attention = true;
  m.pool = PoolMode::Uniform;
  m.pool_min = m.top_k;
  m.pool_max = m.num_experts;
  m.balance_scope = BalanceScope::MicroBatch;
  r.data.tokenizer = TokenizerKind::Dolma2;
  r.train.batch_sequences = 16;
  r.train.micro_batch_sequences = 4;
  return r;
}

}  // namespace

Recipe bench_preset(const std::string& name) {
  require<UsageError>(name == "small" || name == "mid" || name == "emo-1b14b-block",
                      "unknown preset {}: use small, mid or emo-1b14b-block", name);
  Recipe r;
  if (name == "emo-1b14b-block") {
    r = emo_block();
  } else {
    const bool small = name == "small";
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
  }
  r.run.name = name;
  r.train.steps = 1000;
  r.data.source = {"synthetic:1:synthetic"};
  return r;
}

nlohmann::ordered_json bench_step(Session& session, const Recipe& recipe, const StepBenchOptions& options, bool ops) {
  Context& ctx = session.ctx();
  Sharding sharding(session.comm(), recipe.model, recipe.parallel);
  LanguageModel model(recipe.model, ctx, true, sharding.experts());
  const auto pools = make_pool_sizes(recipe.model, 0);
  TrainingStep step(ctx, step_config(recipe), model, sharding.mesh(), {.pools = pools.get(), .label_count = 1});
  step.initialize_weights(0);
  session.telemetry().watch_device_ops(ops);
  std::vector<double> rates, times, gradient_times;
  std::int64_t peak = 0;
  const auto measure_rate = [&] {
    for (int i = 0; i < 7; ++i) rates.push_back(gemm_rate(ctx, 1));
  };
  measure_rate();
  reset_memory_peak();
  std::vector<double> flops, attention;
  for (int i = 0; i < options.warmup + options.steps; ++i) {
    if (i == options.warmup) {
      session.telemetry().totals();  // what a device has done since the last look, too, is warming up
      session.telemetry().clear();
    }
    const auto tokens = synthetic_sequences(recipe, options.documents, i + 1, step.share_begin(), step.share_end());
    std::vector<SequenceInput> inputs;
    for (std::size_t s = 0; s < tokens.size(); ++s)
      inputs.push_back({tokens[s], {}, step.share_begin() + static_cast<std::int64_t>(s), 0});
    const MicroBatch whole = make_micro_batch(recipe.model, recipe.data.eos_id(), inputs);
    session.comm().barrier();
    const auto start = Clock::now();
    const StepMetrics m = step.compute_gradients(i + 1, inputs);  // returns when they are there
    const double gradients_s = std::chrono::duration<double>(Clock::now() - start).count();
    step.update(i + 1, 1e-3 * std::min(1.0, (i + 1) / 10.0), m);
    synchronize(ctx);
    const double whole_s = std::chrono::duration<double>(Clock::now() - start).count();
    peak = std::max(peak, memory_stats().peak);
    if (i < options.warmup) continue;
    times.push_back(whole_s);
    gradient_times.push_back(gradients_s);
    rates.push_back(gemm_rate(ctx, 1));  // between the steps too: the clock of a shared machine drifts
    reset_memory_peak();
    flops.push_back(step_flops(recipe.model, whole.tokens, whole.attention_segments));
    attention.push_back(flops.back() - step_flops(recipe.model, whole.tokens, {}));
  }
  measure_rate();
  const double step_s = median(times), gradients_s = median(gradient_times), work = median(flops), rate = median(rates);
  struct rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  nlohmann::ordered_json phases;
  for (const char* name : {"forward", "backward", "dispatch", "combine", "optimizer", "reduce"})
    phases[name] = session.telemetry().seconds(std::string("phase.") + name) / options.steps;
  // Seconds of the parts of a layer, and what the MoE layers spend on anything but experts: router, pools, plans, the
  // permutation of rows and their way back.
  nlohmann::ordered_json layers = nlohmann::ordered_json::object();
  double routing = 0, experts = 0, comm = 0;
  for (const auto& [name, total] : session.telemetry().totals()) {
    const double seconds = total.seconds / options.steps;
    if (name.starts_with("comm.")) comm += seconds;
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
                                {"gradients_s", gradients_s},
                                {"update_s", step_s - gradients_s},
                                {"gemm_fraction", work / rate / step_s},
                                {"gradients_gemm_fraction", work / rate / gradients_s},
                                {"flops", work * session.comm().size()},
                                {"peak_rss_bytes", usage.ru_maxrss * 1024},
                                {"tensors_peak_bytes", peak},
                                {"device_memory", device_memory(ctx, peak)},
                                {"threads", ctx.threads},
                                {"ranks", session.comm().size()},
                                {"parameters", model.parameters().element_count()},
                                {"comm_s", comm},
                                {"phase_s", phases},
                                {"layer_s", layers},
                                {"routing_share", share_or_null(routing, routing + experts)},
                                {"gemm_gflops", rate / 1e9},
                                {"steps", options.steps},
                                {"preset", recipe.run.name},
                                {"precision", name_of(ctx.activations)},
                                {"processor", device_name(ctx)}};
  if (ops) {
    const double copy = copy_rate(ctx);  // after the steps: it takes memory of its own
    out["copy_gb_s"] = copy / 1e9;
    const double once = median(attention);  // a third of it forward
    out["ops"] = op_table(session.telemetry(), {options.steps, step_s, rate, copy,
                                                once / 3 * (step.recomputes_forward() ? 2 : 1), once * 2 / 3});
  }
  return out;
}

}  // namespace emox
