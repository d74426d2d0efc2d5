#include "launch/run/model_pieces.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "parallel/comm/together.h"
#include "runtime/ops/basic.h"

namespace emox {
namespace {

std::vector<CheckpointPiece> pieces_of(std::vector<OwnedPart> parts) {
  std::vector<CheckpointPiece> pieces;
  pieces.reserve(parts.size());
  for (OwnedPart& p : parts) pieces.push_back({std::move(p.name), std::move(p.role), p.shape, p.begin, p.end, p.view});
  return pieces;
}

}  // namespace

std::vector<CheckpointPiece> bias_pieces(const LanguageModel& model) {
  std::vector<CheckpointPiece> pieces;
  if (model.selection_bias().null()) return pieces;
  for (std::int64_t l = 0; l < model.config().layers; ++l) {
    const TensorView bias = model.selection_bias()[l];
    pieces.push_back(
        {fmt::format("model.layers.{}{}", l, kSelectionBiasName), "weight", bias.shape(), 0, bias.numel(), bias});
  }
  return pieces;
}

std::vector<CheckpointPiece> owned_pieces(const Optimizer& optimizer) { return pieces_of(optimizer.owned_parts()); }
std::vector<CheckpointPiece> owned_pieces(const ParameterShards& shards) { return pieces_of(shards.owned_weights()); }

std::vector<CheckpointPiece> pieces_to_save(const LanguageModel& model, const Optimizer& optimizer, bool first_rank) {
  std::vector<CheckpointPiece> pieces = owned_pieces(optimizer);
  if (first_rank)
    for (CheckpointPiece& piece : bias_pieces(model)) pieces.push_back(std::move(piece));
  return pieces;
}

bool holds(Communicator& comm, const Manifest& manifest, const std::function<bool(const ManifestTensor&)>& is_it) {
  return root_says(comm, std::any_of(manifest.tensors.begin(), manifest.tensors.end(), is_it));
}

bool is_selection_bias(const ManifestTensor& tensor) { return tensor.name.ends_with(kSelectionBiasName); }

std::vector<CheckpointPiece> pieces_to_load(Context& ctx, Communicator& comm, const LanguageModel& model,
                                            const Optimizer& optimizer, const Manifest& found,
                                            const nlohmann::json& changes) {
  std::vector<CheckpointPiece> pieces = owned_pieces(optimizer);
  const bool changed = std::any_of(changes.begin(), changes.end(),
                                   [](const auto& change) { return change.value("key", "") == "moe.balance"; });
  if (!changed || holds(comm, found, is_selection_bias)) {
    for (CheckpointPiece& piece : bias_pieces(model)) pieces.push_back(std::move(piece));
  } else if (!model.selection_bias().null()) {
    ops::zero(ctx, model.selection_bias());
  }
  return pieces;
}

}  // namespace emox
