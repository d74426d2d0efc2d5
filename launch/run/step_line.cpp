#include "launch/run/step_line.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

namespace emox {

nlohmann::ordered_json step_line(const StepFacts& facts, const StepMetrics& m, Telemetry& telemetry) {
  // What only a model with experts has: of a dense one nothing is known, which is not 0.
  const auto routed = [&](double x) {
    return facts.has_experts ? nlohmann::ordered_json(x) : nlohmann::ordered_json(nullptr);
  };
  const auto known = [](double x) {
    return std::isfinite(x) ? nlohmann::ordered_json(x) : nlohmann::ordered_json(nullptr);
  };
  const auto phase = [&](const char* name) { return telemetry.seconds(std::string("phase.") + name); };
  return {{"step", facts.step},
          {"tokens", facts.tokens},
          {"loss", m.loss()},
          {"ce", m.ce},
          {"lm_z", m.lm_z},
          {"lb", m.lb},
          {"router_z", m.router_z},
          {"grad_norm", m.grad_norm},
          {"lr", facts.learning_rate},
          {"skipped", facts.skipped ? 1 : 0},
          {"skipped_steps", facts.skipped_steps},
          {"tokens_per_s", facts.tokens_per_s},
          {"step_s", facts.step_s},
          {"gemm_floor_fraction", facts.gemm_floor_fraction},
          {"load_max_over_mean", routed(m.load_max_over_mean)},
          {"experts_per_document", routed(m.experts_per_document)},
          {"pool_mean", routed(m.pool_mean)},
          {"rows_sent_per_token", routed(m.dispatch.rows_sent_per_token)},
          {"ranks_per_token", routed(m.dispatch.ranks_per_token)},
          {"nodes_per_token", routed(m.dispatch.nodes_per_token)},
          {"ranks_per_document", routed(m.dispatch.ranks_per_document)},
          {"bytes_intra_node", m.dispatch.bytes_intra_node},
          {"bytes_inter_node", m.dispatch.bytes_inter_node},
          {"bytes_saved", m.dispatch.bytes_saved},
          {"exposed_comm_s", m.dispatch.exposed_comm_s},
          {"rows_max_over_mean", routed(m.dispatch.rows_max_over_mean)},
          {"useful_s_min", known(m.useful_s_min)},
          {"useful_s_mean", known(m.useful_s_mean)},
          {"useful_s_max", known(m.useful_s_max)},
          {"phase_s",
           {{"forward", phase("forward")},
            {"backward", phase("backward")},
            {"dispatch", phase("dispatch")},
            {"combine", phase("combine")},
            {"optimizer", phase("optimizer")},
            {"reduce", phase("reduce")},
            {"data", phase("data")}}}};
}

}  // namespace emox
