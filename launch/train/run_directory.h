// Files of a run (design section 5): recipe.ini, run.json, metrics.jsonl, eval.jsonl, checkpoints/, log/.
#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "launch/config/recipe.h"
#include "launch/train/session.h"
#include "model/transformer/language_model.h"
#include "parallel/checkpoint/checkpoint.h"

namespace emox {

class RunDirectory {
 public:
  explicit RunDirectory(std::filesystem::path root) : root_(std::move(root)) {}
  const std::filesystem::path& root() const { return root_; }
  std::filesystem::path recipe() const { return root_ / "recipe.ini"; }
  std::filesystem::path manifest() const { return root_ / "run.json"; }
  std::filesystem::path metrics() const { return root_ / "metrics.jsonl"; }
  std::filesystem::path evaluations() const { return root_ / "eval.jsonl"; }
  std::filesystem::path checkpoints() const { return root_ / "checkpoints"; }
  std::filesystem::path log(int rank) const;
  bool has_checkpoints() const;
  /// The record of eval.jsonl that was written after that step; nothing when there is none, or only part of it.
  std::optional<nlohmann::json> evaluation_after(std::int64_t step) const;

  /// Collective. Rank 0 makes the directories, refuses a run whose recipe may not change so (UsageError), and writes
  /// recipe.ini and run.json. `resuming` is decided by find_latest.
  void prepare(Session& session, const Recipe& recipe, const std::vector<std::string>& command, bool resuming) const;

 private:
  std::filesystem::path root_;
};

/// How the names of selection biases end.
inline constexpr const char* kSelectionBiasName = ".mlp.gate.selection_bias";
/// What a checkpoint holds besides parameters and moments: the selection bias of balance = bias, equal on all ranks.
std::vector<CheckpointPiece> bias_pieces(const LanguageModel& model);
/// Everything that a model without optimizer reads from a checkpoint: the weights that this rank holds, whole.
std::vector<CheckpointPiece> weight_pieces(const LanguageModel& model);

/// Collective: throws on every rank what `body` threw on rank 0.
void on_root(Session& session, const std::function<void()>& body);

}  // namespace emox
