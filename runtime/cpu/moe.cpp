// Router, document pools, row movement.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/cpu/indices.h"
#include "runtime/cpu/kernels.h"
#include "runtime/cpu/parallel.h"
#include "runtime/cpu/prefetch.h"
#include "runtime/cpu/segments.h"
#include "runtime/cpu/simd_math.h"

namespace emox::cpu {
namespace {

using ops::Op;
using ops::TopkResult;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// out = softmax(z) over n entries (entries at -infinity become exactly 0); returns the log-sum-exp.
float softmax_row(float* out, const float* z, std::int64_t n) {
  float high = kMinusInfinity;
#pragma omp simd reduction(max : high)
  for (std::int64_t i = 0; i < n; ++i) high = z[i] > high ? z[i] : high;
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) {
    out[i] = exp_approx(z[i] - high);
    sum += out[i];
  }
  const float inverse = 1.0F / sum;
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) out[i] *= inverse;
  return high + std::log(sum);
}

// The k largest of score[n] in falling order, ties to the lowest index, by insertion: k is small. `allowed` (null: all)
// has at least k members, and only they are picked, whatever their scores are: NaN and -infinity count as the lowest
// number, since a comparison with them would let the others pass.
void top_k(std::int32_t* ids, const float* score, const std::uint8_t* allowed, std::int64_t n, std::int64_t k) {
  if (k == 0) return;
  float best[64];
  std::vector<float> many;
  float* values = best;
  if (k > 64) {
    many.resize(idx(k));
    values = many.data();
  }
  std::int64_t found = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const float s = std::max(std::numeric_limits<float>::lowest(), score[i]);
    if (found == k && !(s > values[k - 1])) continue;
    if (allowed != nullptr && allowed[i] == 0) continue;
    std::int64_t at = found < k ? found++ : k - 1;
    for (; at > 0 && s > values[at - 1]; --at) {
      values[at] = values[at - 1];
      ids[at] = ids[at - 1];
    }
    values[at] = s;
    ids[at] = static_cast<std::int32_t>(i);
  }
}

}  // namespace

void router_softmax(Context& ctx, TensorView p, TensorView logits, std::int64_t n) {
  const std::int64_t width = p.dim(1);
  auto* out = p.data<float>();
  const auto* z = logits.data<float>();
  parallel_pieces(ctx, p.dim(0), 64, [&](std::int64_t b, std::int64_t e, int) {
    for (std::int64_t t = b; t < e; ++t) softmax_row(out + t * width, z + t * width, n);
  });
}

void document_scores(Context& ctx, TensorView scores, TensorView p, TensorView segments) {
  const std::int64_t n = scores.dim(1), width = p.dim(1);
  const auto* at = checked_segments("document_scores", segments, p.dim(0)).at;
  const auto* in = p.data<float>();
  auto* out = scores.data<float>();
  parallel_tasks(ctx, scores.dim(0), [&](std::int64_t doc) {
    // Double sums: a long document must not let rounding decide who is in its pool.
    thread_local std::vector<double> sum;
    sum.assign(idx(n), 0.0);
    double* const s = sum.data();
    for (std::int64_t t = at[doc]; t < at[doc + 1]; ++t) {
#pragma omp simd
      for (std::int64_t i = 0; i < n; ++i) s[i] += static_cast<double>(in[t * width + i]);
    }
    for (std::int64_t i = 0; i < n; ++i) out[doc * n + i] = static_cast<float>(s[i]);
  });
}

void document_pools(Context& ctx, TensorView pool, TensorView scores, TensorView sizes) {
  const std::int64_t n = pool.dim(1);
  const auto* size = sizes.data<std::int32_t>();
  const auto* in = scores.data<float>();
  auto* out = pool.data<std::uint8_t>();
  parallel_tasks(ctx, pool.dim(0), [&](std::int64_t doc) {
    std::uint8_t* mask = out + doc * n;
    const float* score = in + doc * n;
    if (size[doc] >= n) {
      std::fill_n(mask, n, std::uint8_t{1});
      return;
    }
    thread_local std::vector<std::int32_t> order;
    order.resize(idx(n));
    std::iota(order.begin(), order.end(), 0);
    const auto value = [&](std::int32_t i) { return std::max(kMinusInfinity, score[i]); };  // NaN: the lowest
    const auto higher = [&](std::int32_t a, std::int32_t b) {
      return value(a) != value(b) ? value(a) > value(b) : a < b;
    };
    const std::int64_t d = std::max<std::int64_t>(size[doc], 0);
    std::nth_element(order.begin(), order.begin() + d, order.end(), higher);
    std::fill_n(mask, n, std::uint8_t{0});
    for (std::int64_t i = 0; i < d; ++i) mask[order[idx(i)]] = 1;
  });
}

