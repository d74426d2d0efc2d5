// Held-out loss per domain (design section 5, "Evaluation JSON").
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "data/loader/heldout.h"
#include "model/transformer/language_model.h"
#include "parallel/comm/communicator.h"

namespace emox {

struct DomainLoss {
  std::string label;
  std::int64_t documents = 0, bytes = 0, tokens = 0;
  double nats = 0;  ///< summed over tokens
  double loss() const { return tokens > 0 ? nats / static_cast<double>(tokens) : 0; }
  double bits_per_byte() const;  ///< NaN when the text is not known
};

struct Evaluation {
  std::int64_t step = 0;
  std::int64_t experts_kept = 0;
  std::vector<DomainLoss> domains;
  double mean_loss() const;  ///< mean over domains of the loss per token
  double mean_bits_per_byte() const;
  nlohmann::ordered_json to_json() const;
  /// A table for people.
  std::string to_text() const;
};

/// A stretch of a held-out document that one forward pass reads.
struct ScoredWindow {
  std::size_t domain = 0, document = 0;  ///< in the order of `held_out`
  std::span<const std::int32_t> tokens;
};
/// Told of every forward pass of this rank before it begins: its windows, in the order of the batch; none when only
/// other ranks have something to score.
using PassObserver = std::function<void(std::span<const ScoredWindow>)>;

/// Scores every document on its own: the model reads EOS and the document, and predicts the document and its EOS.
/// Longer documents are cut into windows of the model's sequence length. Documents are dealt to the ranks in turn.
/// `activations` and `batch` are memory for `max_tokens` tokens; no pool, or one of moe.eval_pool experts (spec 3.7).
Evaluation evaluate(Context& ctx, LanguageModel& model, Communicator& comm, const std::vector<HeldOut>& held_out,
                    std::int32_t eos, std::int64_t step, Activations& activations, DeviceBatch& batch,
                    std::int64_t max_tokens, const PassObserver& observer = {});

}  // namespace emox
