// Matrix products by oneDNN's sgemm: near the processor's peak for every shape, no set-up for a new one.
#include <dnnl.h>
#include <fmt/format.h>

#include <algorithm>

#include "runtime/core/error.h"
#include "runtime/cpu/gemm.h"
#include "runtime/cpu/kernels.h"
#include "runtime/cpu/parallel.h"
#include "runtime/cpu/processor.h"
#include "runtime/cpu/segments.h"

namespace emox::cpu {

void sgemm(char ta, char tb, std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t lda,
           const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc) {
  if (m == 0 || n == 0) return;
  if (k == 0) {  // an empty sum: beta C remains, which the library does not compute
    for (std::int64_t i = 0; i < m; ++i)
      for (std::int64_t j = 0; j < n; ++j) c[i * ldc + j] = beta == 0.0F ? 0.0F : beta * c[i * ldc + j];
    return;
  }
  const dnnl_status_t status = dnnl_sgemm(ta, tb, m, n, k, 1.0F, a, std::max<std::int64_t>(lda, 1), b,
                                          std::max<std::int64_t>(ldb, 1), beta, c, std::max<std::int64_t>(ldc, 1));
  require(status == dnnl_success, "dnnl_sgemm({}{}, {}, {}, {}) failed with status {}", ta, tb, m, n, k,
          static_cast<int>(status));
}

std::string matrix_library() {
  const dnnl_version_t* const v = dnnl_version();
  return fmt::format("oneDNN {}.{}.{}", v->major, v->minor, v->patch);
}

namespace {

// The longest block of rows that one task takes: long enough for full speed, short enough to share an expert's rows.
constexpr std::int64_t kRowBlock = 512;

// Runs body(expert, begin, end) over all experts' rows in blocks. One thread takes each expert in one piece.
template <typename Body>
void for_row_blocks(const Context& ctx, const std::int64_t* offsets, std::int64_t experts, Body&& body) {
  if (ctx.threads == 1) {
    for (std::int64_t e = 0; e < experts; ++e)
      if (offsets[e + 1] > offsets[e]) body(e, offsets[e], offsets[e + 1]);
    return;
  }
  // Every expert has at least one task, possibly empty; long experts have more.
  const std::int64_t blocks = (offsets[experts] + kRowBlock - 1) / kRowBlock + experts;
  parallel_tasks(ctx, blocks, [&](std::int64_t task) {
    // Task -> (expert, block): the tasks before expert e number floor(offsets[e] / kRowBlock) + e.
    const auto first = [&](std::int64_t e) { return offsets[e] / kRowBlock + e; };
    std::int64_t lo = 0, hi = experts;
    while (hi - lo > 1) {
      const std::int64_t mid = (lo + hi) / 2;
      (first(mid) <= task ? lo : hi) = mid;
    }
    const std::int64_t begin = offsets[lo] + (task - first(lo)) * kRowBlock;
    const std::int64_t end = std::min(begin + kRowBlock, offsets[lo + 1]);
    if (begin < end) body(lo, begin, end);
  });
}

// How an expert's output [m, n] is cut into tiles, so that every thread has several tasks even with few experts. Tiles
// are whole registers wide, and not so small that their products lose speed.
struct Tiles {
  std::int64_t down = 1, across = 1;

