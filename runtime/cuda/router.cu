// The router's softmax over all experts.
//
// A warp has a row, in registers (router_rows.h): each logit is read once and each p written once, in whole sectors,
// and 16k rows are 2,048 blocks. Wider rows than kRegisterColumns are read three times, from a cache.
#include "runtime/cuda/kernels.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/router_rows.h"

namespace emox::cuda {
namespace {

using ops::Op;

constexpr int kRouterThreads = 256;

template <int kSlots>
__global__ void __launch_bounds__(kRouterThreads)
    router_softmax_kernel(float* out, const float* logits, std::int64_t rows, std::int64_t width, int n) {
  const std::int64_t t = warp_of_grid();
  if (t >= rows) return;
  const float* const row = logits + t * width;
  LaneColumns<float, kSlots> p(out + t * width);
  if constexpr (kSlots == 0) {
    softmax_of_row<0>(
        p, [&](int, int column) { return row[column]; }, n);
  } else {
    LaneColumns<float, kSlots> z(nullptr);
    for_columns<kSlots>(n, [&](int i, int column) { z[i] = row[column]; });
    softmax_of_row<kSlots>(
        p, [&](int i, int) { return z[i]; }, n);
    for_columns<kSlots>(n, [&](int i, int column) { out[t * width + column] = p[i]; });
  }
}

}  // namespace

void router_softmax(Context& ctx, TensorView p, TensorView logits, std::int64_t n) {
  Queue& q = queue_of(ctx);
  const std::int64_t rows = p.dim(0);
  by_columns(n, [&](auto slots) {
    launch(q, Op::router_softmax, router_softmax_kernel<decltype(slots)::value>,
           {blocks_of(rows * kWarp, kRouterThreads), kRouterThreads}, p.data<float>(), logits.data<float>(), rows,
           p.dim(1), n);
  });
}

}  // namespace emox::cuda
