// The products as ops: dense ones by cuBLASLt (blas.h), grouped ones by own kernels (grouped.h).
#include "runtime/ops/matmul.h"

#include "runtime/cuda/blas.h"
#include "runtime/cuda/grouped.h"
#include "runtime/cuda/kernels.h"

namespace emox::cuda {
namespace {

Matrix matrix(const TensorView& x) { return {x.raw(), x.dtype(), x.dim(1)}; }

void dense(Context& ctx, ops::Op op, Product p, const TensorView& c) {
  Queue& queue = queue_of(ctx);
  p.c = c.raw(), p.c_type = c.dtype(), p.c_stride = c.dim(1);
  product(queue, op, p, queue.scratch(kProductWorkspace));
}

constexpr int kOffsets = 4;  // operand of the grouped products

}  // namespace

void matmul_nt(Context& ctx, TensorView c, TensorView a, TensorView b, float beta) {
  dense(
      ctx, ops::Op::matmul_nt,
      {.m = a.dim(0), .n = b.dim(0), .k = a.dim(1), .a = matrix(a), .b = matrix(b), .b_transposed = true, .beta = beta},
      c);
}

void matmul_nn(Context& ctx, TensorView c, TensorView a, TensorView b, float beta) {
  dense(ctx, ops::Op::matmul_nn,
        {.m = a.dim(0), .n = b.dim(1), .k = a.dim(1), .a = matrix(a), .b = matrix(b), .beta = beta}, c);
}

void matmul_tn(Context& ctx, TensorView c, TensorView a, TensorView b, float beta) {
  dense(
      ctx, ops::Op::matmul_tn,
      {.m = a.dim(1), .n = b.dim(1), .k = a.dim(0), .a = matrix(a), .a_transposed = true, .b = matrix(b), .beta = beta},
      c);
}

void logits(Context& ctx, TensorView logits, TensorView x, TensorView weight) {
  dense(ctx, ops::Op::logits,
        {.m = x.dim(0), .n = weight.dim(0), .k = x.dim(1), .a = matrix(x), .b = matrix(weight), .b_transposed = true},
        logits);
}

void grouped_matmul_nt(Context& ctx, TensorView c, TensorView a, TensorView b, TensorView offsets) {
  grouped_product(ctx, {ops::Op::grouped_matmul_nt, kOffsets}, GroupedKind::Nt, c, a, b, offsets);
}

void grouped_matmul_nn(Context& ctx, TensorView c, TensorView a, TensorView b, TensorView offsets) {
  grouped_product(ctx, {ops::Op::grouped_matmul_nn, kOffsets}, GroupedKind::Nn, c, a, b, offsets);
}

void grouped_matmul_tn(Context& ctx, TensorView c, TensorView a, TensorView b, TensorView offsets, float beta) {
  grouped_product(ctx, {ops::Op::grouped_matmul_tn, kOffsets}, GroupedKind::Tn, c, a, b, offsets, beta);
}

}  // namespace emox::cuda