void masked_topk(Context& ctx, TopkResult out, TensorView logits, TensorView pool, TensorView segments, TensorView bias,
                 bool normalize, TensorView free_tokens) {
  const std::int64_t n = out.experts(), width = logits.dim(1), k = out.ids.dim(1), tokens = logits.dim(0);
  const auto* z = logits.data<float>();
  const auto* mask = pool.null() ? nullptr : pool.data<std::uint8_t>();
  const std::int64_t docs = pool.null() ? 0 : pool.dim(0);
  const auto* at = pool.null() ? nullptr : checked_segments("masked_topk", segments, tokens).at;
  for (std::int64_t doc = 0; doc < docs; ++doc) {
    const std::int64_t members =
        std::count_if(mask + doc * n, mask + (doc + 1) * n, [](std::uint8_t m) { return m != 0; });
    require<ShapeError>(members >= k, "[masked_topk] the pool of document {} holds {} experts, but a token picks {}",
                        doc, members, k);
  }
  const auto* b = bias.null() ? nullptr : bias.data<float>();
  const auto* unlimited = free_tokens.null() ? nullptr : free_tokens.data<std::uint8_t>();
  auto *p = out.p.data<float>(), *lse = out.lse.data<float>(), *gates = out.gates.data<float>();
  auto* ids = out.ids.data<std::int32_t>();
  parallel_pieces(ctx, tokens, 64, [&](std::int64_t begin, std::int64_t end, int) {
    thread_local std::vector<float> score;
    score.resize(idx(n));
    float* const s = score.data();
    std::int64_t doc =
        mask == nullptr ? 0 : std::upper_bound(at, at + docs + 1, static_cast<std::int32_t>(begin)) - at - 1;
    for (std::int64_t t = begin; t < end; ++t) {
      const float* row = z + t * width;
      float* const pt = p + t * width;
      const std::uint8_t* m = nullptr;
      if (mask != nullptr) {
        while (t >= at[doc + 1]) ++doc;
        if (unlimited == nullptr || unlimited[t] == 0) m = mask + doc * n;
      }
      if (m != nullptr)
        for (std::int64_t i = 0; i < n; ++i) s[i] = m[i] != 0 ? row[i] : kMinusInfinity;
      else
        std::copy_n(row, n, s);
      lse[t] = softmax_row(pt, s, n);
      // By logit, not by p: the same order, but experts outside the pool stay below p = 0 inside it.
      if (b != nullptr)
        for (std::int64_t i = 0; i < n; ++i) s[i] = m == nullptr || m[i] != 0 ? pt[i] + b[i] : kMinusInfinity;
      top_k(ids + t * k, s, m, n, k);
      float sum = 0;
      for (std::int64_t j = 0; j < k; ++j) sum += gates[t * k + j] = pt[ids[t * k + j]];
      if (normalize)
        for (std::int64_t j = 0; j < k; ++j) gates[t * k + j] /= sum;
    }
  });
}

void masked_topk_backward(Context& ctx, TensorView dlogits, TensorView dgates, const TopkResult& fwd,
                          TensorView balance_grad, float z_grad, bool normalize) {
  const std::int64_t n = fwd.experts(), width = dlogits.dim(1), k = fwd.ids.dim(1);
  if (!indices_fit(ctx, Op::masked_topk_backward, 3, fwd.ids, 0, n)) return;
  const auto *p = fwd.p.data<float>(), *lse = fwd.lse.data<float>(), *gates = fwd.gates.data<float>(),
             *dg = dgates.data<float>();
  const auto* ids = fwd.ids.data<std::int32_t>();
  const auto* balance = balance_grad.null() ? nullptr : balance_grad.data<float>();
  auto* out = dlogits.data<float>();
  parallel_pieces(ctx, dlogits.dim(0), 64, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      float* dp = out + t * width;
      const float* pt = p + t * width;
      if (balance != nullptr)
        std::copy_n(balance, n, dp);
      else
        std::fill_n(dp, n, 0.0F);
      // Renormalised gates g_j = p_j / s with s = sum p: dp_j = (dg_j - <g, dg>) / s.
      float inverse = 1.0F, mean = 0.0F;
      if (normalize) {
        float s = 0;
        for (std::int64_t j = 0; j < k; ++j) {
          s += pt[ids[t * k + j]];
          mean += gates[t * k + j] * dg[t * k + j];
        }
        inverse = 1.0F / s;
      }
      for (std::int64_t j = 0; j < k; ++j) dp[ids[t * k + j]] += (dg[t * k + j] - mean) * inverse;
      float dot = 0;
#pragma omp simd reduction(+ : dot)
      for (std::int64_t i = 0; i < n; ++i) dot += pt[i] * dp[i];
      const float z = 2.0F * z_grad * lse[t];
#pragma omp simd
      for (std::int64_t i = 0; i < n; ++i) dp[i] = pt[i] * (dp[i] - dot + z);
      std::fill(dp + n, dp + width, 0.0F);
    }
  });
}

