// Dense products for which cuBLASLt has no algorithm (odd strides of bf16), and empty sums. A block makes one 64x64
// tile; tiles of one row of tiles are neighbours, so that what they share stays in the cache.
#include "runtime/core/error.h"
#include "runtime/cuda/blas.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/simt_tile.h"

namespace emox::cuda {
namespace {

template <typename T, typename C>
__global__ void __launch_bounds__(kSimtThreads) simt_product_kernel(Product p) {
  auto& s = shared_memory<SimtShared>();
  const std::int64_t across = (p.n + kSimtTile - 1) / kSimtTile;
  const std::int64_t m = blockIdx.x / across * kSimtTile, n = blockIdx.x % across * kSimtTile;
  const std::int64_t a_line = p.a_transposed ? 1 : p.a.stride, a_step = p.a_transposed ? p.a.stride : 1;
  const std::int64_t b_line = p.b_transposed ? p.b.stride : 1, b_step = p.b_transposed ? 1 : p.b.stride;
  const SimtOperand<T> a{static_cast<const T*>(p.a.data) + m * a_line, a_line, a_step, p.m - m};
  const SimtOperand<T> b{static_cast<const T*>(p.b.data) + n * b_line, b_line, b_step, p.n - n};
  float sum[4][4];
  simt_tile(s, sum, a, b, p.k);
  store_simt(static_cast<C*>(p.c) + m * p.c_stride + n, p.c_stride, p.m - m, p.n - n, sum, p.beta);
}

}  // namespace

void simt_product(Queue& queue, ops::Op op, const Product& p) {
  const std::int64_t tiles = ((p.m + kSimtTile - 1) / kSimtTile) * ((p.n + kSimtTile - 1) / kSimtTile);
  require(p.a.type == p.b.type && (p.c_type == DType::F32 || p.c_type == p.a.type), "[{}] a product of {} and {} to {}",
          ops::name_of(op), name_of(p.a.type), name_of(p.b.type), name_of(p.c_type));
  const Shape3 shape{blocks_of(tiles, 1), kSimtThreads, sizeof(SimtShared)};
  if (p.a.type == DType::F32)
    launch(queue, op, simt_product_kernel<float, float>, shape, p);
  else if (p.c_type == DType::F32)
    launch(queue, op, simt_product_kernel<Bf16, float>, shape, p);
  else
    launch(queue, op, simt_product_kernel<Bf16, Bf16>, shape, p);
}

}  // namespace emox::cuda
