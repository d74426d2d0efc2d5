// Every op by name, once: what else must name them all is made from this list (their numbers and names below, the
// bodies of a backend in bodies.h). An op is then its declaration and this line, its entry, and one body a backend.
#pragma once

#include <cstdint>
#include <string_view>

#include "runtime/core/idx.h"

// clang-format off
#define EMOX_OPS(OP) \
  OP(fill) OP(zero) OP(copy) OP(convert) OP(add) OP(random_truncated_normal) OP(copy_to_host) OP(copy_from_host) \
  OP(matmul_nt) OP(matmul_nn) OP(matmul_tn) OP(logits) OP(logits_backward) \
  OP(grouped_matmul_nt) OP(grouped_matmul_nn) OP(grouped_matmul_tn) OP(experts) OP(experts_backward) \
  OP(embedding) OP(embedding_backward) OP(rms_norm) OP(rms_norm_backward_add) OP(rope_tables) \
  OP(attention) OP(attention_backward) OP(swiglu) OP(swiglu_backward) \
  OP(router_softmax) OP(document_scores) OP(document_pools) OP(masked_topk) OP(masked_topk_backward) \
  OP(router_statistics) OP(document_experts) \
  OP(gather_rows) OP(combine_rows) OP(gather_elements) OP(scatter_elements) \
  OP(first_picks) OP(count_destinations) OP(plan_send) OP(unpack_picks) OP(plan_experts) OP(pool_reach) OP(sum_counts) \
  OP(balance_gradient) OP(move_selection_bias) OP(add_counts) OP(add_sum) \
  OP(translate_ids) OP(row_norms) OP(output_change) OP(add_expert_scores) \
  OP(lm_head_loss) \
  OP(sum_of_squares) OP(adamw)
// clang-format on

namespace emox::ops {

/// The ops as numbers: kernels report by them (fault.h).
enum class Op : std::uint8_t {
#define EMOX_NUMBER(op) op,
  EMOX_OPS(EMOX_NUMBER)
#undef EMOX_NUMBER
};

inline constexpr std::string_view kOpNames[] = {
#define EMOX_NAME(op) #op,
    EMOX_OPS(EMOX_NAME)
#undef EMOX_NAME
};

constexpr std::string_view name_of(Op op) { return kOpNames[idx(op)]; }

}  // namespace emox::ops
