// Rows of logits that are wider than there are experts: the same bits, and the columns behind stay as they were.
#include "runtime/ops/matmul.h"
#include "tests/runtime/router_testing.h"

namespace emox::test {
namespace {

using ref::Flags;
using ref::Ids;

constexpr float kBehind = 3e38F;  // larger than everything: whoever reads it shows it

// The columns before and behind `n` of each row, apart.
std::vector<float> columns(const Tensor& x, std::int64_t begin, std::int64_t end) {
  const std::vector<float> all = floats(x);
  std::vector<float> some;
  for (std::int64_t t = 0; t < x.view().dim(0); ++t)
    some.insert(some.end(), all.begin() + t * x.view().dim(1) + begin, all.begin() + t * x.view().dim(1) + end);
  return some;
}

// Everything that a router does in a step, with rows of `width` columns for n experts.
Outputs route(Context& ctx, std::int64_t n, std::int64_t width, bool normalize) {
  const std::int64_t tokens = 70, d = 19, k = std::min<std::int64_t>(n, 3);
  const Tensor x = random_tensor({tokens, d}, 1), weight = random_tensor({n, d}, 2),
               dgates = random_tensor({tokens, k}, 3);
  const Tensor segments = ids_of({0, 11, 11, 70}), balance = random_tensor({n}, 4), bias = random_tensor({n}, 5, 0.01F);
  const auto size = static_cast<std::int32_t>((n + k) / 2);
  const Tensor logits = filled({tokens, width}, kBehind), p = filled({tokens, width}, kBehind),
               dlogits = filled({tokens, width}, kBehind), scores = poison({3, n}), lse = poison({tokens}),
               gates = poison({tokens, k}), dx = random_tensor({tokens, d}, 6), dweight = random_tensor({n, d}, 7);
  const Tensor ids({}, DType::I32, {tokens, k}), pool({}, DType::U8, {3, n}), counts({}, DType::I64, {n}),
      p_sum({}, DType::F64, {n}), z_sum({}, DType::F64, {1});
  ops::logits(ctx, logits, x, weight);
  ops::router_softmax(ctx, p, logits, n);
  ops::document_scores(ctx, scores, p, segments);
  ops::document_pools(ctx, pool, scores, ids_of({size, size, size}));
  const std::vector<float> free = columns(p, 0, n);
  const ops::TopkResult r{p, lse, ids, gates, n};
  ops::masked_topk(ctx, r, logits, pool, segments, bias, normalize);
  ops::router_statistics(ctx, counts, p_sum, z_sum, r);
  ops::masked_topk_backward(ctx, dlogits, dgates, r, balance, 0.1F, normalize);
  ops::logits_backward(ctx, dx, dweight, dlogits, x, weight);
  for (const Tensor* t : {&logits, &p})
    for (const float v : columns(*t, n, width)) EXPECT_EQ(v, kBehind);
  for (const float v : columns(dlogits, n, width)) EXPECT_EQ(v, 0.0F);
  const auto numbers = [](const auto& values) { return std::vector<float>(values.begin(), values.end()); };
  return {columns(logits, 0, n),
          free,
          floats(scores),
          numbers(values_of<std::uint8_t>(pool)),
          columns(p, 0, n),
          floats(lse),
          numbers(values_of<std::int32_t>(ids)),
          floats(gates),
          numbers(values_of<std::int64_t>(counts)),
          numbers(values_of<double>(p_sum)),
          numbers(values_of<double>(z_sum)),
          columns(dlogits, 0, n),
          floats(dx),
          floats(dweight)};
}

TEST(RouterRows, MayBeWiderThanTheExperts) {
  for (const int threads : {1, 2})
    for (const std::int64_t n : {1, 3, 24, 63, 127})
      for (const bool normalize : {false, true}) {
        SCOPED_TRACE(::testing::Message() << n << " experts, " << threads << " threads");
        Context ctx = context(threads);
        const Outputs tight = route(ctx, n, n, normalize);
        for (const std::int64_t more : {1, 5}) EXPECT_TRUE(same_bits(route(ctx, n, n + more, normalize), tight));
      }
}

TEST(RouterRows, LogitsAreTheProduct) {
  Context ctx = context();
  for (const std::int64_t n : {1, 25, 127}) {
    const Tensor x = random_tensor({40, 33}, 1), weight = random_tensor({n, 33}, 2), want = poison({40, n});
    const Tensor got = poison({40, n + 1});
    ops::matmul_nt(ctx, want, x, weight);
    ops::logits(ctx, got, x, weight);
    EXPECT_EQ(columns(got, 0, n), floats(want));
    const Tensor dz = random_tensor({40, n}, 3), dx = random_tensor({40, 33}, 4), dw = random_tensor({n, 33}, 5);
    const Tensor want_dx = tensor_of(floats(dx), {40, 33}), want_dw = tensor_of(floats(dw), {n, 33});
    ops::logits_backward(ctx, dx, dw, dz, x, weight);
    ops::matmul_nn(ctx, want_dx, dz, weight, 1.0F);
    ops::matmul_tn(ctx, want_dw, dz, x, 1.0F);
    EXPECT_EQ(floats(dx), floats(want_dx));
    EXPECT_EQ(floats(dw), floats(want_dw));
  }
}

TEST(RouterRows, AreNotNarrower) {
  Context ctx = context();
  const Tensor z = filled({5, 4}, 0.0F), p = filled({5, 4}, 0.0F), lse = filled({5}, 0.0F),
               gates = filled({5, 2}, 0.0F);
  const Tensor ids({}, DType::I32, {5, 2}), x = filled({5, 3}, 0.0F), weight = filled({5, 3}, 0.0F);
  expect_shape_error("router_softmax", [&] { ops::router_softmax(ctx, p, z, 5); });
  expect_shape_error("masked_topk", [&] { ops::masked_topk(ctx, {p, lse, ids, gates, 5}, z, {}, {}, {}, false); });
  expect_shape_error("document_scores", [&] { ops::document_scores(ctx, filled({2, 5}, 0.0F), p, ids_of({0, 1, 5})); });
  expect_shape_error("logits", [&] { ops::logits(ctx, z, x, weight); });
  expect_shape_error("logits_backward", [&] { ops::logits_backward(ctx, x, weight, z, x, weight); });
}

}  // namespace
}  // namespace emox::test
