#include "launch/plan/memory.h"

#include <nlohmann/json.hpp>

#include "launch/run/model_pieces.h"
#include "launch/run/run_start.h"
#include "launch/run/sharding.h"
#include "model/training/training_step.h"

namespace emox {

RankMemory plan_rank_memory(const Recipe& recipe, int ranks, int ranks_per_node, int rank, int threads) {
  recipe.validate(ranks);
  const MemoryMeasurement measurement;
  Context ctx;
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
  m.expert_weights = store.flat_size(ParameterGroup::Expert) * static_cast<std::int64_t>(sizeof(float));
  m.optimizer = static_cast<std::int64_t>(step.optimizer().state_bytes());
  m.activations = static_cast<std::int64_t>(step.activation_bytes());
  if (recipe.checkpoint.async)
    for (const CheckpointPiece& p : pieces_to_save(model, step.optimizer(), rank == 0))
      m.checkpoint += (p.end - p.begin) * static_cast<std::int64_t>(size_of(p.view.dtype()));
  m.total = measurement.bytes() + m.checkpoint;
  m.recompute = step.recomputes_forward();
  return m;
}

nlohmann::ordered_json plan_memory(const Recipe& recipe, int ranks, int ranks_per_node, int threads) {
  RankMemory least, most;
  // Replicas of a coordinate differ by rounding only; the first one is looked at, and the last rank.
  const int ep = planned_layout(recipe, ranks, ranks_per_node).expert_parallel();
  for (int rank = 0; rank < ranks; rank = rank + 1 < ep ? rank + 1 : rank < ranks - 1 ? ranks - 1 : ranks) {
    const RankMemory m = plan_rank_memory(recipe, ranks, ranks_per_node, rank, threads);
    if (rank == 0 || m.total < least.total) least = m;
    if (rank == 0 || m.total > most.total) most = m;
  }
  const auto json = [](const RankMemory& m) -> nlohmann::ordered_json {
    return {{"weights_and_gradients", m.weights_and_gradients},
            {"expert_weights", m.expert_weights},
            {"optimizer", m.optimizer},
            {"activations", m.activations},
            {"checkpoint", m.checkpoint},
            {"total", m.total}};
  };
  return {{"ranks", ranks},
          {"ranks_per_node", ranks_per_node},
          {"expert_parallel", ep},
          {"data_parallel", ranks / ep},
          {"forward_twice", most.recompute},
          {"least", json(least)},
          {"most", json(most)}};
}

}  // namespace emox
