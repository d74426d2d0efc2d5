// LM head and cross entropy. A block of tokens at a time: its logits are made once, turned into their own gradient in
// place, and used for both gradient products while they are in the cache.
#include "runtime/ops/loss.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/cpu/kernels.h"
#include "runtime/cpu/loss_blocks.h"
#include "runtime/cpu/parallel.h"
#include "runtime/cpu/simd_math.h"

namespace emox::cpu {
namespace {

constexpr std::int64_t kVocabBlock = 4096;  // 16 KiB of logits: each block is read twice while it is in the L1 cache

struct RowLoss {
  double ce, z;
};

// log-sum-exp of z[n], the vocabulary in blocks: each block is scaled to the running maximum once.
float log_sum_exp(const float* z, std::int64_t n) {
  float high = z[0], sum = 0;
  for (std::int64_t b = 0; b < n; b += kVocabBlock) {
    const std::int64_t e = std::min(n, b + kVocabBlock);
    float m = high;
#pragma omp simd reduction(max : m)
    for (std::int64_t i = b; i < e; ++i) m = z[i] > m ? z[i] : m;
    float part = 0;
#pragma omp simd reduction(+ : part)
    for (std::int64_t i = b; i < e; ++i) part += exp_approx(z[i] - m);
    sum = sum * exp_approx(high - m) + part;
    high = m;
  }
  return high + std::log(sum);
}

// Row of logits -> its losses; the row becomes the gradient of inverse_divisor (ce + w lse^2) if wanted:
// d/dz_i = inverse_divisor (softmax_i (1 + 2 w lse) - [i = label])
RowLoss loss_row(float* z, std::int64_t n, std::int32_t label, bool gradient, const ops::LmLossOptions& o) {
  if (label < 0) {
    if (gradient) std::fill_n(z, n, 0.0F);
    return {0, 0};
  }
  const float lse = log_sum_exp(z, n);
  const double l = lse, ce = l - static_cast<double>(z[label]);
  if (gradient) {
    const auto scale = static_cast<float>(o.inverse_divisor * (1.0 + 2.0 * o.z_weight * l));
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) z[i] = scale * exp_approx(z[i] - lse);
    z[label] -= static_cast<float>(o.inverse_divisor);
  }
  return {ce, l * l};
}

}  // namespace

void lm_head_loss(Context& ctx, TensorView sums, TensorView token_loss, TensorView dx, TensorView dweight, TensorView x,
                  TensorView weight, TensorView labels, TensorView scratch, ops::LmLossOptions options) {
  const std::int64_t tokens = x.dim(0), vocab = weight.dim(0), rows = loss_block_rows(tokens, vocab);
  const auto* label = labels.data<std::int32_t>();
  for (std::int64_t t = 0; t < tokens; ++t)
    require<UsageError>(label[t] < vocab, "label {} of the batch is {}, but model.vocab_size is {}", t, label[t],
                        vocab);
  auto* total = sums.data<double>();
  float* losses = token_loss.null() ? nullptr : token_loss.data<float>();
  thread_local std::vector<RowLoss> row_losses;
  row_losses.resize(static_cast<std::size_t>(rows));
  RowLoss* const row_loss = row_losses.data();
  for (std::int64_t begin = 0; begin < tokens; begin += rows) {
    const std::int64_t n = std::min(rows, tokens - begin);
    const TensorView logits(scratch.raw(), DType::F32, {n, vocab});
    const TensorView block = x.rows(begin, begin + n);
    matmul_nt(ctx, logits, block, weight, 0.0F);
    auto* z = logits.data<float>();
    parallel_pieces(ctx, n, 1, [&](std::int64_t b, std::int64_t e, int) {
      for (std::int64_t i = b; i < e; ++i)
        row_loss[i] = loss_row(z + i * vocab, vocab, label[begin + i], !dx.null(), options);
    });
    for (std::int64_t i = 0; i < n; ++i) {
      total[0] += row_loss[i].ce;
      total[1] += row_loss[i].z;
      if (losses != nullptr) losses[begin + i] = static_cast<float>(row_loss[i].ce);
    }
    if (dx.null()) continue;
    matmul_nn(ctx, dx.rows(begin, begin + n), logits, weight, 0.0F);
    matmul_tn(ctx, dweight, logits, block, 1.0F);
  }
}

}  // namespace emox::cpu
