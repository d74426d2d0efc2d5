// Ops for choosing experts. Norms: a warp a row. Scores: an expert's sum must not depend on who comes first, so a block
// owns an expert and walks over all picks in order; this runs when experts are chosen, not when a model trains.
#include "runtime/cuda/device.h"
#include "runtime/cuda/kernels.h"
#include "runtime/cuda/launch.h"

namespace emox::cuda {
namespace {

using ops::Op;

constexpr int kScoreThreads = 256, kRowsABlock = kScoreThreads / kWarp;

__global__ void __launch_bounds__(kScoreThreads)
    translate_ids_kernel(std::int32_t* ids, const std::int32_t* table, std::int64_t n, std::int64_t size,
                         double* fault) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kScoreThreads + threadIdx.x;
  if (i >= n) return;
  if (ids[i] < 0 || ids[i] >= size) return report_fault(fault, Op::translate_ids, 1, i);
  ids[i] = table[ids[i]];
}

template <typename T>
__global__ void __launch_bounds__(kScoreThreads)
    row_norms_kernel(float* norms, const T* x, std::int64_t rows, std::int64_t width) {
  const std::int64_t r = static_cast<std::int64_t>(blockIdx.x) * kRowsABlock + threadIdx.x / kWarp;
  if (r >= rows) return;
  double sum = 0;
  for (std::int64_t i = threadIdx.x % kWarp; i < width; i += kWarp) {
    const auto v = static_cast<double>(to_float(x[r * width + i]));
    sum += v * v;
  }
  sum = over_warp(sum, Plus{});
  if (threadIdx.x % kWarp == 0) norms[r] = static_cast<float>(sqrt(sum));
}

template <typename T>
__global__ void __launch_bounds__(kScoreThreads)
    output_change_kernel(double* change, const T* h, const T* y, std::int64_t rows, std::int64_t width) {
  const std::int64_t r = static_cast<std::int64_t>(blockIdx.x) * kRowsABlock + threadIdx.x / kWarp;
  if (r >= rows) return;
  double before = 0, after = 0, product = 0;
  for (std::int64_t i = threadIdx.x % kWarp; i < width; i += kWarp) {
    const auto u = static_cast<double>(to_float(h[r * width + i]));
    const double v = u + static_cast<double>(to_float(y[r * width + i]));
    before += u * u;
    after += v * v;
    product += u * v;
  }
  before = over_warp(before, Plus{}), after = over_warp(after, Plus{}), product = over_warp(product, Plus{});
  if (threadIdx.x % kWarp != 0) return;
  const double size = sqrt(before) * sqrt(after), cosine = size > 0 ? product / size : 0;
  change[r] = size > 0 && cosine > 1.0 ? 0.0 : 1.0 - cosine;
}

struct ScoreShared {
  double slots[33];
};

struct ScoreInputs {
  const std::int32_t* ids;
  const float *routed, *shared;
  const double* change;
  std::int64_t tokens, k, experts;
};

__global__ void __launch_bounds__(kScoreThreads) add_scores_kernel(double* scores, ScoreInputs in, double* fault) {
  const std::int64_t e = blockIdx.x;
  double sum = 0;
  if (e < in.experts) {
    for (std::int64_t i = threadIdx.x; i < in.tokens * in.k; i += kScoreThreads) {
      const std::int32_t id = in.ids[i];
      if (id == e) sum += static_cast<double>(in.routed[i]) * in.change[i / in.k];
      if (e == 0 && (id < 0 || id >= in.experts)) report_fault(fault, Op::add_expert_scores, 2, i);
    }
  } else {
    const float* norms = in.shared + (e - in.experts) * in.tokens;
    for (std::int64_t t = threadIdx.x; t < in.tokens; t += kScoreThreads)
      sum += static_cast<double>(norms[t]) * in.change[t];
  }
  sum = over_block(sum, shared_memory<ScoreShared>().slots, Plus{});
  if (threadIdx.x == 0) scores[e] += sum;
}

}  // namespace

void translate_ids(Context& ctx, TensorView ids, TensorView table) {
  Queue& queue = queue_of(ctx);
  launch(queue, Op::translate_ids, translate_ids_kernel, {blocks_of(ids.numel(), kScoreThreads), kScoreThreads},
         ids.data<std::int32_t>(), table.data<std::int32_t>(), ids.numel(), table.dim(0), queue.fault_word(ctx));
}

void row_norms(Context& ctx, TensorView norms, TensorView x) {
  by_type(ctx.activations, [&](auto zero) {
    using T = decltype(zero);
    launch(queue_of(ctx), Op::row_norms, row_norms_kernel<T>, {blocks_of(x.dim(0), kRowsABlock), kScoreThreads},
           norms.data<float>(), x.data<T>(), x.dim(0), x.dim(1));
  });
}

void output_change(Context& ctx, TensorView change, TensorView h, TensorView y) {
  by_type(ctx.activations, [&](auto zero) {
    using T = decltype(zero);
    launch(queue_of(ctx), Op::output_change, output_change_kernel<T>, {blocks_of(h.dim(0), kRowsABlock), kScoreThreads},
           change.data<double>(), h.data<T>(), y.data<T>(), h.dim(0), h.dim(1));
  });
}

void add_expert_scores(Context& ctx, TensorView scores, TensorView ids, TensorView routed, TensorView shared,
                       TensorView change) {
  Queue& queue = queue_of(ctx);
  const ScoreInputs in{ids.data<std::int32_t>(),     routed.data<float>(), shared.data<float>(),
                       change.data<double>(),        ids.dim(0),           ids.dim(1),
                       scores.dim(0) - shared.dim(0)};
  launch(queue, Op::add_expert_scores, add_scores_kernel,
         {static_cast<unsigned>(scores.dim(0)), kScoreThreads, sizeof(ScoreShared)}, scores.data<double>(), in,
         queue.fault_word(ctx));
}

}  // namespace emox::cuda
