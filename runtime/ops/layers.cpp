#include "runtime/ops/layers.h"

#include "runtime/ops/check.h"
#include "runtime/ops/dispatch.h"

namespace emox::ops {
namespace {

void check_rotation(std::string_view op, const Rotation& r, std::int64_t tokens, std::int64_t head_dim) {
  require<ShapeError>(r.cos.null() == r.sin.null() && (r.positions.null() || !r.cos.null()),
                      "[{}] a rotation needs positions, cos and sin", op);
  if (r.cos.null()) return;
  require<ShapeError>(head_dim % 2 == 0, "[{}] heads of width {} have no two halves to rotate", op, head_dim);
  expect(op, "positions", r.positions, DType::I32, {tokens});
  expect_rank(op, "cos", r.cos, DType::F32, 2);
  expect(op, "cos", r.cos, DType::F32, {r.cos.dim(0), head_dim / 2});
  expect(op, "sin", r.sin, DType::F32, r.cos.shape());
}

}  // namespace

void embedding(Context& ctx, TensorView y, TensorView ids, TensorView table) {
  expect_rank("embedding", "table", table, ctx.activations, 2);
  expect("embedding", "y", y, ctx.activations, {ids.numel(), table.dim(1)});
  expect("embedding", "ids", ids, DType::I32, {ids.numel()});
  run<Op::embedding>(ctx, Work{.bytes = 2 * bytes_of(y)}, activation(y), ids, table);
}

void embedding_backward(Context& ctx, TensorView dtable, TensorView ids, TensorView dy) {
  expect_rank("embedding_backward", "dtable", dtable, DType::F32, 2);
  expect("embedding_backward", "ids", ids, DType::I32, {ids.numel()});
  expect("embedding_backward", "dy", dy, ctx.activations, {ids.numel(), dtable.dim(1)});
  run<Op::embedding_backward>(ctx, Work{.bytes = 3 * bytes_of(dy)}, dtable, ids, dy);
}

void rms_norm(Context& ctx, TensorView y, TensorView rstd, TensorView x, TensorView scale, float eps) {
  expect_rank("rms_norm", "x", x, ctx.activations, 2);
  expect("rms_norm", "y", y, ctx.activations, x.shape());
  expect("rms_norm", "rstd", rstd, DType::F32, {x.dim(0)});
  expect("rms_norm", "scale", scale, ctx.activations, {x.dim(1)});
  run<Op::rms_norm>(ctx, Work{.bytes = bytes_of(x, y)}, activation(y), rstd, x, scale, eps);
}

void rms_norm_backward_add(Context& ctx, TensorView dx, TensorView dscale, TensorView dy, TensorView x, TensorView rstd,
                           TensorView scale) {
  expect_rank("rms_norm_backward_add", "x", x, ctx.activations, 2);
  expect("rms_norm_backward_add", "dx", dx, ctx.activations, x.shape());
  expect("rms_norm_backward_add", "dy", dy, ctx.activations, x.shape());
  expect("rms_norm_backward_add", "rstd", rstd, DType::F32, {x.dim(0)});
  expect("rms_norm_backward_add", "scale", scale, ctx.activations, {x.dim(1)});
  expect("rms_norm_backward_add", "dscale", dscale, DType::F32, {x.dim(1)});
  run<Op::rms_norm_backward_add>(ctx, Work{.bytes = bytes_of(x, dy, dx, dx), .name = "rms_norm_backward"},
                                 activation(dx), dscale, dy, x, rstd, scale);
}

void rope_tables(Context& ctx, TensorView cos, TensorView sin, double theta) {
  expect_rank("rope_tables", "cos", cos, DType::F32, 2);
  expect("rope_tables", "sin", sin, DType::F32, cos.shape());
  run<Op::rope_tables>(ctx, cos, sin, theta);
}

void attention(Context& ctx, TensorView out, TensorView lse, TensorView qkv, TensorView segments, int heads,
               const Rotation& rotation) {
  expect_rank("attention", "qkv", qkv, ctx.activations, 2);
  require<ShapeError>(heads > 0 && qkv.dim(1) % (3 * heads) == 0, "[attention] qkv {} does not hold 3 x {} heads",
                      qkv.shape().str(), heads);
  expect("attention", "out", out, ctx.activations, {qkv.dim(0), qkv.dim(1) / 3});
  expect("attention", "lse", lse, DType::F32, {heads, qkv.dim(0)});
  expect_rank("attention", "segments", segments, DType::I32, 1);
  check_rotation("attention", rotation, qkv.dim(0), qkv.dim(1) / (3 * heads));
  run<Op::attention>(ctx, activation(out), lse, qkv, segments, heads, rotation);
}

void attention_backward(Context& ctx, TensorView dqkv, TensorView dout, TensorView out, TensorView lse, TensorView qkv,
                        TensorView segments, int heads, const Rotation& rotation) {
  expect_rank("attention_backward", "qkv", qkv, ctx.activations, 2);
  require<ShapeError>(heads > 0 && qkv.dim(1) % (3 * heads) == 0,
                      "[attention_backward] qkv {} does not hold 3 x {} heads", qkv.shape().str(), heads);
  expect("attention_backward", "dqkv", dqkv, ctx.activations, qkv.shape());
  expect("attention_backward", "out", out, ctx.activations, {qkv.dim(0), qkv.dim(1) / 3});
  expect("attention_backward", "dout", dout, ctx.activations, out.shape());
  expect("attention_backward", "lse", lse, DType::F32, {heads, qkv.dim(0)});
  expect_rank("attention_backward", "segments", segments, DType::I32, 1);
  check_rotation("attention_backward", rotation, qkv.dim(0), qkv.dim(1) / (3 * heads));
  run<Op::attention_backward>(ctx, activation(dqkv), dout, out, lse, qkv, segments, heads, rotation);
}

void swiglu(Context& ctx, TensorView a, TensorView h, TensorView gates) {
  expect_rank("swiglu", "a", a, ctx.activations, 2);
  expect("swiglu", "h", h, ctx.activations, {a.dim(0), 2 * a.dim(1)});
  expect_optional("swiglu", "gates", gates, DType::F32, {a.dim(0)});
  run<Op::swiglu>(ctx, Work{.bytes = bytes_of(a, h)}, activation(a), h, gates);
}

void swiglu_backward(Context& ctx, TensorView dh, TensorView a, TensorView dgates, TensorView da, TensorView h,
                     TensorView gates) {
  expect_rank("swiglu_backward", "da", da, ctx.activations, 2);
  expect("swiglu_backward", "h", h, ctx.activations, {da.dim(0), 2 * da.dim(1)});
  expect("swiglu_backward", "dh", dh, ctx.activations, h.shape());
  expect("swiglu_backward", "a", a, ctx.activations, da.shape());
  expect_optional("swiglu_backward", "gates", gates, DType::F32, {da.dim(0)});
  expect_optional("swiglu_backward", "dgates", dgates, DType::F32, {da.dim(0)});
  run<Op::swiglu_backward>(ctx, Work{.bytes = bytes_of(dh, a, da, h)}, activation(dh), activation(a), dgates, da, h,
                           gates);
}

}  // namespace emox::ops
