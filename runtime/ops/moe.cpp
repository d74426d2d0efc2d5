#include "runtime/ops/moe.h"

#include "runtime/ops/check.h"
#include "runtime/ops/dispatch.h"

namespace emox::ops {
namespace {

// The routed experts n; the rows of p have `width` columns.
std::int64_t check_topk(std::string_view op, const TopkResult& r, std::int64_t tokens, std::int64_t width) {
  expect(op, "p", r.p, DType::F32, {tokens, width});
  const std::int64_t experts = r.experts();
  require<ShapeError>(experts <= width, "[{}] {} experts, but rows of {} logits", op, experts, width);
  expect(op, "lse", r.lse, DType::F32, {tokens});
  expect_rank(op, "ids", r.ids, DType::I32, 2);
  expect(op, "ids", r.ids, DType::I32, {tokens, r.ids.dim(1)});
  expect(op, "gates", r.gates, DType::F32, r.ids.shape());
  require<ShapeError>(r.ids.dim(1) <= experts, "[{}] {} picks out of {} experts", op, r.ids.dim(1), experts);
  return experts;
}

}  // namespace

void router_softmax(Context& ctx, TensorView p, TensorView logits, std::int64_t n) {
  expect_rank("router_softmax", "logits", logits, DType::F32, 2);
  expect("router_softmax", "p", p, DType::F32, logits.shape());
  if (n == 0) n = logits.dim(1);
  require<ShapeError>(0 <= n && n <= logits.dim(1), "[router_softmax] {} experts, but rows of {} logits", n,
                      logits.dim(1));
  run<Op::router_softmax>(ctx, Work{.bytes = bytes_of(p, logits)}, p, logits, n);
}

void document_scores(Context& ctx, TensorView scores, TensorView p, TensorView segments) {
  expect_rank("document_scores", "p", p, DType::F32, 2);
  expect("document_scores", "segments", segments, DType::I32, {scores.dim(0) + 1});
  expect_rank("document_scores", "scores", scores, DType::F32, 2);
  require<ShapeError>(scores.dim(1) <= p.dim(1), "[document_scores] scores {} of rows of p {}", scores.shape().str(),
                      p.shape().str());
  run<Op::document_scores>(ctx, Work{.bytes = bytes_of(p, scores), .name = "document_pools"}, scores, p, segments);
}

void document_pools(Context& ctx, TensorView pool, TensorView scores, TensorView sizes) {
  expect_rank("document_pools", "scores", scores, DType::F32, 2);
  expect("document_pools", "pool", pool, DType::U8, scores.shape());
  expect("document_pools", "sizes", sizes, DType::I32, {scores.dim(0)});
  run<Op::document_pools>(ctx, Work{.bytes = bytes_of(pool, scores)}, pool, scores, sizes);
}

void masked_topk(Context& ctx, TopkResult out, TensorView logits, TensorView pool, TensorView segments, TensorView bias,
                 bool normalize, TensorView free_tokens) {
  expect_rank("masked_topk", "logits", logits, DType::F32, 2);
  const std::int64_t n = check_topk("masked_topk", out, logits.dim(0), logits.dim(1));
  if (!pool.null()) {
    expect_rank("masked_topk", "segments", segments, DType::I32, 1);
    expect("masked_topk", "pool", pool, DType::U8, {segments.dim(0) - 1, n});
  }
  expect_optional("masked_topk", "bias", bias, DType::F32, {n});
  expect_optional("masked_topk", "free_tokens", free_tokens, DType::U8, {logits.dim(0)});
  run<Op::masked_topk>(ctx, Work{.bytes = bytes_of(logits, out.p, out.ids, out.gates)}, out, logits, pool, segments,
                       bias, normalize, free_tokens);
}

void masked_topk_backward(Context& ctx, TensorView dlogits, TensorView dgates, const TopkResult& fwd,
                          TensorView balance_grad, float z_grad, bool normalize) {
  expect_rank("masked_topk_backward", "dlogits", dlogits, DType::F32, 2);
  const std::int64_t n = check_topk("masked_topk_backward", fwd, dlogits.dim(0), dlogits.dim(1));
  expect("masked_topk_backward", "dgates", dgates, DType::F32, fwd.gates.shape());
  expect_optional("masked_topk_backward", "balance_grad", balance_grad, DType::F32, {n});
  run<Op::masked_topk_backward>(ctx, Work{.bytes = bytes_of(dlogits, dgates, fwd.p, fwd.ids, fwd.gates)}, dlogits,
                                dgates, fwd, balance_grad, z_grad, normalize);
}

void router_statistics(Context& ctx, TensorView counts, TensorView p_sum, TensorView z_sum, const TopkResult& fwd) {
  expect_rank("router_statistics", "p", fwd.p, DType::F32, 2);
  const std::int64_t n = check_topk("router_statistics", fwd, fwd.p.dim(0), fwd.p.dim(1));
  expect("router_statistics", "counts", counts, DType::I64, {n});
  expect("router_statistics", "p_sum", p_sum, DType::F64, {n});
  expect("router_statistics", "z_sum", z_sum, DType::F64, {1});
  run<Op::router_statistics>(ctx, Work{.bytes = bytes_of(fwd.p, fwd.ids, fwd.lse)}, counts, p_sum, z_sum, fwd);
}

void document_experts(Context& ctx, TensorView sum, TensorView ids, TensorView segments, std::int64_t experts) {
  expect("document_experts", "sum", sum, DType::I64, {1});
  expect_rank("document_experts", "ids", ids, DType::I32, 2);
  expect_rank("document_experts", "segments", segments, DType::I32, 1);
  run<Op::document_experts>(ctx, sum, ids, segments, experts);
}

void gather_rows(Context& ctx, TensorView out, TensorView x, TensorView index) {
  expect_rank("gather_rows", "x", x, ctx.activations, 2);
  expect("gather_rows", "index", index, DType::I32, {index.numel()});
  expect("gather_rows", "out", out, ctx.activations, {index.numel(), x.dim(1)});
  run<Op::gather_rows>(ctx, Work{.bytes = 2 * bytes_of(out)}, activation(out), x, index);
}

void combine_rows(Context& ctx, TensorView y, TensorView rows, TensorView slots, float beta) {
  expect_rank("combine_rows", "y", y, ctx.activations, 2);
  expect_rank("combine_rows", "rows", rows, ctx.activations, 2);
  expect("combine_rows", "rows", rows, ctx.activations, {rows.dim(0), y.dim(1)});
  expect_rank("combine_rows", "slots", slots, DType::I32, 2);
  expect("combine_rows", "slots", slots, DType::I32, {y.dim(0), slots.dim(1)});
  run<Op::combine_rows>(ctx, Work{.bytes = bytes_of(rows, y) + (beta != 0.0F ? bytes_of(y) : 0.0)}, activation(y), rows,
                        slots, beta);
}

void gather_elements(Context& ctx, TensorView dst, TensorView src, TensorView index) {
  expect("gather_elements", "index", index, DType::I32, {index.numel()});
  expect("gather_elements", "dst", dst, DType::F32, {index.numel()});
  expect("gather_elements", "src", src, DType::F32, src.shape());
  run<Op::gather_elements>(ctx, dst, src, index);
}

void scatter_elements(Context& ctx, TensorView dst, TensorView src, TensorView index) {
  expect("scatter_elements", "index", index, DType::I32, {index.numel()});
  expect("scatter_elements", "src", src, DType::F32, {index.numel()});
  expect("scatter_elements", "dst", dst, DType::F32, dst.shape());
  run<Op::scatter_elements>(ctx, dst, src, index);
}

}  // namespace emox::ops
