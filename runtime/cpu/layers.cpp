// Embedding, RMSNorm, rotary position, SwiGLU.
#include <algorithm>
#include <cmath>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/cpu/kernels.h"
#include "runtime/cpu/parallel.h"
#include "runtime/cpu/prefetch.h"
#include "runtime/cpu/simd_math.h"

namespace emox::cpu {

void embedding(Context& ctx, TensorView y, TensorView ids, TensorView table) {
  const std::int64_t width = table.dim(1), vocab = table.dim(0);
  const auto* id = ids.data<std::int32_t>();
  for (std::int64_t t = 0; t < ids.numel(); ++t)
    require<UsageError>(id[t] >= 0 && id[t] < vocab, "token {} of the batch has id {}, but model.vocab_size is {}", t,
                        id[t], vocab);
  const auto* in = table.data<float>();
  auto* out = y.data<float>();
  parallel_pieces(ctx, ids.numel(), 64, [&](std::int64_t b, std::int64_t e, int) {
    for (std::int64_t t = b; t < e; ++t) std::copy_n(in + id[t] * width, width, out + t * width);
  });
}

void embedding_backward(Context& ctx, TensorView dtable, TensorView ids, TensorView dy) {
  const std::int64_t width = dtable.dim(1), tokens = ids.numel();
  const auto* id = ids.data<std::int32_t>();
  const auto* g = dy.data<float>();
  auto* out = dtable.data<float>();
  // Each thread owns columns: a row of the table may be hit by many tokens, always added in token order.
  parallel_pieces(ctx, width, 16, [&](std::int64_t b, std::int64_t e, int) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      float* row = out + id[t] * width;
#pragma omp simd
      for (std::int64_t i = b; i < e; ++i) row[i] += g[t * width + i];
    }
  });
}

void rms_norm(Context& ctx, TensorView y, TensorView rstd, TensorView x, TensorView scale, float eps) {
  const std::int64_t width = x.dim(1);
  const auto *px = x.data<float>(), *s = scale.data<float>();
  auto *py = y.data<float>(), *pr = rstd.data<float>();
  parallel_pieces(ctx, x.dim(0), 16, [&](std::int64_t b, std::int64_t e, int) {
    for (std::int64_t t = b; t < e; ++t) {
      const float* row = px + t * width;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (std::int64_t i = 0; i < width; ++i) sum += row[i] * row[i];
      const float r = 1.0F / std::sqrt(sum / static_cast<float>(width) + eps);
      pr[t] = r;
      float* out = py + t * width;
#pragma omp simd
      for (std::int64_t i = 0; i < width; ++i) out[i] = row[i] * r * s[i];
    }
  });
}

void rms_norm_backward_add(Context& ctx, TensorView dx, TensorView dscale, TensorView dy, TensorView x, TensorView rstd,
                           TensorView scale) {
  const std::int64_t width = x.dim(1);
  const auto *px = x.data<float>(), *s = scale.data<float>(), *g = dy.data<float>(), *pr = rstd.data<float>();
  auto *pdx = dx.data<float>(), *pds = dscale.data<float>();
  // One partial sum of dscale a thread, added in thread order afterwards. Kept from call to call.
  thread_local std::vector<float> partial;
  partial.assign(idx(width * ctx.threads), 0.0F);
  float* const sums = partial.data();
  parallel_pieces(ctx, x.dim(0), 16, [&](std::int64_t b, std::int64_t e, int thread) {
    float* ds = sums + thread * width;
    for (std::int64_t t = b; t < e; ++t) {
      const float *row = px + t * width, *grow = g + t * width;
      fetch_to_read(row + 2 * width, width);
      fetch_to_read(grow + 2 * width, width);
      fetch_to_write(pdx + (t + 2) * width, width);
      const float r = pr[t];
      float dot = 0;
#pragma omp simd reduction(+ : dot)
      for (std::int64_t i = 0; i < width; ++i) dot += grow[i] * s[i] * row[i];
      const float c = dot * r * r / static_cast<float>(width);
      float* out = pdx + t * width;
#pragma omp simd
      for (std::int64_t i = 0; i < width; ++i) {
        out[i] += r * (grow[i] * s[i] - row[i] * c);
        ds[i] += grow[i] * row[i] * r;
      }
    }
  });
  for (int thread = 0; thread < ctx.threads; ++thread)
    for (std::int64_t i = 0; i < width; ++i) pds[i] += sums[thread * width + i];
}

