#include "launch/plan/memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "launch/run/model_pieces.h"
#include "launch/run/run_start.h"
#include "launch/run/sharding.h"
#include "model/training/training_step.h"

namespace emox {

// Those that ask for most: products by cuBLASLt (32 MiB), of which the router's backward keeps two bf16 pieces of its
// gradient beside them; attention, which turns queries and keys for its backward pass and keeps a number a row and
// head; the embedding's backward, which sorts tokens and adds up stretches of 64 in three rows each.
std::int64_t gpu_op_scratch(const ModelConfig& model, std::int64_t tokens, DType activations) {
  constexpr std::int64_t kProduct = std::int64_t{32} << 20, kArrays = 4096;  // alignment
  const auto element = static_cast<std::int64_t>(size_of(activations));
  const std::int64_t n = model.is_moe() ? (model.routed_experts() + 7) / 8 * 8 : 0;
  const std::int64_t products = kProduct + std::max(4 * tokens * n, 16 * tokens);
  const std::int64_t attention = tokens * (2 * model.d_model * element + 4 * model.heads + 8);
  const std::int64_t embedding = 18 * tokens + (tokens / 64 + 1) * 3 * model.d_model * 4;
  const std::int64_t choice = n > 512 ? 8 * n * 64 * 192 : 0;  // 64 rows each of more processors than GPUs have
  const std::int64_t most = std::max({products, attention, embedding, choice}) + kArrays;
  return most + most / 4;
}

RankMemory plan_rank_memory(const Recipe& recipe, int ranks, int ranks_per_node, int rank, int threads,
                            const DeviceChoice& device) {
  recipe.validate(ranks);
  const MemoryMeasurement measurement;
  Context ctx;
  ctx.device = device.device;
  ctx.activations = device.activations;
  ctx.threads = threads;
  Sharding sharding(ProcessMesh::planned(planned_layout(recipe, ranks, ranks_per_node), rank), recipe.model,
                    recipe.parallel);
  LanguageModel model(recipe.model, ctx, true, sharding.experts());
  const auto pools = make_pool_sizes(recipe.model, 0);
  TrainingStep step(ctx, step_config(recipe), model, sharding.mesh(),
                    {.pools = pools.get(), .label_count = static_cast<std::int64_t>(recipe.data.source.size())});
  RankMemory m;
  const ParameterStore& store = model.parameters();
  m.weights_and_gradients = static_cast<std::int64_t>(store.bytes());
  m.expert_weights = store.flat_size(ParameterGroup::Expert) * static_cast<std::int64_t>(size_of(store.weight_type()));
  m.optimizer = static_cast<std::int64_t>(step.optimizer().state_bytes());
  m.activations = static_cast<std::int64_t>(step.activation_bytes());
  if (recipe.checkpoint.async || device.on_gpu())
    for (const CheckpointPiece& p : pieces_to_save(model, step.optimizer(), rank == 0))
      m.checkpoint += (p.end - p.begin) * static_cast<std::int64_t>(size_of(p.view.dtype()));
  m.total = measurement.bytes();
  m.recompute = step.recomputes_forward();
  if (device.on_gpu()) {
    const std::int64_t most =
        std::min(recipe.train.micro_batch_sequences, (recipe.train.batch_sequences - 1) / ranks + 1);
    m.libraries = kGpuLibraries;
    m.op_scratch = gpu_op_scratch(recipe.model, most * recipe.model.sequence_length, device.activations);
    m.staging = kGpuStaging;
    m.total += m.libraries + m.op_scratch;
  } else {
    m.total += m.checkpoint;
  }
  return m;
}

nlohmann::ordered_json plan_memory(const Recipe& recipe, int ranks, int ranks_per_node, int threads,
                                   const DeviceChoice& device) {
  RankMemory least, most;
  // Replicas of a coordinate differ by rounding only; the first one is looked at, and the last rank.
  const int ep = planned_layout(recipe, ranks, ranks_per_node).expert_parallel();
  for (int rank = 0; rank < ranks; rank = rank + 1 < ep ? rank + 1 : rank < ranks - 1 ? ranks - 1 : ranks) {
    const RankMemory m = plan_rank_memory(recipe, ranks, ranks_per_node, rank, threads, device);
    if (rank == 0 || m.total < least.total) least = m;
    if (rank == 0 || m.total > most.total) most = m;
  }
  const auto json = [&](const RankMemory& m) {
    nlohmann::ordered_json j = {{"weights_and_gradients", m.weights_and_gradients},
                                {"expert_weights", m.expert_weights},
                                {"optimizer", m.optimizer},
                                {"activations", m.activations},
                                {"checkpoint", m.checkpoint}};
    if (device.on_gpu()) {
      j["libraries"] = m.libraries;
      j["op_scratch"] = m.op_scratch;
      j["host"] = m.checkpoint + m.staging;
    }
    j["total"] = m.total;
    return j;
  };
  return {{"ranks", ranks},
          {"ranks_per_node", ranks_per_node},
          {"expert_parallel", ep},
          {"data_parallel", ranks / ep},
          {"device", device.on_gpu() ? "cuda" : "cpu"},
          {"precision", name_of(device.activations)},
          {"forward_twice", most.recompute},
          {"least", json(least)},
          {"most", json(most)}};
}

std::string memory_lines(const nlohmann::ordered_json& plan) {
  const auto& most = plan["most"];
  const bool gpu = plan["device"] == "cuda";
  std::string text;
  const auto line = [&](const char* what, const char* key) {
    text += fmt::format("  {:<44}{:>12.1f} MiB\n", what, most[key].get<double>() / 1048576);
  };
  line("weights and gradients", "weights_and_gradients");
  line(plan["precision"] == "bf16" ? "optimizer (moments, f32 weights)" : "optimizer (moments)", "optimizer");
  line("activations", "activations");
  if (gpu) {
    line("CUDA and its libraries (a guess)", "libraries");
    line("scratch of the ops, at most", "op_scratch");
  } else {
    line("copy of the state for saving", "checkpoint");
  }
  line("all, before the first step", "total");
  text.pop_back();
  return text;
}

}  // namespace emox
