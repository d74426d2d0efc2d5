// `emox bench step`: one training step against the time that its matrix products need (design section 5).
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "launch/config/recipe.h"
#include "launch/run/session.h"

namespace emox {

struct StepBenchOptions {
  int steps = 10;
  int warmup = 3;
};

/// The presets `small` and `mid`; the shapes are those of the usual PyTorch peer, so both can be timed side by side.
Recipe bench_preset(const std::string& name);

/// {step_s, step_min_s, step_max_s, tokens_per_s, gemm_floor_s, ratio, flops, peak_rss_bytes, threads, ranks, phase_s,
/// ...}. Synthetic documents of geometric length, about four a sequence. With `ops`, an "ops" array: seconds, share of
/// the step, and fraction of the GEMM or copy rate of each op.
nlohmann::ordered_json bench_step(Session& session, const Recipe& recipe, const StepBenchOptions& options, bool ops);

}  // namespace emox