void rope_tables(Context&, TensorView cos, TensorView sin, double theta) {
  const std::int64_t positions = cos.dim(0), half = cos.dim(1);
  auto *c = cos.data<float>(), *s = sin.data<float>();
  for (std::int64_t i = 0; i < half; ++i) {
    const double frequency = std::pow(theta, -static_cast<double>(i) / static_cast<double>(half));
    for (std::int64_t p = 0; p < positions; ++p) {
      c[p * half + i] = static_cast<float>(std::cos(static_cast<double>(p) * frequency));
      s[p * half + i] = static_cast<float>(std::sin(static_cast<double>(p) * frequency));
    }
  }
}

void swiglu(Context& ctx, TensorView a, TensorView h, TensorView gates) {
  const std::int64_t width = a.dim(1);
  const auto *ph = h.data<float>(), *g = gates.null() ? nullptr : gates.data<float>();
  auto* pa = a.data<float>();
  parallel_pieces(ctx, a.dim(0), 8, [&](std::int64_t b, std::int64_t e, int) {
    for (std::int64_t r = b; r < e; ++r) {
      const float *u = ph + r * 2 * width, *v = u + width;
      const float gate = g != nullptr ? g[r] : 1.0F;
      float* out = pa + r * width;
      for (std::int64_t from = 0; from < width; from += kStretch) {
        const std::int64_t to = std::min(width, from + kStretch);
        fetch_to_read(u + from + kAhead, kStretch);
        fetch_to_read(v + from + kAhead, kStretch);
        fetch_to_write(out + from + kAhead, kStretch);
#pragma omp simd
        for (std::int64_t i = from; i < to; ++i) out[i] = gate * (u[i] * sigmoid(u[i])) * v[i];
      }
    }
  });
}

void swiglu_backward(Context& ctx, TensorView dh, TensorView a, TensorView dgates, TensorView da, TensorView h,
                     TensorView gates) {
  const std::int64_t width = da.dim(1);
  const auto *ph = h.data<float>(), *pda = da.data<float>(), *g = gates.null() ? nullptr : gates.data<float>();
  auto *pdh = dh.data<float>(), *pa = a.data<float>(), *pdg = dgates.null() ? nullptr : dgates.data<float>();
  parallel_pieces(ctx, da.dim(0), 8, [&](std::int64_t b, std::int64_t e, int) {
    for (std::int64_t r = b; r < e; ++r) {
      const float *u = ph + r * 2 * width, *v = u + width, *d = pda + r * width;
      float *du = pdh + r * 2 * width, *dv = du + width, *out = pa + r * width;
      const float gate = g != nullptr ? g[r] : 1.0F;
      float dot = 0;
      for (std::int64_t from = 0; from < width; from += kStretch) {
        const std::int64_t to = std::min(width, from + kStretch);
        fetch_to_read(u + from + kAhead, kStretch);
        fetch_to_read(v + from + kAhead, kStretch);
        fetch_to_read(d + from + kAhead, kStretch);
        fetch_to_write(du + from + kAhead, kStretch);
        fetch_to_write(dv + from + kAhead, kStretch);
        fetch_to_write(out + from + kAhead, kStretch);
#pragma omp simd reduction(+ : dot)
        for (std::int64_t i = from; i < to; ++i) {
          // All inputs are read before any output is written: dh may be h, a may be da.
          const float ui = u[i], vi = v[i], di = d[i];
          const float s = sigmoid(ui), silu = ui * s, gd = gate * di;
          dot += di * silu * vi;
          du[i] = gd * vi * s * (1.0F + ui * (1.0F - s));
          dv[i] = gd * silu;
          out[i] = gate * silu * vi;
        }
      }
      if (pdg != nullptr) pdg[r] = dot;
    }
  });
}

}  // namespace emox::cpu
