#include "launch/plan/run_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "launch/plan/memory.h"
#include "launch/plan/state_plan.h"
#include "launch/plan/step_model.h"
#include "model/transformer/parameter_count.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

using PlanJson = nlohmann::ordered_json;

/// Ranks fail about once in so many hours each: 419 unexpected interruptions of 16,384 GPUs in 54 days (Llama 3,
/// arXiv:2407.21783, section 3.3.4).
constexpr double kRankHoursToFailure = 50'000;

/// What the tensors that hold arriving rows take in all layers, at the mean and where documents choose unluckily.
PlanJson receive_buffers(const Recipe& recipe, const StepShape& shape, DType activations) {
  const ModelConfig& m = recipe.model;
  if (!m.is_moe() || shape.expert_parallel < 2) return {{"expected_bytes", 0}, {"p999_bytes", 0}};
  const auto tokens =
      static_cast<double>(std::min(shape.sequences, recipe.train.micro_batch_sequences) * m.sequence_length);
  const double picks = tokens * static_cast<double>(m.routed_top_k());
  const auto d = static_cast<double>(m.d_model), f = static_cast<double>(m.expert_ff);
  const auto element = static_cast<double>(size_of(activations));
  const double bytes = picks * (static_cast<double>(m.layers) * ((d + 2 * f) * element + 4) + (d + f) * element);
  const double spread = picks_spread(m, shape.expert_parallel, tokens * shape.expert_parallel, shape.document_tokens);
  constexpr double kQuantile = 3.09;  // of a normal distribution, 99.9 %
  return {{"expected_bytes", std::llround(bytes)},
          {"p999_bytes", std::llround(bytes * (1 + kQuantile * spread))},
          {"p999_imbalance", 1 + kQuantile * spread}};
}

PlanJson dispatch_json(const Recipe& recipe, const StepShape& shape, DType activations) {
  if (!recipe.model.is_moe()) return nullptr;
  const ExpectedVisits v = expected_visits(recipe.model, shape.expert_parallel, shape.ranks_per_node, shape.two_level);
  const DispatchBytes bytes = dispatch_bytes(recipe, shape, activations);
  return {{"ranks_per_token", v.ranks},
          {"nodes_per_token", v.nodes},
          {"rows_per_token_inside_nodes", v.rows_intra},
          {"rows_per_token_between_nodes", v.rows_inter},
          {"bytes_per_layer_inside_nodes", std::llround(bytes.intra)},
          {"bytes_per_layer_between_nodes", std::llround(bytes.inter)},
          {"of", "the formula for experts placed at random"}};
}

/// Rates of a rank when other than the measured number of ranks share a node's processor.
Hardware on_ranks_per_node(Hardware h, int ranks_per_node) {
  if (h.gpu || ranks_per_node == h.ranks_per_node) return h;
  const double share = static_cast<double>(h.ranks_per_node) / ranks_per_node;
  for (Figure* f : {&h.gemm, &h.peak, &h.copy, &h.same_node.bytes_s, &h.other_nodes.bytes_s})
    f->value *= share, f->tag = "assumed", f->source += " (shared out anew over the ranks of a node)";
  return h;
}

struct Fit {
  bool fits = false;
  double needs = 0, has = 0;  ///< bytes of a rank
};
Fit fit_of(const PlanJson& plan, const Hardware& h, int ranks_per_node) {
  const double base = h.gpu ? 0 : h.base.value;
  const double more =
      plan["receive_buffers"]["p999_bytes"].get<double>() - plan["receive_buffers"]["expected_bytes"].get<double>();
  const double needs = plan["most"]["total"].get<double>() + base + more;
  const double has = h.gpu ? h.memory.value : h.memory.value / ranks_per_node;
  return {needs <= has, needs, has};
}

