// Naive float64 versions of the ops: the loops of the formulas and nothing else. They are given the float32 operands of
// the op under test exactly, so that any difference is the rounding of the op. Gradients come from central differences
// of these forward functions; no backward formula is written twice.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "runtime/core/tensor.h"

namespace emox::test::ref {

using Vec = std::vector<double>;
using Ids = std::vector<std::int32_t>;
using Flags = std::vector<std::uint8_t>;
using Offsets = std::vector<std::int64_t>;

/// The elements of an f32 or f64 view.
Vec doubles(const TensorView& t);
/// The largest |x|, 0 of nothing.
double largest(const Vec& x);
Vec absolute(Vec x);
double dot(const Vec& a, const Vec& b);
Vec plus(Vec a, const Vec& b);

// ---- matrix products
enum class Product { NT, NN, TN };
struct Extents {
  std::int64_t m, n, k;
};
/// C[m,n] of a product of a ([m,k], TN: [k,m]) and b ([k,n], NT: [n,k]).
Vec matmul(Product product, const Vec& a, const Vec& b, Extents e);
/// As the grouped ops. NT and NN: e.m is R. TN: e.k is R and C is [E,m,n].
Vec grouped_matmul(Product product, const Vec& a, const Vec& b, const Offsets& offsets, Extents e);

// ---- dense layers
Vec embedding(const Ids& ids, const Vec& table, std::int64_t width);
struct Norm {
  Vec y, rstd;
};
Norm rms_norm(const Vec& x, const Vec& scale, double eps);
/// Angles are computed here, not taken from tables.
Vec rope(Vec qkv, const Ids& positions, std::int64_t width, int heads, double theta, bool inverse);
struct Attention {
  Vec out, lse;
};
Attention attention(const Vec& qkv, const Ids& segments, std::int64_t width, int heads);
/// Empty gates: all 1.
Vec swiglu(const Vec& h, const Vec& gates, std::int64_t width);

// ---- mixture of experts
Vec softmax(const Vec& logits, std::int64_t n);
Vec document_scores(const Vec& p, const Ids& segments, std::int64_t n);
Flags document_pools(const Vec& scores, const Ids& sizes, std::int64_t n);
struct Topk {
  Vec p, lse;
  Ids ids;
  Vec gates;
};
struct TopkInputs {
  std::int64_t n = 0, k = 0;
  Flags pool{};    ///< empty: no restriction
  Ids segments{};  ///< of the pool
  Vec bias{};      ///< empty: none
  bool normalize = false;
  Flags free_tokens{};  ///< empty: none
};
/// `ids` not empty: these picks instead of the largest (differences must not change the picks).
Topk masked_topk(const Vec& logits, const TopkInputs& in, const Ids& ids = {});
Vec combine_rows(const Vec& y, const Vec& rows, const Ids& slots, std::int64_t width, double beta);

// ---- loss and optimizer
struct LmLoss {
  double cross_entropy = 0, squared_lse = 0;
  Vec token_loss;
};
LmLoss lm_loss(const Vec& x, const Vec& weight, const Ids& labels, std::int64_t width);
struct AdamState {
  double p, m, v;
};
struct AdamOptions {
  double learning_rate, beta1, beta2, eps, weight_decay, grad_scale;
};
AdamState adamw(AdamState s, double grad, const AdamOptions& o, std::int64_t step);

// ---- gradients
using Scalar = std::function<double(const Vec&)>;
/// (f(x + h d) - f(x - h d)) / 2h.
double directional_difference(const Scalar& f, const Vec& x, const Vec& direction);
/// All central differences of f at x; x may be small only.
Vec central_differences(const Scalar& f, const Vec& x);
/// Whether `got` is the gradient of f at x, every element within `tolerance`. Up to 400 elements are all looked at; of
/// more, 150 by chance, and all together in random directions of entries +-1 (within `tolerance` for each entry).
::testing::AssertionResult is_gradient(const std::vector<float>& got, const Scalar& f, const Vec& x, double tolerance);

}  // namespace emox::test::ref
