// Load balancing: [layers, experts] numbers, a few thousand of them. One block a layer; what sums over layers adds the
// layers' sums in order afterwards.
#include "runtime/core/idx.h"
#include "runtime/cuda/device.h"
#include "runtime/cuda/kernels.h"
#include "runtime/cuda/launch.h"

namespace emox::cuda {
namespace {

using ops::Op;

constexpr int kBalanceThreads = 256;

struct BalanceShared {
  double doubles[33];
  long long integers[33];
};

// Sum of counts[n], the same in every thread.
__device__ inline long long count_sum(const std::int64_t* counts, std::int64_t n, BalanceShared& s) {
  long long sum = 0;
  for (std::int64_t i = threadIdx.x; i < n; i += kBalanceThreads) sum += counts[i];
  return over_block(sum, s.integers, Plus{});
}

__global__ void __launch_bounds__(kBalanceThreads)
    balance_gradient_kernel(float* gradient, double* layer_loss, const std::int64_t* counts, const double* p_sum,
                            ops::BalanceOptions o, std::int64_t layers, std::int64_t experts) {
  BalanceShared& s = shared_memory<BalanceShared>();
  const double k = static_cast<double>(o.top_k);
  const double tokens = static_cast<double>(count_sum(counts, experts, s)) / k;  // of the first layer
  const double factor = tokens > 0 && o.divisor > 0 ? 1.0 / (tokens * o.divisor) : 0.0;
  const double scale = factor * o.weight / static_cast<double>(layers) * static_cast<double>(experts) / k;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * experts;
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < experts; i += kBalanceThreads) {
    const double g = scale * static_cast<double>(counts[first + i]);
    sum += g * p_sum[first + i];
    gradient[first + i] = static_cast<float>(g);
  }
  sum = over_block(sum, s.doubles, Plus{});
  if (threadIdx.x == 0) layer_loss[blockIdx.x] = sum;
}

// One thread: few numbers, in order.
__global__ void add_in_order_kernel(double* total, const double* x, std::int64_t n) {
  double sum = *total;
  for (std::int64_t i = 0; i < n; ++i) sum += x[i];
  *total = sum;
}

__global__ void __launch_bounds__(kBalanceThreads)
    selection_bias_kernel(float* bias, const std::int64_t* counts, double rate, std::int64_t experts) {
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * experts;
  const long long total = count_sum(counts + first, experts, shared_memory<BalanceShared>());
  for (std::int64_t i = threadIdx.x; i < experts; i += kBalanceThreads) {
    const long long over = experts * counts[first + i] - total;
    bias[first + i] -= static_cast<float>(rate * (over > 0 ? 1 : over < 0 ? -1 : 0));
  }
}

__global__ void __launch_bounds__(kBalanceThreads)
    add_counts_kernel(std::int64_t* total, const std::int64_t* x, std::int64_t n) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kBalanceThreads + threadIdx.x;
  if (i < n) total[i] += x[i];
}

}  // namespace

void balance_gradient(Context& ctx, TensorView gradient, TensorView loss, TensorView counts, TensorView p_sum,
                      ops::BalanceOptions options) {
  Queue& queue = queue_of(ctx);
  const std::int64_t layers = counts.dim(0);
  if (layers == 0) return;
  auto* layer_loss = static_cast<double*>(queue.scratch(idx(layers) * sizeof(double)));
  launch(queue, Op::balance_gradient, balance_gradient_kernel,
         {static_cast<unsigned>(layers), kBalanceThreads, sizeof(BalanceShared)}, gradient.data<float>(), layer_loss,
         counts.data<std::int64_t>(), p_sum.data<double>(), options, layers, counts.dim(1));
  launch(queue, Op::balance_gradient, add_in_order_kernel, {1, 1}, loss.data<double>(), layer_loss, layers);
}

void move_selection_bias(Context& ctx, TensorView bias, TensorView counts, double rate) {
  launch(queue_of(ctx), Op::move_selection_bias, selection_bias_kernel,
         {static_cast<unsigned>(counts.dim(0)), kBalanceThreads, sizeof(BalanceShared)}, bias.data<float>(),
         counts.data<std::int64_t>(), rate, counts.dim(1));
}

void add_counts(Context& ctx, TensorView total, TensorView x) {
  launch(queue_of(ctx), Op::add_counts, add_counts_kernel, {blocks_of(x.numel(), kBalanceThreads), kBalanceThreads},
         total.data<std::int64_t>(), x.data<std::int64_t>(), x.numel());
}

void add_sum(Context& ctx, TensorView total, TensorView x) {
  launch(queue_of(ctx), Op::add_sum, add_in_order_kernel, {1, 1}, total.data<double>(), x.data<double>(), x.numel());
}

}  // namespace emox::cuda
