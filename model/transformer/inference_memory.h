// Memory for forward passes without training: activations, the model's scratch and the batch's integers.
#pragma once

#include <cstdint>

#include "model/transformer/language_model.h"
#include "runtime/core/arena.h"

namespace emox {

class InferenceMemory {
 public:
  /// For passes of at most `tokens` tokens. The model's scratch is here from now on: the model must not run when this
  /// is gone.
  InferenceMemory(Context& ctx, LanguageModel& model, std::int64_t tokens)
      : arena_(Arena::measuring(ctx.device, ctx.activations)) {
    reserve(model, tokens);
    arena_ = Arena(ctx.device, arena_.peak(), ctx.activations);
    reserve(model, tokens);
    batch = DeviceBatch(ctx.device, tokens);
    max_tokens = tokens;
  }
  InferenceMemory(const InferenceMemory&) = delete;
  InferenceMemory& operator=(const InferenceMemory&) = delete;

  std::int64_t max_tokens = 0;
  Activations activations;
  DeviceBatch batch{{}, 0};
  /// Only for a model with experts.
  OutputScores output_scores;

 private:
  void reserve(LanguageModel& model, std::int64_t tokens) {
    activations = model.reserve(arena_, tokens);
    model.reserve_scratch(arena_, tokens);
    if (model.config().is_moe()) output_scores = model.reserve_output_scores(arena_, tokens);
  }
  Arena arena_;
};

}  // namespace emox
