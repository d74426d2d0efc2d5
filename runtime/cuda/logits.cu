// Gradients of logits, which are f32 also where activations are bf16. For tensor cores they are split into hi + lo,
// both bf16: hi alone makes dx, which is bf16 itself; hi and lo, one product each, make the weight's gradient, which so
// keeps 16 bits of every logit's gradient and, in sums over many tokens, what is small against the rounding of the
// large.
#include "runtime/cuda/blas.h"
#include "runtime/cuda/device.h"
#include "runtime/cuda/kernels.h"
#include "runtime/cuda/launch.h"

namespace emox::cuda {
namespace {

constexpr int kSplitThreads = 256;

// hi[t,v] + lo[t,v] ~ dlogits[t,v]; rows of hi and lo are `row` apart, those of dlogits `stride`.
__global__ void __launch_bounds__(kSplitThreads)
    logits_split_kernel(Bf16* hi, Bf16* lo, const float* dlogits, std::int64_t tokens, int vocab, int row,
                        std::int64_t stride) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kSplitThreads + threadIdx.x;
  const std::int64_t t = at / row;
  const int v = static_cast<int>(at % row);
  if (t >= tokens || v >= vocab) return;
  const float x = dlogits[t * stride + v];
  const Bf16 high(x);
  hi[at] = high;
  lo[at] = Bf16(x - to_float(high));
}

}  // namespace

void logits_backward(Context& ctx, TensorView dx, TensorView dweight, TensorView dlogits, TensorView x,
                     TensorView weight) {
  constexpr ops::Op kOp = ops::Op::logits_backward;
  Queue& queue = queue_of(ctx);
  const std::int64_t tokens = x.dim(0), width = x.dim(1), vocab = weight.dim(0);
  Matrix hi{dlogits.raw(), DType::F32, dlogits.dim(1)}, lo;
  void* workspace = nullptr;
  if (x.dtype() == DType::BF16) {
    const std::int64_t row = (vocab + 7) / 8 * 8;  // so that rows begin at multiples of 16 bytes
    const std::size_t bytes = (idx(tokens * row) * sizeof(Bf16) + 255) / 256 * 256;
    auto* const scratch = static_cast<unsigned char*>(queue.scratch(kProductWorkspace + 2 * bytes));
    workspace = scratch;
    auto* const pieces = scratch + kProductWorkspace;
    launch(queue, kOp, logits_split_kernel, {blocks_of(tokens * row, kSplitThreads), kSplitThreads},
           reinterpret_cast<Bf16*>(pieces), reinterpret_cast<Bf16*>(pieces + bytes), dlogits.data<float>(), tokens,
           static_cast<int>(vocab), static_cast<int>(row), dlogits.dim(1));
    hi = {pieces, DType::BF16, row};
    lo = {pieces + bytes, DType::BF16, row};
  } else {
    workspace = queue.scratch(kProductWorkspace);
  }
  const Matrix px{x.raw(), x.dtype(), width}, pw{weight.raw(), weight.dtype(), width};
  for (const Matrix& part : {hi, lo}) {
    if (part.data == nullptr) continue;
    product(queue, kOp,
            {.m = vocab,
             .n = width,
             .k = tokens,
             .a = part,
             .a_transposed = true,
             .b = px,
             .c = dweight.raw(),
             .c_stride = width,
             .beta = 1.0F},
            workspace);
  }
  product(queue, kOp,
          {.m = tokens,
           .n = width,
           .k = vocab,
           .a = hi,
           .b = pw,
           .c = dx.raw(),
           .c_type = dx.dtype(),
           .c_stride = width,
           .beta = 1.0F},
          workspace);
}

}  // namespace emox::cuda
