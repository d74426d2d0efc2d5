// Causal attention inside segments, block by block (the online softmax of FlashAttention, Dao et al. 2022).
//
// Scores exist for one block of queries and keys at a time. Blocks above the diagonal are never touched, so the work is
// that of the causal half of each segment. Products are oneDNN's sgemm on strided blocks of the packed qkv rows.
#include <dnnl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "runtime/cpu/kernels.h"
#include "runtime/cpu/parallel.h"
#include "runtime/cpu/segments.h"
#include "runtime/cpu/simd_math.h"
#include "runtime/telemetry/spans.h"

namespace emox::cpu {
namespace {

constexpr std::int64_t kBlock = 64;  // queries and keys of one block: two score blocks fit the L1 cache

struct Problem {
  std::int64_t width, stride, head_dim;  // of out rows, of qkv rows, of one head
  float scale;
};

Problem describe(const TensorView& qkv, int heads) {
  const std::int64_t width = qkv.dim(1) / 3, d = width / heads;
  return {width, qkv.dim(1), d, 1.0F / std::sqrt(static_cast<float>(d))};
}

// 2 * products * head_dim * n(n+1)/2 FLOPs a segment and head.
double flops(const Segments& s, std::int64_t width, double products) {
  double pairs = 0;
  for (std::int64_t i = 0; i < s.count; ++i) {
    const double n = s.at[i + 1] - s.at[i];
    pairs += n * (n + 1) / 2;
  }
  return 2.0 * products * static_cast<double>(width) * pairs;
}

void gemm(char ta, char tb, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a,
          std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc) {
  dnnl_sgemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

// One block of queries of one head against all keys before it.
void forward_block(const Problem& p, const float* qkv, float* out, float* lse, std::int64_t q0, std::int64_t nq) {
  float scores[kBlock * kBlock], high[kBlock], sum[kBlock];
  std::fill_n(high, nq, -std::numeric_limits<float>::infinity());
  std::fill_n(sum, nq, 0.0F);
  const float *keys = qkv + p.width, *values = qkv + 2 * p.width;
  for (std::int64_t k0 = 0; k0 < q0 + nq; k0 += kBlock) {
    const std::int64_t nk = std::min(kBlock, q0 + nq - k0);
    gemm('N', 'T', nq, nk, p.head_dim, p.scale, qkv + q0 * p.stride, p.stride, keys + k0 * p.stride, p.stride, 0.0F,
         scores, kBlock);
    for (std::int64_t i = 0; i < nq; ++i) {
      float* s = scores + i * kBlock;
      const std::int64_t seen = std::min(nk, q0 + i + 1 - k0);  // keys not after the query
      float m = high[i];
#pragma omp simd reduction(max : m)
      for (std::int64_t j = 0; j < seen; ++j) m = s[j] > m ? s[j] : m;
      float total = 0;
#pragma omp simd reduction(+ : total)
      for (std::int64_t j = 0; j < seen; ++j) {
        s[j] = exp_approx(s[j] - m);
        total += s[j];
      }
      std::fill(s + seen, s + nk, 0.0F);
      const float shrink = k0 == 0 ? 0.0F : exp_approx(high[i] - m);
      sum[i] = sum[i] * shrink + total;
      high[i] = m;
      if (k0 > 0 && shrink != 1.0F) {
        float* o = out + (q0 + i) * p.width;
#pragma omp simd
        for (std::int64_t d = 0; d < p.head_dim; ++d) o[d] *= shrink;
      }
    }
    gemm('N', 'N', nq, p.head_dim, nk, 1.0F, scores, kBlock, values + k0 * p.stride, p.stride, k0 == 0 ? 0.0F : 1.0F,
         out + q0 * p.width, p.width);
  }
  for (std::int64_t i = 0; i < nq; ++i) {
    const float inverse = 1.0F / sum[i];
    float* o = out + (q0 + i) * p.width;
#pragma omp simd
    for (std::int64_t d = 0; d < p.head_dim; ++d) o[d] *= inverse;
    lse[q0 + i] = high[i] + std::log(sum[i]);
  }
}

// All blocks of one segment and head. delta[i] = <dout_i, out_i>.
struct BackwardTask {
  const float *qkv, *out, *dout, *lse;
  float* dqkv;
  std::int64_t n;
};

void backward_block(const Problem& p, const BackwardTask& t, const float* delta, std::int64_t q0, std::int64_t k0) {
  float prob[kBlock * kBlock], ds[kBlock * kBlock];
  const std::int64_t nq = std::min(kBlock, t.n - q0), nk = std::min(kBlock, std::min(t.n, q0 + nq) - k0);
  const float *q = t.qkv + q0 * p.stride, *k = t.qkv + p.width + k0 * p.stride,
              *v = t.qkv + 2 * p.width + k0 * p.stride;
  const float* dout = t.dout + q0 * p.width;
  float *dq = t.dqkv + q0 * p.stride, *dk = t.dqkv + p.width + k0 * p.stride,
        *dv = t.dqkv + 2 * p.width + k0 * p.stride;
  gemm('N', 'T', nq, nk, p.head_dim, p.scale, q, p.stride, k, p.stride, 0.0F, prob, kBlock);
  gemm('N', 'T', nq, nk, p.head_dim, 1.0F, dout, p.width, v, p.stride, 0.0F, ds, kBlock);
  for (std::int64_t i = 0; i < nq; ++i) {
    float *s = prob + i * kBlock, *d = ds + i * kBlock;
    const std::int64_t seen = std::min(nk, q0 + i + 1 - k0);
    const float l = t.lse[q0 + i], dl = delta[q0 + i], scale = p.scale;
#pragma omp simd
    for (std::int64_t j = 0; j < seen; ++j) {
      s[j] = exp_approx(s[j] - l);
      d[j] = s[j] * (d[j] - dl) * scale;
    }
    std::fill(s + seen, s + nk, 0.0F);
    std::fill(d + seen, d + nk, 0.0F);
  }
  // The diagonal block is the first to touch its rows of dk and dv, the block k0 = 0 the first for dq.
  const float first_k = q0 == k0 ? 0.0F : 1.0F, first_q = k0 == 0 ? 0.0F : 1.0F;
  gemm('T', 'N', nk, p.head_dim, nq, 1.0F, prob, kBlock, dout, p.width, first_k, dv, p.stride);
  gemm('T', 'N', nk, p.head_dim, nq, 1.0F, ds, kBlock, q, p.stride, first_k, dk, p.stride);
  gemm('N', 'N', nq, p.head_dim, nk, 1.0F, ds, kBlock, k, p.stride, first_q, dq, p.stride);
}

void backward_segment(const Problem& p, const BackwardTask& t) {
  thread_local std::vector<float> delta;
  delta.resize(static_cast<std::size_t>(t.n));
  for (std::int64_t i = 0; i < t.n; ++i) {
    const float *o = t.out + i * p.width, *d = t.dout + i * p.width;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t j = 0; j < p.head_dim; ++j) sum += o[j] * d[j];
    delta[static_cast<std::size_t>(i)] = sum;
  }
  for (std::int64_t q0 = 0; q0 < t.n; q0 += kBlock)
    for (std::int64_t k0 = 0; k0 <= q0; k0 += kBlock) backward_block(p, t, delta.data(), q0, k0);
}

}  // namespace

void attention(Context& ctx, TensorView out, TensorView lse, TensorView qkv, TensorView segments, int heads) {
  const Problem p = describe(qkv, heads);
  const Segments s = checked_segments("attention", segments, qkv.dim(0));
  const Span span(ctx, "attention", flops(s, p.width, 2), static_cast<double>(qkv.bytes() + out.bytes()));
  const std::int64_t tokens = qkv.dim(0);
  auto *po = out.data<float>(), *pl = lse.data<float>();
  const auto* pq = qkv.data<float>();
  parallel_tasks(ctx, s.count * heads, [&](std::int64_t task) {
    const std::int64_t h = task % heads, begin = s.at[task / heads], n = s.at[task / heads + 1] - begin;
    const float* head = pq + begin * p.stride + h * p.head_dim;
    for (std::int64_t q0 = 0; q0 < n; q0 += kBlock)
      forward_block(p, head, po + begin * p.width + h * p.head_dim, pl + h * tokens + begin, q0,
                    std::min(kBlock, n - q0));
  });
}

void attention_backward(Context& ctx, TensorView dqkv, TensorView dout, TensorView out, TensorView lse, TensorView qkv,
                        TensorView segments, int heads) {
  const Problem p = describe(qkv, heads);
  const Segments s = checked_segments("attention_backward", segments, qkv.dim(0));
  const Span span(ctx, "attention_backward", flops(s, p.width, 4),
                  static_cast<double>(2 * qkv.bytes() + 2 * out.bytes()));
  const std::int64_t tokens = qkv.dim(0);
  const auto *pq = qkv.data<float>(), *po = out.data<float>(), *pd = dout.data<float>(), *pl = lse.data<float>();
  auto* pdq = dqkv.data<float>();
  parallel_tasks(ctx, s.count * heads, [&](std::int64_t task) {
    const std::int64_t h = task % heads, begin = s.at[task / heads], n = s.at[task / heads + 1] - begin;
    const std::int64_t column = h * p.head_dim;
    if (n > 0)
      backward_segment(p, {pq + begin * p.stride + column, po + begin * p.width + column, pd + begin * p.width + column,
                           pl + h * tokens + begin, pdq + begin * p.stride + column, n});
  });
}

}  // namespace emox::cpu
