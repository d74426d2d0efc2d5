// LM head and cross entropy. Logits exist for a block of tokens (loss_blocks.h) in f32, made by cuBLASLt. One kernel
// then takes them, a block of threads a token: log-sum-exp, loss, and the gradient, which takes the logits' place: as
// f32, or as bf16 in the first half of the token's row, for the two products that follow. The losses of all tokens are
// added in f64, in an order that depends on their number only.
#include <cfloat>

#include "runtime/core/error.h"
#include "runtime/cuda/blas.h"
#include "runtime/cuda/device.h"
#include "runtime/cuda/kernels.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/loss_blocks.h"

namespace emox::cuda {
namespace {

constexpr int kLossThreads = 512, kSumThreads = 1024, kAtOnce = 8;  // kAtOnce: logits of a thread

struct LossShared {
  double slots64[kWarp + 1];
  float slots[kWarp + 1];
};

struct LossScale {
  double inverse_divisor, z_weight;
};

// Logits [first, first + 8) of a row, which is at least that long.
__device__ __forceinline__ void load_logits(float (&x)[kAtOnce], const float* row, std::int64_t first) {
#pragma unroll
  for (int i = 0; i < kAtOnce; i += 4) {
    const float4 v = *reinterpret_cast<const float4*>(row + first + i);
    x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
  }
}

__device__ __forceinline__ void store_gradient(float* row, std::int64_t first, const float (&x)[kAtOnce]) {
#pragma unroll
  for (int i = 0; i < kAtOnce; i += 4)
    *reinterpret_cast<float4*>(row + first + i) = float4{x[i], x[i + 1], x[i + 2], x[i + 3]};
}

__device__ __forceinline__ void store_gradient(Bf16* row, std::int64_t first, const float (&x)[kAtOnce]) {
  std::uint32_t pairs[kAtOnce / 2];
#pragma unroll
  for (int i = 0; i < kAtOnce / 2; ++i)
    pairs[i] = static_cast<std::uint32_t>(Bf16(x[2 * i + 1]).bits()) << 16 | Bf16(x[2 * i]).bits();
  *reinterpret_cast<uint4*>(row + first) = uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
}

// ce[t], z[t] and, where they are wanted, token_loss[t] and the gradient of the block's token t.
template <typename T>
__global__ void __launch_bounds__(kLossThreads)
    lm_head_row_kernel(double* ce, double* z, float* token_loss, float* logits, const std::int32_t* labels, int vocab,
                       std::int64_t stride, bool gradient, LossScale o) {
  auto& s = shared_memory<LossShared>();
  const std::int64_t t = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  float* const row = logits + t * stride;
  auto* const out = reinterpret_cast<T*>(row);
  const int label = labels[t];
  float x[kAtOnce];
  if (label < 0) {  // not scored
    if (thread == 0) {
      ce[t] = z[t] = 0;
      if (token_loss != nullptr) token_loss[t] = 0.0F;
    }
    for (float& v : x) v = 0.0F;
    if (gradient)
      for (int i = kAtOnce * thread; i < vocab; i += kAtOnce * threads) store_gradient(out, i, x);
    return;
  }
  const float at_label = row[label];
  // A maximum a thread, to which the sum so far is scaled; finite, so that differences of infinities do not occur.
  float high = -FLT_MAX, sum = 0.0F;
  for (int i = kAtOnce * thread; i < vocab; i += kAtOnce * threads) {
    load_logits(x, row, i);
    float most = high;
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (i + j >= vocab) x[j] = -INFINITY;
      most = x[j] > most ? x[j] : most;
    }
    sum *= expf(high - most);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) sum += expf(x[j] - most);
    high = most;
  }
  const float most = over_block(high, s.slots, Larger());
  const float lse = most + logf(over_block(sum * expf(high - most), s.slots, Plus()));
  if (thread == 0) {
    const double loss = static_cast<double>(lse) - static_cast<double>(at_label);
    ce[t] = loss;
    z[t] = static_cast<double>(lse) * static_cast<double>(lse);
    if (token_loss != nullptr) token_loss[t] = static_cast<float>(loss);
  }
  if (!gradient) return;
  // d/dz_i = inverse_divisor (softmax_i (1 + 2 w lse) - [i = label]). As bf16 it lies where logits of lower numbers
  // were: every thread has read its own ones before any is overwritten.
  const auto scale = static_cast<float>(o.inverse_divisor * (1.0 + 2.0 * o.z_weight * static_cast<double>(lse)));
  const auto at_one = static_cast<float>(o.inverse_divisor);
  for (int first = 0; first < vocab; first += kAtOnce * threads) {
    const int i = first + kAtOnce * thread;
    if (i < vocab) {
      load_logits(x, row, i);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        x[j] = i + j < vocab ? scale * expf(x[j] - lse) : 0.0F;
        if (i + j == label) x[j] -= at_one;
      }
    }
    if constexpr (sizeof(T) < sizeof(float)) __syncthreads();
    if (i < vocab) store_gradient(out, i, x);
  }
}

