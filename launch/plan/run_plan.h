// Everything that `emox plan` says of a run on ranks that are not here: parameters, memory, what travels, and, with a
// hardware file, seconds, hours, and whether it fits.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "launch/config/recipe.h"
#include "launch/plan/hardware.h"
#include "launch/run/device_choice.h"

namespace emox {

struct PlanRequest {
  int ranks = 1, ranks_per_node = 8, threads = 1;
  DeviceChoice device;
  std::optional<Hardware> hardware;
  double document_tokens = 1024, imbalance = 1.1;  ///< step_model.h
};

/// {"ranks", "mesh", ..., "least", "most": memory (memory.h), "state" (state_plan.h), "parameters", "flops",
/// "dispatch", "receive_buffers", "checkpoint"}; with hardware also "hardware", "fits", "fit", "step_s",
/// "tokens_per_s", "mfu", "step", "hours", "rank_hours", "energy_kwh", "stop_lead_s", "save_every_steps", "risk".
/// UsageError when the recipe does not fit the ranks, or the hardware is not what the recipe computes on.
nlohmann::ordered_json plan_run(const Recipe& recipe, const PlanRequest& request);
/// For people: a screen.
std::string plan_text(const Recipe& recipe, const nlohmann::ordered_json& plan);

/// All meshes that the ranks allow, fastest first: {"meshes": [{"expert_parallel", "dispatch", "micro_batch_sequences",
/// "step_s", "tokens_per_s", "fits", "memory_bytes"}...], "refused": [{"expert_parallel", "why"}...]}. Those that do
/// not fit come last. Needs hardware.
nlohmann::ordered_json search_meshes(const Recipe& recipe, const PlanRequest& request);
/// A line that says what would fit of a recipe that does not: the fastest mesh of these ranks that does, else of twice
/// as many, and so on to 64 times; or that nothing does.
std::string nearest_that_fits(const Recipe& recipe, const PlanRequest& request);
std::string search_text(const nlohmann::ordered_json& found);

}  // namespace emox