void add_times(PlanJson& plan, const Recipe& recipe, const StepShape& shape, const PlanRequest& request) {
  const Hardware h = on_ranks_per_node(*request.hardware, request.ranks_per_node);
  const StepEstimate e = estimate_step(recipe, shape, h);
  const Fit fit = fit_of(plan, h, request.ranks_per_node);
  const auto steps = static_cast<double>(recipe.total_steps());
  const double hours = steps * e.step_s / 3600;
  const int nodes = (request.ranks - 1) / request.ranks_per_node + 1;
  const double save = plan["state"]["checkpoint_bytes"].get<double>() / (h.write.value * nodes);
  const double load = plan["state"]["checkpoint_bytes"].get<double>() / (h.read.value * nodes);
  // Asynchronous saves stop training for a copy in memory, read and written.
  const double stop = recipe.checkpoint.async
                          ? plan["state"]["checkpoint_bytes"].get<double>() / request.ranks * 2 / h.copy.value
                          : save;
  const double failure_s = kRankHoursToFailure / request.ranks * 3600;
  const double every_s = std::sqrt(2 * std::max(stop, e.step_s) * failure_s);  // Young's approximation
  plan["hardware"] = {{"name", h.name}, {"kind", h.gpu ? "gpu" : "cpu"}, {"ops", h.ops_tag}};
  plan["fits"] = fit.fits;
  plan["fit"] = {{"needs_bytes", std::llround(fit.needs)},
                 {"has_bytes", std::llround(fit.has)},
                 {"base_bytes", h.gpu ? 0 : std::llround(h.base.value)}};
  plan["step_s"] = e.step_s;
  plan["tokens_per_s"] = static_cast<double>(recipe.tokens_per_step()) / e.step_s;
  plan["tokens_per_s_per_rank"] = plan["tokens_per_s"].get<double>() / request.ranks;
  plan["mfu"] = e.mfu;
  plan["step"] = to_json(e);
  plan["hours"] = hours;
  plan["rank_hours"] = hours * request.ranks;
  plan["energy_kwh"] = h.watts > 0 ? PlanJson(hours * request.ranks * h.watts / 1000) : PlanJson(nullptr);
  plan["checkpoint"]["save_s"] = save;
  plan["checkpoint"]["load_s"] = load;
  plan["checkpoint"]["stops_training_s"] = stop;
  plan["checkpoint"]["tag"] = h.write.tag;
  plan["stop_lead_s"] = std::ceil(30 + 2 * e.step_s + 2 * save);
  plan["save_every_steps"] = std::max<std::int64_t>(1, std::llround(every_s / e.step_s));
  // What the step time depends on most and knows least.
  const PhaseEstimate* risk = nullptr;
  for (const PhaseEstimate& p : e.phases)
    if (p.tag != "measured" && (risk == nullptr || p.seconds > risk->seconds)) risk = &p;
  const bool spread = risk != nullptr && risk->limit == "gemm" && h.ops_tag == "measured";
  plan["risk"] =
      risk == nullptr
          ? PlanJson(nullptr)
          : PlanJson{{"phase", risk->name},
                     {"share", risk->seconds / e.step_s},
                     {"tag", risk->tag},
                     {"cure", spread ? fmt::format("its fullest rank is taken to have {} times the mean (--imbalance)",
                                                   shape.imbalance)
                                     : "`emox bench rates --output FILE` on such a machine measures it"}};
}

void check_device(const Recipe& recipe, const PlanRequest& request) {
  if (!request.hardware) return;
  const Hardware& h = *request.hardware;
  require<UsageError>(h.gpu == request.device.on_gpu(), "hardware {} is a {}, and run.device = {} computes on a {}",
                      h.name, h.gpu ? "GPU" : "CPU", kDeviceNames[idx(recipe.run.device)], h.gpu ? "CPU" : "GPU");
  require<UsageError>(h.precision == request.device.activations,
                      "the rates of hardware {} are those of {}, and train.precision = {} computes in {}: leave "
                      "train.precision out, or name a file that `emox bench rates --train.precision={}` wrote",
                      h.name, name_of(h.precision), kPrecisionNames[idx(recipe.train.precision)],
                      name_of(request.device.activations), name_of(request.device.activations));
}

}  // namespace

