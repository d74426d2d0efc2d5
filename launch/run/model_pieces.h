// A model's arrays as a checkpoint has them.
#pragma once

#include <functional>
#include <vector>

#include "model/optim/optimizer.h"
#include "model/transformer/language_model.h"
#include "parallel/checkpoint/checkpoint.h"

namespace emox {

/// How the names of selection biases end.
inline constexpr const char* kSelectionBiasName = ".mlp.gate.selection_bias";
/// What a checkpoint holds besides parameters and moments: the selection bias of balance = bias, equal on all ranks.
std::vector<CheckpointPiece> bias_pieces(const LanguageModel& model);
/// What this rank reads and writes alone: its share of the weights, and of their moments.
std::vector<CheckpointPiece> owned_pieces(const Optimizer& optimizer);
/// The same without moments.
std::vector<CheckpointPiece> owned_pieces(const ParameterShards& shards);
/// What a model of this rank saves: its optimizer's share, and on rank 0 what all ranks hold alike.
std::vector<CheckpointPiece> pieces_to_save(const LanguageModel& model, const Optimizer& optimizer, bool first_rank);

/// Collective. What a rank reads to go on from a checkpoint: its share, and the selection bias, but for a run to which
/// `changes` (of the run, as in its manifest) gave moe.balance = bias and whose checkpoint has none: it is set to 0,
/// whatever a checkpoint that turned out to be damaged has left there.
std::vector<CheckpointPiece> pieces_to_load(Context& ctx, Communicator& comm, const LanguageModel& model,
                                            const Optimizer& optimizer, const Manifest& found,
                                            const nlohmann::json& changes);

/// Collective. Whether the checkpoint, whose arrays rank 0 knows, holds one of which `is_it` is true.
bool holds(Communicator& comm, const Manifest& manifest, const std::function<bool(const ManifestTensor&)>& is_it);
/// One that is a selection bias.
bool is_selection_bias(const ManifestTensor& tensor);

}  // namespace emox