void router_statistics(Context& ctx, TensorView counts, TensorView p_sum, TensorView z_sum, const TopkResult& fwd) {
  const std::int64_t tokens = fwd.p.dim(0), n = fwd.experts(), width = fwd.p.dim(1), picks = fwd.ids.numel();
  if (!indices_fit(ctx, Op::router_statistics, 4, fwd.ids, 0, n)) return;
  const auto* ids = fwd.ids.data<std::int32_t>();
  const auto *p = fwd.p.data<float>(), *lse = fwd.lse.data<float>();
  auto* c = counts.data<std::int64_t>();
  auto *sum = p_sum.data<double>(), *z = z_sum.data<double>();
  for (std::int64_t i = 0; i < picks; ++i) ++c[ids[i]];
  for (std::int64_t t = 0; t < tokens; ++t) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) sum[i] += static_cast<double>(p[t * width + i]);
  }
  double total = 0;
  for (std::int64_t t = 0; t < tokens; ++t) total += static_cast<double>(lse[t]) * static_cast<double>(lse[t]);
  *z += total;
}

void document_experts(Context& ctx, TensorView sum, TensorView ids, TensorView segments, std::int64_t experts) {
  const auto* at = checked_segments("document_experts", segments, ids.dim(0)).at;
  if (!indices_fit(ctx, Op::document_experts, 2, ids, 0, experts)) return;
  const auto* id = ids.data<std::int32_t>();
  const std::int64_t k = ids.dim(1);
  // seen[i]: one more than the last document that picked expert i.
  thread_local std::vector<std::int64_t> seen;
  seen.assign(idx(experts), 0);
  std::int64_t total = 0;
  for (std::int64_t doc = 0; doc + 1 < segments.numel(); ++doc)
    for (std::int64_t i = at[doc] * k; i < at[doc + 1] * k; ++i) {
      std::int64_t& last = seen[idx(id[i])];
      total += last != doc + 1 ? 1 : 0;
      last = doc + 1;
    }
  *sum.data<std::int64_t>() += total;
}

void gather_rows(Context& ctx, TensorView out, TensorView x, TensorView index) {
  if (!indices_fit(ctx, Op::gather_rows, 3, index, 0, x.dim(0))) return;
  const std::int64_t width = x.dim(1);
  const auto* at = index.data<std::int32_t>();
  const auto* in = x.data<float>();
  auto* o = out.data<float>();
  parallel_pieces(ctx, index.numel(), 64, [&](std::int64_t b, std::int64_t e, int) {
    for (std::int64_t r = b; r < e; ++r) {
      if (r + 2 < e) fetch_to_read(in + at[r + 2] * width, width);
      fetch_to_write(o + (r + 2) * width, width);
      std::copy_n(in + at[r] * width, width, o + r * width);
    }
  });
}

void combine_rows(Context& ctx, TensorView y, TensorView rows, TensorView slots, float beta) {
  if (!indices_fit(ctx, Op::combine_rows, 3, slots, -1, rows.dim(0))) return;
  const std::int64_t width = y.dim(1), m = slots.dim(1);
  const auto* at = slots.data<std::int32_t>();
  const auto* in = rows.data<float>();
  auto* out = y.data<float>();
  parallel_pieces(ctx, y.dim(0), 16, [&](std::int64_t b, std::int64_t e, int) {
    for (std::int64_t t = b; t < e; ++t) {
      float* o = out + t * width;
      if (beta == 0.0F)
        std::fill_n(o, width, 0.0F);
      else if (beta != 1.0F)
        for (std::int64_t i = 0; i < width; ++i) o[i] *= beta;
      for (std::int64_t j = 0; j < m; ++j) {
        if (at[t * m + j] < 0) continue;
        const float* row = in + at[t * m + j] * width;
#pragma omp simd
        for (std::int64_t i = 0; i < width; ++i) o[i] += row[i];
      }
    }
  });
}

void gather_elements(Context& ctx, TensorView dst, TensorView src, TensorView index) {
  if (!indices_fit(ctx, Op::gather_elements, 3, index, 0, src.numel())) return;
  const auto* at = index.data<std::int32_t>();
  const auto* in = src.data<float>();
  auto* out = dst.data<float>();
  for (std::int64_t i = 0; i < index.numel(); ++i) out[i] = in[at[i]];
}

void scatter_elements(Context& ctx, TensorView dst, TensorView src, TensorView index) {
  if (!indices_fit(ctx, Op::scatter_elements, 3, index, 0, dst.numel())) return;
  const auto* at = index.data<std::int32_t>();
  const auto* in = src.data<float>();
  auto* out = dst.data<float>();
  for (std::int64_t i = 0; i < index.numel(); ++i) out[at[i]] = in[i];
}

}  // namespace emox::cpu
