// Choosing the experts that some text needs: layer-wise greedy, global, easy_ep, random (spec 6.2).
//
// The choice must not depend on the number of ranks. Every sequence runs alone, on one rank, and its tokens are summed
// there in their order, in float64; the sequences' sums are then added in their order on every rank. What is left is
// the float32 forward pass, whose rows are grouped otherwise when experts are on other ranks: scores differ by about
// 1e-7 of their size. Equal scores choose the lower id; `smallest_gap` says how close the nearest choice was.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/modularity/expert_subset.h"
#include "model/transformer/inference_memory.h"
#include "parallel/comm/communicator.h"

namespace emox {

enum class SelectionMethod : std::uint8_t { Layerwise, Global, EasyEp, Random };
inline constexpr const char* kSelectionMethodNames[] = {"layerwise", "global", "easy-ep", "random"};
/// UsageError with the names, beginning with `origin`, for a text that is none.
SelectionMethod parse_selection_method(const std::string& text, const std::string& origin);

struct SelectionRequest {
  SelectionMethod method = SelectionMethod::Layerwise;
  std::vector<std::int64_t> keep;  ///< experts of each layer, shared included (check_budgets)
  std::uint64_t seed = 0;          ///< of `random`
  std::uint64_t stream = 0;        ///< of `random`: which of the independent draws of a seed
};

/// What the model reads, the same on all ranks.
struct CalibrationText {
  std::vector<std::vector<std::int32_t>> sequences;  ///< of at most model.sequence_length tokens, all of which count
  std::int32_t eos;                                  ///< separates documents for attention
};

/// Collective over `comm`, on which the model's experts may be sharded. Afterwards the model keeps all experts. No
/// pools, whatever moe.eval_pool says. `random` reads no text. The subset's
/// provenance holds method, sequences, tokens and smallest_gap: the least relative distance, over layers, between the
/// scores on both sides of the choice. UsageError without text.
ExpertSubset select_experts(Context& ctx, LanguageModel& model, Communicator& comm, InferenceMemory& memory,
                            const CalibrationText& text, const SelectionRequest& request);

}  // namespace emox
