// The optimizer. Both ops are bound by memory: blocks of fixed size, whatever the device has, so that sums come out the
// same on every device.
#include <cmath>

#include "runtime/core/idx.h"
#include "runtime/cuda/device.h"
#include "runtime/cuda/kernels.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/pieces.h"

namespace emox::cuda {
namespace {

using ops::Op;

constexpr int kOptimThreads = 256;
constexpr std::int64_t kSquaresBlock = std::int64_t{1} << 14;  // elements a block adds up
constexpr int kPartialThreads = 1024;

struct SquaresShared {
  double slots[33];
};

__global__ void __launch_bounds__(kOptimThreads) squares_kernel(double* partial, const float* x, std::int64_t n) {
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kSquaresBlock;
  const std::int64_t end = begin + kSquaresBlock < n ? begin + kSquaresBlock : n;
  double sum = 0;
  for (std::int64_t i = begin + threadIdx.x; i < end; i += kOptimThreads)
    sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  sum = over_block(sum, shared_memory<SquaresShared>().slots, Plus{});
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// One block: *out += the sum of the partials, each thread's in order, then a fixed tree.
__global__ void __launch_bounds__(kPartialThreads)
    add_partials_kernel(double* out, const double* partial, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < n; i += kPartialThreads) sum += partial[i];
  sum = over_block(sum, shared_memory<SquaresShared>().slots, Plus{});
  if (threadIdx.x == 0) *out += sum;
}

struct AdamWNumbers {
  float b1, b2, c1, c2, step_size, root, keep, scale, eps;
};

// A thread updates kElements neighbours, 4 where all begin aligned: one element's loads alone do not fill the memory's
// latency. n: such groups.
template <int kElements>
__global__ void __launch_bounds__(kOptimThreads)
    adamw_kernel(float* param, Bf16* copy, const float* grad, float* m, float* v, AdamWNumbers o, std::int64_t n) {
  const std::int64_t group = static_cast<std::int64_t>(blockIdx.x) * kOptimThreads + threadIdx.x;
  if (group >= n) return;
  const std::int64_t at = group * kElements;
  float p[kElements], g[kElements], mi[kElements], vi[kElements];
  load_floats(p, param + at), load_floats(g, grad + at), load_floats(mi, m + at), load_floats(vi, v + at);
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    g[i] *= o.scale;
    mi[i] = o.b1 * mi[i] + o.c1 * g[i];
    vi[i] = o.b2 * vi[i] + o.c2 * g[i] * g[i];
    p[i] = p[i] * o.keep - o.step_size * mi[i] / (sqrtf(vi[i]) * o.root + o.eps);
  }
  store_floats(m + at, mi), store_floats(v + at, vi), store_floats(param + at, p);
  if (copy == nullptr) return;
  if constexpr (kElements == 4)
    *reinterpret_cast<uint2*>(copy + at) = uint2{pack_bf16(p[0], p[1]), pack_bf16(p[2], p[3])};
  else
    copy[at] = Bf16(p[0]);
}

}  // namespace

void sum_of_squares(Context& ctx, TensorView out, TensorView x) {
  Queue& queue = queue_of(ctx);
  const std::int64_t n = x.numel(), blocks = (n + kSquaresBlock - 1) / kSquaresBlock;
  if (blocks == 0) return;
  auto* partial = static_cast<double*>(queue.scratch(idx(blocks) * sizeof(double)));
  launch(queue, Op::sum_of_squares, squares_kernel,
         {static_cast<unsigned>(blocks), kOptimThreads, sizeof(SquaresShared)}, partial, x.data<float>(), n);
  launch(queue, Op::sum_of_squares, add_partials_kernel, {1, kPartialThreads, sizeof(SquaresShared)},
         out.data<double>(), partial, blocks);
}

void adamw(Context& ctx, TensorView param, TensorView copy, TensorView grad, TensorView m, TensorView v,
           const ops::AdamW& o) {
  const auto t = static_cast<double>(o.step);
  AdamWNumbers numbers;  // as runtime/cpu/optim.cpp rounds them
  numbers.b1 = static_cast<float>(o.beta1), numbers.b2 = static_cast<float>(o.beta2);
  numbers.c1 = static_cast<float>(1.0 - o.beta1), numbers.c2 = static_cast<float>(1.0 - o.beta2);
  numbers.step_size = static_cast<float>(o.learning_rate / (1.0 - std::pow(o.beta1, t)));
  numbers.root = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(o.beta2, t)));
  numbers.keep = static_cast<float>(1.0 - o.learning_rate * o.weight_decay);
  numbers.scale = static_cast<float>(o.grad_scale), numbers.eps = static_cast<float>(o.eps);
  const auto update = [&](auto kernel, std::int64_t groups) {
    launch(queue_of(ctx), Op::adamw, kernel, {blocks_of(groups, kOptimThreads), kOptimThreads}, param.data<float>(),
           copy.null() ? nullptr : copy.data<Bf16>(), grad.data<float>(), m.data<float>(), v.data<float>(), numbers,
           groups);
  };
  // Owned parts begin at multiples of 128 elements and mostly end at them, too.
  const bool aligned = in_pieces<float>(param.numel(), {param.raw(), grad.raw(), m.raw(), v.raw()}) &&
                       reinterpret_cast<std::uintptr_t>(copy.raw()) % 8 == 0;
  if (aligned)
    update(adamw_kernel<4>, param.numel() / 4);
  else
    update(adamw_kernel<1>, param.numel());
}

}  // namespace emox::cuda
