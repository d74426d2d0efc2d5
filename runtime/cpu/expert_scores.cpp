#include "runtime/ops/expert_scores.h"

#include <algorithm>
#include <cmath>

#include "runtime/core/error.h"
#include "runtime/cpu/kernels.h"
#include "runtime/cpu/parallel.h"

namespace emox::cpu {

void translate_ids(Context&, TensorView ids, TensorView table) {
  auto* id = ids.data<std::int32_t>();
  const auto* to = table.data<std::int32_t>();
  for (std::int64_t i = 0; i < ids.numel(); ++i) {
    require<ShapeError>(id[i] >= 0 && id[i] < table.dim(0), "[translate_ids] id {} at {}, the table has {}", id[i], i,
                        table.dim(0));
    id[i] = to[id[i]];
  }
}

void row_norms(Context& ctx, TensorView norms, TensorView x) {
  const std::int64_t width = x.dim(1);
  const auto* in = x.data<float>();
  auto* out = norms.data<float>();
  parallel_pieces(ctx, x.dim(0), 64, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t r = begin; r < end; ++r) {
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (std::int64_t i = 0; i < width; ++i) {
        const auto v = static_cast<double>(in[r * width + i]);
        sum += v * v;
      }
      out[r] = static_cast<float>(std::sqrt(sum));
    }
  });
}

void output_change(Context& ctx, TensorView change, TensorView h, TensorView y) {
  const std::int64_t width = h.dim(1);
  const auto *a = h.data<float>(), *b = y.data<float>();
  auto* out = change.data<double>();
  parallel_pieces(ctx, h.dim(0), 64, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      double before = 0, after = 0, product = 0;
#pragma omp simd reduction(+ : before, after, product)
      for (std::int64_t i = 0; i < width; ++i) {
        const auto u = static_cast<double>(a[t * width + i]), v = u + static_cast<double>(b[t * width + i]);
        before += u * u;
        after += v * v;
        product += u * v;
      }
      const double size = std::sqrt(before) * std::sqrt(after);
      out[t] = size > 0 ? std::max(0.0, 1.0 - product / size) : 1.0;
    }
  });
}

void add_expert_scores(Context&, TensorView scores, TensorView ids, TensorView routed, TensorView shared,
                       TensorView change) {
  const std::int64_t tokens = ids.dim(0), k = ids.dim(1), n_s = shared.dim(0), n = scores.dim(0) - n_s;
  auto* sum = scores.data<double>();
  const auto* id = ids.data<std::int32_t>();
  const auto *r = routed.data<float>(), *s = shared.data<float>();
  const auto* c = change.data<double>();
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t i = t * k; i < (t + 1) * k; ++i) {
      require<ShapeError>(id[i] >= 0 && id[i] < n, "[add_expert_scores] token {} picked expert {} of {}", t, id[i], n);
      sum[id[i]] += static_cast<double>(r[i]) * c[t];
    }
    for (std::int64_t e = 0; e < n_s; ++e) sum[n + e] += static_cast<double>(s[e * tokens + t]) * c[t];
  }
}

}  // namespace emox::cpu