  Tiles(std::int64_t m, std::int64_t n, std::int64_t experts, int threads) {
    constexpr std::int64_t kTasksAThread = 4, kSmallest = 64;
    if (threads == 1) return;
    const std::int64_t wanted = (kTasksAThread * threads + experts - 1) / std::max<std::int64_t>(experts, 1);
    down = std::clamp<std::int64_t>(m / kSmallest, 1, wanted);
    across = std::clamp<std::int64_t>(n / kSmallest, 1, (wanted + down - 1) / down);
  }
  std::int64_t count() const { return down * across; }
  static std::int64_t boundary(std::int64_t extent, std::int64_t i, std::int64_t parts) {
    return i == parts ? extent : extent * i / parts / 16 * 16;
  }
};

}  // namespace

void matmul_nt(Context&, TensorView c, TensorView a, TensorView b, float beta) {
  const std::int64_t m = a.dim(0), k = a.dim(1), n = b.dim(0);
  sgemm('N', 'T', m, n, k, a.data<float>(), k, b.data<float>(), k, beta, c.data<float>(), n);
}

void matmul_nn(Context&, TensorView c, TensorView a, TensorView b, float beta) {
  const std::int64_t m = a.dim(0), k = a.dim(1), n = b.dim(1);
  sgemm('N', 'N', m, n, k, a.data<float>(), k, b.data<float>(), n, beta, c.data<float>(), n);
}

void matmul_tn(Context&, TensorView c, TensorView a, TensorView b, float beta) {
  const std::int64_t m = a.dim(1), k = a.dim(0), n = b.dim(1);
  sgemm('T', 'N', m, n, k, a.data<float>(), m, b.data<float>(), n, beta, c.data<float>(), n);
}

void logits(Context&, TensorView logits, TensorView x, TensorView weight) {
  const std::int64_t m = x.dim(0), k = x.dim(1), n = weight.dim(0);
  sgemm('N', 'T', m, n, k, x.data<float>(), k, weight.data<float>(), k, 0.0F, logits.data<float>(), logits.dim(1));
}

void logits_backward(Context&, TensorView dx, TensorView dweight, TensorView dlogits, TensorView x, TensorView weight) {
  const std::int64_t tokens = x.dim(0), width = x.dim(1), n = weight.dim(0), ld = dlogits.dim(1);
  const auto* dz = dlogits.data<float>();
  sgemm('T', 'N', n, width, tokens, dz, ld, x.data<float>(), width, 1.0F, dweight.data<float>(), width);
  sgemm('N', 'N', tokens, width, n, dz, ld, weight.data<float>(), width, 1.0F, dx.data<float>(), width);
}

void grouped_matmul_nt(Context& ctx, TensorView c, TensorView a, TensorView b, TensorView offsets) {
  const std::int64_t experts = b.dim(0), n = b.dim(1), k = b.dim(2);
  const auto *pa = a.data<float>(), *pb = b.data<float>();
  auto* pc = c.data<float>();
  for_row_blocks(ctx, checked_offsets("grouped_matmul", offsets, a.dim(0)), experts,
                 [&](std::int64_t e, std::int64_t begin, std::int64_t end) {
                   sgemm('N', 'T', end - begin, n, k, pa + begin * k, k, pb + e * n * k, k, 0.0F, pc + begin * n, n);
                 });
}

void grouped_matmul_nn(Context& ctx, TensorView c, TensorView a, TensorView b, TensorView offsets) {
  const std::int64_t experts = b.dim(0), k = b.dim(1), n = b.dim(2);
  const auto *pa = a.data<float>(), *pb = b.data<float>();
  auto* pc = c.data<float>();
  for_row_blocks(ctx, checked_offsets("grouped_matmul", offsets, a.dim(0)), experts,
                 [&](std::int64_t e, std::int64_t begin, std::int64_t end) {
                   sgemm('N', 'N', end - begin, n, k, pa + begin * k, k, pb + e * k * n, n, 0.0F, pc + begin * n, n);
                 });
}

void grouped_matmul_tn(Context& ctx, TensorView c, TensorView a, TensorView b, TensorView offsets, float beta) {
  const std::int64_t experts = c.dim(0), m = c.dim(1), n = c.dim(2);
  const auto* off = checked_offsets("grouped_matmul", offsets, a.dim(0));
  const auto *pa = a.data<float>(), *pb = b.data<float>();
  auto* pc = c.data<float>();
  // A sum over rows stays whole: a task owns a tile of an expert's output.
  const Tiles tiles(m, n, experts, ctx.threads);
  parallel_tasks(ctx, experts * tiles.count(), [&](std::int64_t task) {
    const std::int64_t e = task / tiles.count(), i = task % tiles.count() / tiles.across, j = task % tiles.across;
    const std::int64_t m0 = Tiles::boundary(m, i, tiles.down), m1 = Tiles::boundary(m, i + 1, tiles.down),
                       n0 = Tiles::boundary(n, j, tiles.across), n1 = Tiles::boundary(n, j + 1, tiles.across);
    const std::int64_t rows = off[e + 1] - off[e];
    if (rows == 0 && beta == 1.0F) return;  // nothing is added
    sgemm('T', 'N', m1 - m0, n1 - n0, rows, pa + off[e] * m + m0, m, pb + off[e] * n + n0, n, beta,
          pc + (e * m + m0) * n + n0, n);
  });
}

}  // namespace emox::cpu