PlanJson plan_run(const Recipe& recipe, const PlanRequest& request) {
  check_device(recipe, request);
  PlanJson plan = plan_memory(recipe, request.ranks, request.ranks_per_node, request.threads, request.device);
  const StatePlan state = plan_state(recipe, request.ranks, request.ranks_per_node, request.device.activations);
  plan["state"] = to_json(state);
  StepShape shape = step_shape(recipe, request.ranks, request.ranks_per_node);
  shape.passes = plan["forward_twice"].get<bool>() ? 2 : 1;
  shape.document_tokens = request.document_tokens, shape.imbalance = request.imbalance;
  shape.gradients = state.gradients, shape.weights = state.weights;
  const bool bf16 = request.device.activations == DType::BF16;
  shape.owned_elements = plan["most"]["optimizer"].get<std::int64_t>() / (bf16 ? 12 : 8);
  shape.local_elements = plan["most"]["weights_and_gradients"].get<std::int64_t>() / (bf16 ? 6 : 8);
  const ParameterCount parameters = count_parameters(recipe.model);
  plan["parameters"] = {{"total", parameters.total}, {"active", parameters.active}};
  const StepWork work = step_work(recipe, shape, request.device.activations);
  plan["flops"] = {{"per_token", work.useful / work.tokens},
                   {"per_step", work.useful / work.tokens * static_cast<double>(recipe.tokens_per_step())},
                   {"convention", "6 x weights that a token meets + causal attention inside documents"},
                   {"document_tokens", request.document_tokens}};
  plan["micro_batches"] = shape.micro_batches;
  plan["dispatch"] = dispatch_json(recipe, shape, request.device.activations);
  plan["receive_buffers"] = receive_buffers(recipe, shape, request.device.activations);
  plan["checkpoint"] = {{"bytes", plan["state"]["checkpoint_bytes"]},
                        {"pieces", plan["state"]["pieces"]},
                        {"manifest_bytes", plan["state"]["manifest_bytes"]}};
  if (request.hardware) add_times(plan, recipe, shape, request);
  return plan;
}

PlanJson search_meshes(const Recipe& recipe, const PlanRequest& request) {
  require<UsageError>(request.hardware.has_value(), "emox plan --search compares times: name the --hardware");
  PlanJson meshes = PlanJson::array(), refused = PlanJson::array();
  const std::int64_t sequences = (recipe.train.batch_sequences - 1) / request.ranks + 1;
  for (int ep = 1; ep <= request.ranks; ++ep) {
    if (request.ranks % ep != 0 || (ep > 1 && !recipe.model.is_moe())) continue;
    for (std::int64_t micro = 1;; micro = std::min(micro * 2, sequences)) {
      Recipe r = recipe;
      r.parallel.expert_parallel = ep;
      r.parallel.dispatch = DispatchKind::Auto;
      r.train.micro_batch_sequences = micro;
      try {
        const PlanJson plan = plan_run(r, request);
        meshes.push_back({{"expert_parallel", ep},
                          {"data_parallel", request.ranks / ep},
                          {"micro_batch_sequences", micro},
                          {"step_s", plan["step_s"]},
                          {"tokens_per_s", plan["tokens_per_s"]},
                          {"exposed_s", plan["step"]["exposed_s"]},
                          {"memory_bytes", plan["fit"]["needs_bytes"]},
                          {"fits", plan["fits"]}});
      } catch (const UsageError& e) {
        refused.push_back({{"expert_parallel", ep}, {"why", e.message()}});
        break;
      }
      if (micro == sequences) break;
    }
  }
  std::vector<PlanJson> order(meshes.begin(), meshes.end());
  std::stable_sort(order.begin(), order.end(), [](const PlanJson& a, const PlanJson& b) {
    if (a["fits"] != b["fits"]) return a["fits"].get<bool>();
    return a["step_s"].get<double>() < b["step_s"].get<double>();
  });
  return {{"ranks", request.ranks}, {"meshes", order}, {"refused", refused}};
}

std::string nearest_that_fits(const Recipe& recipe, const PlanRequest& request) {
  for (int times = 1; times <= 64; times *= 2) {
    PlanRequest wider = request;
    wider.ranks *= times;
    if (wider.ranks > recipe.train.batch_sequences) break;
    const PlanJson found = search_meshes(recipe, wider);
    if (found["meshes"].empty() || !found["meshes"][0]["fits"].get<bool>()) continue;
    const PlanJson& m = found["meshes"][0];
    return fmt::format(
        "the nearest that fits: {} ranks, --parallel.expert_parallel={} --train.micro_batch_sequences={}: {:.1f} GiB",
        wider.ranks, m["expert_parallel"].get<int>(), m["micro_batch_sequences"].get<std::int64_t>(),
        m["memory_bytes"].get<double>() / (1 << 30));
  }
  return "no mesh of these ranks, or of more that its batch allows, fits: a smaller model, a shorter sequence, or "
         "ranks "
         "with more memory";
}

}  // namespace emox
