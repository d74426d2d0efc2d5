// LM head and cross entropy. A block of tokens at a time, of which the words come in pieces: logits are made once and
// summed, then turned into their own gradient in place, which both gradient products use while it is in the cache.
#include "runtime/ops/loss.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/cpu/gemm.h"
#include "runtime/cpu/kernels.h"
#include "runtime/cpu/loss_blocks.h"
#include "runtime/cpu/parallel.h"
#include "runtime/cpu/simd_math.h"

namespace emox::cpu {
namespace {

// A row's log-sum-exp as its logits come, and what becomes of it.
struct RowLoss {
  float high, sum;  // maximum so far, sum of exp(logit - high)
  double ce, z;
};

// Takes the logits z[n] of the next words: one maximum, to which the sum so far is scaled once.
void add_words(RowLoss& row, const float* z, std::int64_t n) {
  float m = row.high;
#pragma omp simd reduction(max : m)
  for (std::int64_t i = 0; i < n; ++i) m = z[i] > m ? z[i] : m;
  float part = 0;
#pragma omp simd reduction(+ : part)
  for (std::int64_t i = 0; i < n; ++i) part += exp_approx(z[i] - m);
  row.sum = row.sum * exp_approx(row.high - m) + part;
  row.high = m;
}

// Logits of the words from `first` on -> the gradient of inverse_divisor (ce + w lse^2):
// d/dz_i = inverse_divisor (softmax_i (1 + 2 w lse) - [i = label])
void gradient_of_words(float* z, std::int64_t first, std::int64_t n, std::int32_t label, float lse,
                       const ops::LmLossOptions& o) {
  if (label < 0) {
    std::fill_n(z, n, 0.0F);
    return;
  }
  const auto scale = static_cast<float>(o.inverse_divisor * (1.0 + 2.0 * o.z_weight * static_cast<double>(lse)));
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) z[i] = scale * exp_approx(z[i] - lse);
  if (label >= first && label < first + n) z[label - first] -= static_cast<float>(o.inverse_divisor);
}

// The logits of a block of tokens, kLossWords words at a time: each piece [tokens, words], its rows row() floats apart,
// is in the cache when the sums are taken, and again when its gradient is made and used.
struct Logits {
  float* at;
  std::int64_t tokens, vocab;

  std::int64_t pieces() const { return (vocab + kLossWords - 1) / kLossWords; }
  std::int64_t first(std::int64_t piece) const { return piece * kLossWords; }
  std::int64_t words(std::int64_t piece) const { return std::min(kLossWords, vocab - first(piece)); }
  std::int64_t row() const { return loss_row(vocab); }
  float* of(std::int64_t piece) const { return at + piece * tokens * row(); }
};

}  // namespace

void lm_head_loss(Context& ctx, const ops::LmLossResult& out, const ops::LmHead& head, TensorView scratch,
                  const ops::LmLossOptions& options) {
  const auto& [x, weight, labels] = head;
  const auto& [sums, token_loss, dx, dweight] = out;
  const std::int64_t tokens = x.dim(0), vocab = weight.dim(0), rows = loss_block_rows(tokens, vocab);
  const auto* label = labels.data<std::int32_t>();
  for (std::int64_t t = 0; t < tokens; ++t)
    require<UsageError>(label[t] < vocab, "label {} of the batch is {}, but model.vocab_size is {}", t, label[t],
                        vocab);
  auto* total = sums.data<double>();
  float* losses = token_loss.null() ? nullptr : token_loss.data<float>();
  thread_local std::vector<RowLoss> row_losses;
  row_losses.resize(idx(rows));
  RowLoss* const row_loss = row_losses.data();
  const std::int64_t width = x.dim(1);
  const auto *px = x.data<float>(), *w = weight.data<float>();
  auto *pdx = dx.null() ? nullptr : dx.data<float>(), *pdw = dx.null() ? nullptr : dweight.data<float>();
  for (std::int64_t begin = 0; begin < tokens; begin += rows) {
    const std::int64_t n = std::min(rows, tokens - begin);
    const Logits logits{static_cast<float*>(scratch.raw()), n, vocab};
    const float* block = px + begin * width;
    const auto each_row = [&](auto&& body) {
      parallel_pieces(ctx, n, 1, [&](std::int64_t b, std::int64_t e, int) {
        for (std::int64_t i = b; i < e; ++i) body(i, label[begin + i], row_loss[i]);
      });
    };
    for (std::int64_t p = 0; p < logits.pieces(); ++p) {
      const std::int64_t first = logits.first(p), words = logits.words(p), row = logits.row();
      float* const z = logits.of(p);
      sgemm('N', 'T', n, words, width, block, width, w + first * width, width, 0.0F, z, row);
      each_row([&](std::int64_t i, std::int32_t l, RowLoss& r) {
        if (p == 0) r = {z[i * row], 0, 0, 0};
        if (l < 0) return;
        add_words(r, z + i * row, words);
        if (l >= first && l < first + words) r.ce = -static_cast<double>(z[i * row + l - first]);
      });
    }
    for (std::int64_t i = 0; i < n; ++i) {
      RowLoss& r = row_loss[i];
      if (label[begin + i] >= 0) {
        r.high += std::log(r.sum);  // now the log-sum-exp
        const double lse = r.high;
        r.ce += lse, r.z = lse * lse;
      }
      total[0] += r.ce;
      total[1] += r.z;
      if (losses != nullptr) losses[begin + i] = static_cast<float>(r.ce);
    }
    for (std::int64_t p = 0; pdx != nullptr && p < logits.pieces(); ++p) {
      const std::int64_t first = logits.first(p), words = logits.words(p), row = logits.row();
      float* const z = logits.of(p);
      each_row([&](std::int64_t i, std::int32_t l, const RowLoss& r) {
        gradient_of_words(z + i * row, first, words, l, r.high, options);
      });
      sgemm('N', 'N', n, width, words, z, row, w + first * width, width, p == 0 ? 0.0F : 1.0F, pdx + begin * width,
            width);
      sgemm('T', 'N', words, width, n, z, row, block, width, 1.0F, pdw + first * width, width);
    }
  }
}

}  // namespace emox::cpu
