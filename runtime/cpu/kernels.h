// The CPU bodies, one for every op: same name, same signature. Arguments were checked by the op.
#pragma once

#include "runtime/ops/balance.h"
#include "runtime/ops/basic.h"
#include "runtime/ops/dispatch_plan.h"
#include "runtime/ops/expert_scores.h"
#include "runtime/ops/experts.h"
#include "runtime/ops/layers.h"
#include "runtime/ops/loss.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/moe.h"
#include "runtime/ops/optim.h"

namespace emox::cpu {

decltype(ops::fill) fill;
decltype(ops::zero) zero;
decltype(ops::copy) copy;
decltype(ops::add) add;
decltype(ops::random_truncated_normal) random_truncated_normal;
decltype(ops::copy_to_host) copy_to_host;
decltype(ops::copy_from_host) copy_from_host;

decltype(ops::matmul_nt) matmul_nt;
decltype(ops::matmul_nn) matmul_nn;
decltype(ops::matmul_tn) matmul_tn;
decltype(ops::grouped_matmul_nt) grouped_matmul_nt;
decltype(ops::grouped_matmul_nn) grouped_matmul_nn;
decltype(ops::grouped_matmul_tn) grouped_matmul_tn;

decltype(ops::experts) experts;
decltype(ops::experts_backward) experts_backward;

decltype(ops::embedding) embedding;
decltype(ops::embedding_backward) embedding_backward;
decltype(ops::rms_norm) rms_norm;
decltype(ops::rms_norm_backward_add) rms_norm_backward_add;
decltype(ops::rope_tables) rope_tables;
decltype(ops::attention) attention;
decltype(ops::attention_backward) attention_backward;
decltype(ops::swiglu) swiglu;
decltype(ops::swiglu_backward) swiglu_backward;

decltype(ops::router_softmax) router_softmax;
decltype(ops::document_scores) document_scores;
decltype(ops::document_pools) document_pools;
decltype(ops::masked_topk) masked_topk;
decltype(ops::masked_topk_backward) masked_topk_backward;
decltype(ops::router_statistics) router_statistics;
decltype(ops::document_experts) document_experts;
decltype(ops::gather_rows) gather_rows;
decltype(ops::combine_rows) combine_rows;
decltype(ops::gather_elements) gather_elements;
decltype(ops::scatter_elements) scatter_elements;

decltype(ops::first_picks) first_picks;
decltype(ops::count_destinations) count_destinations;
decltype(ops::plan_send) plan_send;
decltype(ops::unpack_picks) unpack_picks;
decltype(ops::plan_experts) plan_experts;
decltype(ops::pool_reach) pool_reach;

decltype(ops::balance_gradient) balance_gradient;
decltype(ops::move_selection_bias) move_selection_bias;
decltype(ops::add_counts) add_counts;
decltype(ops::add_sum) add_sum;

decltype(ops::translate_ids) translate_ids;
decltype(ops::row_norms) row_norms;
decltype(ops::output_change) output_change;
decltype(ops::add_expert_scores) add_expert_scores;

decltype(ops::lm_head_loss) lm_head_loss;

decltype(ops::sum_of_squares) sum_of_squares;
decltype(ops::adamw) adamw;

}  // namespace emox::cpu
