// Matrix products, plain and grouped, against float64 loops.
#include "runtime/ops/matmul.h"

#include "tests/runtime/op_testing.h"

namespace emox::test {
namespace {

using ref::Extents;
using ref::Product;
using ref::Vec;
using Op = void (*)(Context&, TensorView, TensorView, TensorView, float);
using GroupedOp = void (*)(Context&, TensorView, TensorView, TensorView, TensorView);

// The gradients of parameters add up.
void grouped_tn(Context& ctx, TensorView c, TensorView a, TensorView b, TensorView offsets) {
  ops::grouped_matmul_tn(ctx, c, a, b, offsets);
}

struct Case {
  Product product;
  Op op;
};
const Case kCases[] = {{Product::NT, ops::matmul_nt}, {Product::NN, ops::matmul_nn}, {Product::TN, ops::matmul_tn}};

Shape shape_a(Product p, Extents e) { return p == Product::TN ? Shape{e.k, e.m} : Shape{e.m, e.k}; }
Shape shape_b(Product p, Extents e) { return p == Product::NT ? Shape{e.n, e.k} : Shape{e.k, e.n}; }

// The largest sum of absolute products: what the rounding of one result is relative to.
double magnitude(Product p, const Vec& a, const Vec& b, Extents e) {
  return ref::largest(ref::matmul(p, ref::absolute(a), ref::absolute(b), e));
}

void check_product(const Case& c, Extents e, unsigned seed) {
  SCOPED_TRACE(::testing::Message() << "product " << static_cast<int>(c.product) << " of " << e.m << " x " << e.n
                                    << " x " << e.k);
  const Tensor a = random_tensor(shape_a(c.product, e), seed), b = random_tensor(shape_b(c.product, e), seed + 1);
  const Tensor start = random_tensor({e.m, e.n}, seed + 2);
  const Vec va = ref::doubles(a), vb = ref::doubles(b), vc = ref::doubles(start);
  const Vec product = ref::matmul(c.product, va, vb, e);
  const double largest = magnitude(c.product, va, vb, e) + ref::largest(vc);
  for (const float beta : {0.0F, 1.0F, 0.5F}) {
    SCOPED_TRACE(::testing::Message() << "beta " << beta);
    Vec want = product;
    for (std::size_t i = 0; i < want.size(); ++i) want[i] += static_cast<double>(beta) * vc[i];
    const auto run = [&](Context& ctx) {
      // With beta 0 what was there must not matter, not even if it was NaN.
      const Tensor out = beta == 0.0F ? poison({e.m, e.n}) : tensor_of(floats(start), {e.m, e.n});
      c.op(ctx, out, a, b, beta);
      return Outputs{floats(out)};
    };
    run_and_check(run, [&](const Outputs& got) {
      EXPECT_TRUE(all_close(got[0], want, rounding(static_cast<double>(e.k) + 2, largest)));
    });
  }
}

TEST(Matmul, EqualsLoopsOnRandomShapes) {
  std::mt19937 gen(3);
  for (const Case& c : kCases) {
    for (int i = 0; i < 12; ++i) {
      const Extents e{any_size(gen, {0, 1, 2, 17}, 70), any_size(gen, {0, 1, 3, 33}, 70),
                      any_size(gen, {1, 2, 31}, 70)};
      check_product(c, e, static_cast<unsigned>(i) * 10 + 100);
    }
    check_product(c, {129, 67, 257}, 7);
  }
}

TEST(Matmul, OfNoTermsIsZero) {
  for (const Case& c : kCases) check_product(c, {3, 5, 0}, 11);
}

TEST(Matmul, BackwardIsTheOtherTwoProducts) {
  // y = x w^T; L = <r, y>: dx = r w, dw = r^T x.
  const Extents e{4, 5, 3};
  const Tensor x = random_tensor({e.m, e.k}, 1), w = random_tensor({e.n, e.k}, 2), r = random_tensor({e.m, e.n}, 3);
  const Vec vx = ref::doubles(x), vw = ref::doubles(w), vr = ref::doubles(r);
  const Tensor dx = poison({e.m, e.k}), dw = filled({e.n, e.k}, 2.0F);
  Context ctx = context();
  ops::matmul_nn(ctx, dx, r, w);
  ops::matmul_tn(ctx, dw, r, x, 1.0F);
  const double tolerance =
      rounding(static_cast<double>(e.m + e.n),
               2 + magnitude(Product::NN, vr, vw, {e.m, e.k, e.n}) + magnitude(Product::TN, vr, vx, {e.n, e.k, e.m}));
  EXPECT_TRUE(ref::is_gradient(
      floats(dx), [&](const Vec& v) { return ref::dot(vr, ref::matmul(Product::NT, v, vw, e)); }, vx, tolerance));
  std::vector<float> added = floats(dw);
  for (float& v : added) v -= 2.0F;
  EXPECT_TRUE(ref::is_gradient(
      added, [&](const Vec& v) { return ref::dot(vr, ref::matmul(Product::NT, vx, v, e)); }, vw, tolerance));
}

void check_grouped(Product product, GroupedOp op, const ref::Offsets& offsets, Extents e, unsigned seed) {
  const std::int64_t experts = static_cast<std::int64_t>(offsets.size()) - 1, rows = offsets.back();
  SCOPED_TRACE(::testing::Message() << "grouped product " << static_cast<int>(product) << ", " << experts << " groups, "
                                    << rows << " rows, " << e.m << " x " << e.n << " x " << e.k);
  const bool tn = product == Product::TN;
  const Tensor a = random_tensor({rows, tn ? e.m : e.k}, seed);
  const Tensor b =
      tn ? random_tensor({rows, e.n}, seed + 1)
         : random_tensor(product == Product::NT ? Shape{experts, e.n, e.k} : Shape{experts, e.k, e.n}, seed + 1);
  const Shape shape = tn ? Shape{experts, e.m, e.n} : Shape{rows, e.n};
  const Tensor start = random_tensor(shape, seed + 2), at = tensor_of(offsets, {experts + 1});
  const Vec va = ref::doubles(a), vb = ref::doubles(b);
  Vec want = ref::grouped_matmul(product, va, vb, offsets, e);
  double largest = ref::largest(ref::grouped_matmul(product, ref::absolute(va), ref::absolute(vb), offsets, e));
  if (tn) {  // a gradient of parameters: it accumulates
    want = ref::plus(want, ref::doubles(start));
    largest += ref::largest(ref::doubles(start));
  }
  const auto run = [&](Context& ctx) {
    const Tensor out = tn ? tensor_of(floats(start), shape) : poison(shape);
    op(ctx, out, a, b, at);
    return Outputs{floats(out)};
  };
  run_and_check(run, [&](const Outputs& got) {
    EXPECT_TRUE(all_close(got[0], want, rounding(static_cast<double>(tn ? rows : e.k) + 2, largest)));
  });
}

TEST(GroupedMatmul, EqualsLoopsOnRandomGroups) {
  std::mt19937 gen(5);
  for (unsigned i = 0; i < 12; ++i) {
    const std::int64_t rows = any_size(gen, {0, 1, 2, 40}, 90);
    const ref::Ids cuts = any_segments(gen, rows, static_cast<int>(any_size(gen, {1, 2, 7}, 9)));
    const ref::Offsets offsets(cuts.begin(), cuts.end());
    const std::int64_t n = any_size(gen, {1, 3, 16}, 40), k = any_size(gen, {1, 5, 16}, 40);
    check_grouped(Product::NT, ops::grouped_matmul_nt, offsets, {rows, n, k}, i + 20);
    check_grouped(Product::NN, ops::grouped_matmul_nn, offsets, {rows, n, k}, i + 40);
    check_grouped(Product::TN, grouped_tn, offsets, {n, k, rows}, i + 60);
  }
}

TEST(GroupedMatmul, GroupsMayBeEmptyAnywhere) {
  for (const ref::Offsets& offsets : {ref::Offsets{0, 0, 0, 5, 5, 6, 6}, ref::Offsets{0, 6}, ref::Offsets{0, 0, 0}}) {
    const std::int64_t rows = offsets.back();
    check_grouped(Product::NT, ops::grouped_matmul_nt, offsets, {rows, 3, 4}, 1);
    check_grouped(Product::NN, ops::grouped_matmul_nn, offsets, {rows, 3, 4}, 2);
    check_grouped(Product::TN, grouped_tn, offsets, {3, 4, rows}, 3);
  }
}

TEST(GroupedMatmul, LongGroupsAreSharedBetweenThreads) {
  const ref::Offsets offsets{0, 5, 700, 700, 1300};
  check_grouped(Product::NT, ops::grouped_matmul_nt, offsets, {1300, 9, 7}, 1);
  check_grouped(Product::NN, ops::grouped_matmul_nn, offsets, {1300, 9, 7}, 2);
  check_grouped(Product::TN, grouped_tn, {0, 3, 40, 40}, {257, 5, 40}, 3);
}

// Tiles are cut in both directions where threads are many: every element is still added once, and no sum is shared.
TEST(GroupedMatmul, FewExpertsOnManyThreads) {
  for (const auto& sizes : {std::pair<std::int64_t, std::int64_t>{200, 150}, {63, 300}, {130, 1}, {1, 64}}) {
    const std::int64_t m = sizes.first, n = sizes.second;
    const ref::Offsets offsets{0, 9, 9, 31};
    const Extents e{m, n, 31};
    const Tensor a = random_tensor({31, m}, 1), b = random_tensor({31, n}, 2), start = random_tensor({3, m, n}, 3);
    const Tensor at = tensor_of(offsets, {4});
    const Vec want =
        ref::plus(ref::grouped_matmul(Product::TN, ref::doubles(a), ref::doubles(b), offsets, e), ref::doubles(start));
    for (const int threads : {3, 5, 16}) {
      SCOPED_TRACE(::testing::Message() << m << " x " << n << " on " << threads << " threads");
      Context ctx = context(threads);
      const auto run = [&] {
        const Tensor c = tensor_of(floats(start), {3, m, n});
        ops::grouped_matmul_tn(ctx, c, a, b, at);
        return floats(c);
      };
      const std::vector<float> got = run();
      EXPECT_TRUE(
          all_close(got, want, rounding(33, 33 * ref::largest(ref::doubles(a)) * ref::largest(ref::doubles(b)))));
      EXPECT_TRUE(same_bits({got}, {run()}));
    }
  }
}

TEST(GroupedMatmul, BackwardIsTheOtherTwoProducts) {
  const ref::Offsets offsets{0, 2, 2, 5};
  const Extents e{5, 4, 3};
  const Tensor x = random_tensor({5, 3}, 1), w = random_tensor({3, 4, 3}, 2), r = random_tensor({5, 4}, 3);
  const Tensor at = tensor_of(offsets, {4}), dx = poison({5, 3}), dw = filled({3, 4, 3}, 0.0F);
  const Vec vx = ref::doubles(x), vw = ref::doubles(w), vr = ref::doubles(r);
  Context ctx = context(2);
  ops::grouped_matmul_nn(ctx, dx, r, w, at);
  ops::grouped_matmul_tn(ctx, dw, r, x, at);
  const double tolerance = rounding(6, 5 * ref::largest(vr) * (ref::largest(vx) + ref::largest(vw)));
  EXPECT_TRUE(ref::is_gradient(
      floats(dx), [&](const Vec& v) { return ref::dot(vr, ref::grouped_matmul(Product::NT, v, vw, offsets, e)); }, vx,
      tolerance));
  EXPECT_TRUE(ref::is_gradient(
      floats(dw), [&](const Vec& v) { return ref::dot(vr, ref::grouped_matmul(Product::NT, vx, v, offsets, e)); }, vw,
      tolerance));
}

}  // namespace
}  // namespace emox::test
