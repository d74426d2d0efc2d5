// What the tests of the router share.
#pragma once

#include <cmath>

#include "runtime/ops/moe.h"
#include "tests/runtime/op_testing.h"

namespace emox::test {

struct TopkTensors {
  TopkTensors(std::int64_t tokens, std::int64_t n, std::int64_t k)
      : p(poison({tokens, n})),
        lse(poison({tokens})),
        ids(tensor_of(ref::Ids(tokens * k, -7), {tokens, k})),
        gates(poison({tokens, k})) {}
  ops::TopkResult result() const { return {p, lse, ids, gates}; }
  Tensor p, lse, ids, gates;
};

// Normal logits, no two of a token closer than 1e-3: float32 and float64 agree about the order.
inline Tensor apart_logits(std::int64_t tokens, std::int64_t n, unsigned seed, double size = 1.0) {
  std::mt19937 gen(seed);
  std::normal_distribution<double> normal(0.0, size);
  std::vector<float> z;
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::size_t begin = z.size();
    while (static_cast<std::int64_t>(z.size() - begin) < n) {
      const auto x = static_cast<float>(normal(gen));
      if (std::none_of(z.begin() + begin, z.end(), [&](float y) { return std::abs(x - y) < 1e-3F; })) z.push_back(x);
    }
  }
  return tensor_of(z, {tokens, n});
}

// exp of a difference of logits of this size, relative, with the sum of n terms.
inline double softmax_error(std::int64_t n, double size) {
  return rounding(static_cast<double>(n) + kFunction + 2 * size, 1.0);
}

inline ref::Flags pools(const Tensor& scores, const ref::Ids& sizes, int threads = 1) {
  const Shape shape = scores.view().shape();
  const Tensor pool = tensor_of(ref::Flags(shape.numel(), 9), shape);
  Context ctx = context(threads);
  ops::document_pools(ctx, pool, scores, ids_of(sizes));
  return values_of<std::uint8_t>(pool);
}

// One token; pool and bias may be left empty.
inline ref::Ids picks(const std::vector<float>& logits, std::int64_t k, const ref::Flags& pool,
                      const std::vector<float>& bias, std::vector<float>* gates = nullptr) {
  const auto n = static_cast<std::int64_t>(logits.size());
  const TopkTensors r(1, n, k);
  const Tensor z = tensor_of(logits, {1, n}), segments = ids_of({0, 1});
  const Tensor mask = pool.empty() ? Tensor() : tensor_of(pool, {1, n}),
               b = bias.empty() ? Tensor() : tensor_of(bias, {n});
  Context ctx = context();
  ops::masked_topk(ctx, r.result(), z, mask, pool.empty() ? TensorView() : segments.view(), b, false);
  if (gates != nullptr) *gates = floats(r.gates);
  return values_of<std::int32_t>(r.ids);
}

}  // namespace emox::test
