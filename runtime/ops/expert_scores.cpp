#include "runtime/ops/expert_scores.h"

#include "runtime/ops/check.h"
#include "runtime/ops/dispatch.h"

namespace emox::ops {

void translate_ids(Context& ctx, TensorView ids, TensorView table) {
  expect("translate_ids", "ids", ids, DType::I32, ids.shape());
  expect_rank("translate_ids", "table", table, DType::I32, 1);
  run<Op::translate_ids>(ctx, ids, table);
}

void row_norms(Context& ctx, TensorView norms, TensorView x) {
  expect_rank("row_norms", "x", x, ctx.activations, 2);
  expect("row_norms", "norms", norms, DType::F32, {x.dim(0)});
  run<Op::row_norms>(ctx, Work{.bytes = bytes_of(x)}, norms, x);
}

void output_change(Context& ctx, TensorView change, TensorView h, TensorView y) {
  expect_rank("output_change", "h", h, ctx.activations, 2);
  expect("output_change", "y", y, ctx.activations, h.shape());
  expect("output_change", "change", change, DType::F64, {h.dim(0)});
  run<Op::output_change>(ctx, Work{.bytes = bytes_of(h, y)}, change, h, y);
}

void add_expert_scores(Context& ctx, TensorView scores, TensorView ids, TensorView routed, TensorView shared,
                       TensorView change) {
  expect_rank("add_expert_scores", "scores", scores, DType::F64, 1);
  expect_rank("add_expert_scores", "ids", ids, DType::I32, 2);
  expect_rank("add_expert_scores", "shared", shared, DType::F32, 2);
  expect("add_expert_scores", "routed", routed, DType::F32, ids.shape());
  expect("add_expert_scores", "shared", shared, DType::F32, {shared.dim(0), ids.dim(0)});
  expect("add_expert_scores", "change", change, DType::F64, {ids.dim(0)});
  require<ShapeError>(shared.dim(0) < scores.dim(0), "[add_expert_scores] {} scores, {} of them of shared experts",
                      scores.dim(0), shared.dim(0));
  run<Op::add_expert_scores>(ctx, scores, ids, routed, shared, change);
}

}  // namespace emox::ops
