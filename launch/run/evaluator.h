// Held-out loss per domain (design section 5, "Evaluation JSON").
#pragma once

#include <cstdint>
#include <exception>
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
  double nats = 0;               ///< summed over tokens
  double loss() const;           ///< nats a token; NaN without tokens: no text is no loss
  double bits_per_byte() const;  ///< NaN when the text is not known
};

struct Evaluation {
  std::int64_t step = 0;
  std::int64_t experts_kept = 0;
  std::vector<DomainLoss> domains;
  /// Mean, over the domains that have tokens, of the loss per token; NaN when none has.
  double mean_loss() const { return mean_of(&DomainLoss::loss); }
  double mean_bits_per_byte() const { return mean_of(&DomainLoss::bits_per_byte); }
  /// Labels of the domains that are not in the means.
  std::vector<std::string> without_text() const;
  /// What is not known is null.
  nlohmann::ordered_json to_json() const;
  /// A table for people; what is not known is "-".
  std::string to_text() const;

 private:
  double mean_of(double (DomainLoss::*value)() const) const;
};

/// A stretch of a held-out document that one forward pass reads.
struct ScoredWindow {
  std::size_t domain = 0, document = 0;  ///< in the order of `held_out`
  std::span<const std::int32_t> tokens;
};
/// Told of every forward pass of this rank before it begins: its windows, in the order of the batch; none when only
/// other ranks have something to score.
using PassObserver = std::function<void(std::span<const ScoredWindow>)>;

/// What an evaluation does besides.
struct EvaluationHooks {
  PassObserver observer = {};
  /// Whether this rank wants to end: asked before every pass, and agreed by all ranks.
  std::function<bool()> stop = {};
  /// Passes that are done, over all ranks, and all of them.
  std::function<void(std::int64_t done, std::int64_t of)> progress = {};
};

/// What a model is scored on.
struct EvaluationRequest {
  const std::vector<HeldOut>& held_out;
  std::int32_t eos;
  std::int64_t step = 0;  ///< that the model has trained
  EvaluationHooks hooks = {};
};
/// Memory for forward passes of at most `max_tokens` tokens.
struct EvaluationMemory {
  Activations& activations;
  DeviceBatch& batch;
  std::int64_t max_tokens;
};

/// Thrown by evaluate() on all ranks when a rank wanted to end; what was scored until then is lost.
class EvaluationStopped : public std::exception {
 public:
  const char* what() const noexcept override { return "the evaluation was stopped on request"; }
};

/// Scores every document on its own: the model reads EOS and the document, and predicts the document and its EOS.
/// Longer documents are cut into windows of the model's sequence length. The windows of a domain fill forward passes,
/// which the ranks make in turn: a document may be scored by several, and no rank waits for more than one pass. Where
/// every rank has all experts, the result does not depend on the number of ranks, to the last bit.
/// No pool, or one of moe.eval_pool experts (spec 3.7). IoError when the ranks' documents differ.
Evaluation evaluate(Context& ctx, LanguageModel& model, Communicator& comm, const EvaluationRequest& request,
                    const EvaluationMemory& memory);

}  // namespace emox