// sums += {sum of ce, sum of z} over all tokens. One block.
__global__ void __launch_bounds__(kSumThreads)
    lm_head_sum_kernel(double* sums, const double* ce, const double* z, std::int64_t tokens) {
  auto& s = shared_memory<LossShared>();
  double a = 0, b = 0;
  for (std::int64_t t = threadIdx.x; t < tokens; t += kSumThreads) a += ce[t], b += z[t];
  a = over_block(a, s.slots64, Plus());
  b = over_block(b, s.slots64, Plus());
  if (threadIdx.x == 0) sums[0] += a, sums[1] += b;
}

}  // namespace

void lm_head_loss(Context& ctx, const ops::LmLossResult& out, const ops::LmHead& head, TensorView scratch,
                  const ops::LmLossOptions& options) {
  constexpr ops::Op kOp = ops::Op::lm_head_loss;
  Queue& queue = queue_of(ctx);
  const auto& [x, weight, labels] = head;
  const std::int64_t tokens = x.dim(0), width = x.dim(1), vocab = weight.dim(0);
  const std::int64_t rows = loss_block_rows(tokens), stride = loss_row(vocab);
  if (tokens == 0) return;
  const bool bf16 = x.dtype() == DType::BF16, gradient = !out.dx.null();
  auto* const memory = static_cast<unsigned char*>(queue.scratch(kProductWorkspace + idx(2 * tokens) * sizeof(double)));
  auto* const ce = reinterpret_cast<double*>(memory + kProductWorkspace);
  auto* const z = ce + tokens;
  auto* const logits = static_cast<float*>(scratch.raw());
  const Matrix w{weight.raw(), weight.dtype(), width};
  const Matrix dlogits{logits, x.dtype(), bf16 ? 2 * stride : stride};
  // Few words need few threads: a thread takes eight at once.
  const int threads = vocab <= kAtOnce * kLossThreads / 4 ? kLossThreads / 4 : kLossThreads;
  for (std::int64_t begin = 0; begin < tokens; begin += rows) {
    const std::int64_t n = std::min(rows, tokens - begin);
    const auto at = [&](const TensorView& view) { return view.rows(begin, begin + n).raw(); };
    const Matrix block{at(x), x.dtype(), width};
    product(queue, kOp,
            {.m = n, .n = vocab, .k = width, .a = block, .b = w, .b_transposed = true, .c = logits, .c_stride = stride},
            memory);
    launch(queue, kOp, bf16 ? lm_head_row_kernel<Bf16> : lm_head_row_kernel<float>,
           {blocks_of(n, 1), static_cast<unsigned>(threads), sizeof(LossShared)}, ce + begin, z + begin,
           out.token_loss.null() ? nullptr : out.token_loss.data<float>() + begin, logits,
           labels.data<std::int32_t>() + begin, static_cast<int>(vocab), stride, gradient,
           LossScale{options.inverse_divisor, options.z_weight});
    if (!gradient) continue;
    product(queue, kOp,
            {.m = n,
             .n = width,
             .k = vocab,
             .a = dlogits,
             .b = w,
             .c = at(out.dx),
             .c_type = out.dx.dtype(),
             .c_stride = width},
            memory);
    product(queue, kOp,
            {.m = vocab,
             .n = width,
             .k = n,
             .a = dlogits,
             .a_transposed = true,
             .b = block,
             .c = out.dweight.raw(),
             .c_stride = width,
             .beta = 1.0F},
            memory);
  }
  launch(queue, kOp, lm_head_sum_kernel, {1, kSumThreads, sizeof(LossShared)}, out.sums.data<double>(), ce, z, tokens);
}

}  // namespace emox::cuda
