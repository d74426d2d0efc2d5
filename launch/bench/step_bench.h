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
  double documents = 4;  ///< a sequence, on average
};

/// The presets `small` and `mid`, whose shapes are those of the usual PyTorch peer, so both can be timed side by side;
/// and `emo-1b14b-block`, two layers of the released EMO with its vocabulary, for one GPU.
Recipe bench_preset(const std::string& name);

/// {step_s, step_min_s, step_max_s, tokens_per_s, gemm_floor_s, ratio, gradients_s, update_s, flops, peak_rss_bytes,
/// tensors_peak_bytes, device_memory, threads, ranks, parameters (here), comm_s (in calls of collectives), phase_s,
/// ...}. Synthetic documents of geometric length. `flops`: 6 x the weights that a token meets, and attention counted as
/// its causal half (model/transformer/flops.h). With `ops`, an "ops" array: seconds, share of the step, rate, and
/// fraction of the GEMM or copy rate of each op.
nlohmann::ordered_json bench_step(Session& session, const Recipe& recipe, const StepBenchOptions& options, bool ops);

}  // namespace emox
