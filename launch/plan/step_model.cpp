#include "launch/plan/step_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "launch/run/sharding.h"

namespace emox {
namespace {

/// Mean number of tokens that a token attends to, itself included, when documents end anywhere with the same chance.
double mean_context(const ModelConfig& m, double document_tokens) {
  const auto length = static_cast<double>(m.sequence_length);
  if (!m.intra_document_attention) return (length + 1) / 2;
  // At place t of the sequence: (1 - q^(t + 1)) / p, with p the chance of an end and q = 1 - p.
  const double p = std::min(1.0, 1 / document_tokens), q = 1 - p;
  if (p * length < 1e-4)
    return (length + 1) / 2 - p * (length * length - 1) / 6;  // nothing is left of small differences
  return p >= 1 ? 1.0 : (length - q * (1 - std::pow(q, length)) / p) / p / length;
}

std::string weakest(const std::string& a, const std::string& b) {
  for (const char* tag : {"assumed", "datasheet"})
    if (a == tag || b == tag) return tag;
  return "measured";
}

/// What hides behind `over` seconds of other work.
PhaseEstimate communication(const char* name, double seconds, double over, const std::string& tag) {
  const double hidden = std::min(seconds, over);
  return {name, "links", seconds - hidden, hidden, tag};
}

}  // namespace

StepShape step_shape(const Recipe& recipe, int ranks, int ranks_per_node) {
  const MeshLayout layout = planned_layout(recipe, ranks, ranks_per_node);
  std::vector<int> nodes;
  for (int r = 0; r < ranks; ++r) nodes.push_back(r / ranks_per_node);
  StepShape s;
  s.ranks = ranks, s.ranks_per_node = ranks_per_node, s.expert_parallel = layout.expert_parallel();
  s.two_level = resolved(recipe.parallel, recipe.model, nodes).dispatch == DispatchKind::TwoLevel;
  s.sequences = (recipe.train.batch_sequences - 1) / ranks + 1;
  s.micro_batches = (s.sequences - 1) / recipe.train.micro_batch_sequences + 1;
  return s;
}

StepWork step_work(const Recipe& recipe, const StepShape& shape, DType activations) {
  const ModelConfig& m = recipe.model;
  const auto d = static_cast<double>(m.d_model), layers = static_cast<double>(m.layers);
  const double element = static_cast<double>(size_of(activations));
  StepWork w;
  w.tokens = static_cast<double>(shape.sequences * m.sequence_length);
  const double products = w.tokens * 2, twice = shape.passes - 1;  // the second forward pass, in units of one
  const auto of_layer = [&](double weights) { return products * layers * weights * (3 + twice); };
  double shared = 3 * d * static_cast<double>(m.dense_ff), router = 0, routed = 0;
  if (m.is_moe()) {
    shared = 3 * d * static_cast<double>(m.shared_experts * m.expert_ff);
    router = d * static_cast<double>(m.routed_experts());
    routed = 3 * d * static_cast<double>(m.routed_top_k() * m.expert_ff);
  }
  w.dense = of_layer(4 * d * d + router + shared);
  w.shared = of_layer(m.is_moe() ? shared : 0);
  w.experts = of_layer(routed);
  w.head = products * static_cast<double>(m.vocab_size) * d * 3;
  const double attention = 4 * w.tokens * layers * d * mean_context(m, shape.document_tokens);
  w.attention = attention * (3 + twice);
  w.useful = products * 3 * (layers * (4 * d * d + router + shared + routed) + static_cast<double>(m.vocab_size) * d) +
             3 * attention;
  // Elements a token and layer: norms, residuals and the rows around attention (12 d forward, 16 d backward), rows to
  // and from the experts, hidden rows of what is no fused op, and the router's f32 arrays.
  const double k = m.is_moe() ? static_cast<double>(m.routed_top_k()) : 0;
  const double n = m.is_moe() ? static_cast<double>(m.routed_experts()) : 0;
  const double hidden = shared / d;
  w.rows = w.tokens * layers *
               ((12 * d + 3 * k * d + hidden + (m.is_moe() ? 6 * n : 0) * 4 / element) * (1 + twice) + 16 * d +
                4 * k * d + 2 * hidden + (m.is_moe() ? 6 * n : 0) * 4 / element) *
               element +
           w.tokens * 5 * d * element;
  // Moments, weights and gradients read and written, the gradients' norm and clearing.
  w.optimizer = static_cast<double>(shape.owned_elements) * (28 + (activations == DType::BF16 ? 2 : 0)) +
                static_cast<double>(shape.local_elements) * 8;
  return w;
}

DispatchBytes dispatch_bytes(const Recipe& recipe, const StepShape& shape, DType activations) {
  if (!recipe.model.is_moe() || shape.expert_parallel < 2) return {};
  const ExpectedVisits v = expected_visits(recipe.model, shape.expert_parallel, shape.ranks_per_node, shape.two_level);
  const auto tokens = static_cast<double>(shape.sequences * recipe.model.sequence_length);
  const double row = static_cast<double>(recipe.model.d_model) * static_cast<double>(size_of(activations));
  const double trips = 2 + 2 * shape.passes;
  const double rows = v.rows_intra + v.rows_inter;
  const double intra_share = rows > 0 ? v.rows_intra / rows : 0;
  const double numbers = tokens * v.remote_picks * (8 * shape.passes + 4);  // id and gate forth, its gradient back
  return {tokens * v.rows_intra * row * trips + numbers * intra_share,
          tokens * v.rows_inter * row * trips + numbers * (1 - intra_share)};
}

StepEstimate estimate_step(const Recipe& recipe, const StepShape& shape, const Hardware& h) {
  const ModelConfig& m = recipe.model;
  const StepWork w = step_work(recipe, shape, h.precision);
  const OpRates rates = rates_at(h, static_cast<double>(m.d_model));
  const std::string gemm_tag = weakest(h.gemm.tag, h.ops_tag), copy_tag = weakest(h.copy.tag, h.ops_tag);
  const auto product = [&](double flops, double fraction) { return flops / (h.gemm.value * fraction); };
  const auto moved = [&](double bytes, double fraction) { return bytes / (h.copy.value * fraction); };
  const bool sharded = m.is_moe() && shape.expert_parallel > 1;
  const double experts = product(w.experts, rates.experts) * (sharded ? shape.imbalance : 1);
  const auto micro = static_cast<double>(shape.micro_batches), layers = static_cast<double>(m.layers);
  StepEstimate e;
  e.phases = {{"dense products", "gemm", product(w.dense, rates.dense), 0, gemm_tag},
              {"experts", "gemm", experts, 0, sharded ? "assumed" : gemm_tag},
              {"LM head", "gemm", product(w.head, rates.head), 0, gemm_tag},
              {"attention", "gemm", product(w.attention, rates.attention), 0, gemm_tag},
              {"rows, norms, router", "memory", moved(w.rows, rates.rows), 0, copy_tag},
              {"optimizer", "memory", moved(w.optimizer, rates.optimizer), 0, copy_tag},
              {"launches, threads", "host", rates.layer_s * layers * micro * (1 + shape.passes), 0, h.ops_tag}};
  if (!m.is_moe()) e.phases.erase(e.phases.begin() + 1);
  double compute = 0;
  for (const PhaseEstimate& p : e.phases) compute += p.seconds;
  if (sharded) {
    const DispatchBytes bytes = dispatch_bytes(recipe, shape, h.precision);
    // Of one way; plans add a small exchange, two by way of the nodes.
    const double trips = (2 + 2 * shape.passes) * layers * micro,
                 plans = (shape.two_level ? 2 : 1) * shape.passes * layers * micro;
    const bool elsewhere = bytes.inter > 0;
    double each = bytes.intra * layers / h.same_node.bytes_s.value;
    if (elsewhere) {
      const double between = bytes.inter * layers / h.other_nodes.bytes_s.value;
      each = shape.two_level ? each + between : std::max(each, between);
    }
    const double latency = (trips + plans) * (elsewhere ? h.other_nodes : h.same_node).latency_s.value;
    // A guess: links see less of an imbalance than experts do, since a token's picks on one rank are one row.
    const double seconds = each * std::sqrt(shape.imbalance) + latency;
    // On a GPU rows go out while the shared expert computes, in both directions of the pass; they come back alone.
    const bool hides = h.gpu && recipe.parallel.overlap_experts;
    const double under = hides ? std::min(product(w.shared, rates.dense), seconds / 2) : 0;
    e.phases.push_back(communication("dispatch and combine", seconds, under, "assumed"));
  }
  const auto transfer = [&](const Traffic& t) {
    return static_cast<double>(t.bytes_intra_node) / h.same_node.bytes_s.value +
           static_cast<double>(t.bytes_inter_node) / h.other_nodes.bytes_s.value +
           (t.bytes_intra_node > 0 ? 2 * h.same_node.latency_s.value : 0) +
           (t.bytes_inter_node > 0 ? 2 * h.other_nodes.latency_s.value : 0);
  };
  if (shape.ranks > 1) {
    const std::string tag =
        weakest(h.same_node.bytes_s.tag,
                shape.gradients.bytes_inter_node > 0 ? h.other_nodes.bytes_s.tag : h.same_node.bytes_s.tag);
    const double received = static_cast<double>(shape.gradients.bytes_intra_node + shape.gradients.bytes_inter_node);
    const double adding = moved(3 * received, 1);
    const double of_micro = compute / micro / (1 + shape.passes);  // a forward pass of a micro-batch
    e.phases.push_back(communication("gradients", transfer(shape.gradients) + adding,
                                     h.gpu && recipe.parallel.overlap_gradients ? 1.5 * of_micro : 0, tag));
    e.phases.push_back(communication("weights", transfer(shape.weights),
                                     h.gpu && recipe.parallel.overlap_weights ? of_micro / 2 : 0, tag));
  }
  e.tag = "measured";
  for (const PhaseEstimate& p : e.phases) {
    e.step_s += p.seconds;
    if (p.limit == "links") e.exposed_s += p.seconds;
  }
  double guessed = 0;
  for (const PhaseEstimate& p : e.phases) {
    if (p.tag != "measured") guessed += p.seconds / e.step_s;
    if (p.seconds > 0.02 * e.step_s) e.tag = weakest(e.tag, p.tag);
  }
  e.band = 0.1 + 0.2 * guessed;
  e.mfu = w.useful / e.step_s / h.peak.value;
  return e;
}

nlohmann::ordered_json to_json(const StepEstimate& e) {
  auto phases = nlohmann::ordered_json::array();
  for (const PhaseEstimate& p : e.phases)
    phases.push_back({{"phase", p.name},
                      {"seconds", p.seconds},
                      {"hidden_s", p.hidden},
                      {"share", p.seconds / e.step_s},
                      {"limit", p.limit},
                      {"tag", p.tag}});
  return {{"step_s", e.step_s}, {"band", e.band},           {"tag", e.tag},
          {"mfu", e.mfu},       {"exposed_s", e.exposed_s}, {"phases", phases}};
}

}  // namespace emox
