// The experts' products, one op per direction, against the ops that they are made of and against float64 loops.
#include "runtime/ops/experts.h"

#include <cmath>

#include "runtime/ops/layers.h"
#include "runtime/ops/matmul.h"
#include "tests/runtime/op_testing.h"

namespace emox::test {
namespace {

using ref::Offsets;
using ref::Product;
using ref::Vec;

struct Problem {
  Problem(Offsets o, std::int64_t width, std::int64_t expert_width)
      : offsets(std::move(o)),
        experts(static_cast<std::int64_t>(offsets.size()) - 1),
        rows(offsets.back()),
        d(width),
        f(expert_width),
        in(random_tensor({rows, d}, 1)),
        gates(random_tensor({rows}, 2)),
        up(random_tensor({experts, 2 * f, d}, 3)),
        down(random_tensor({experts, d, f}, 4)),
        dout(random_tensor({rows, d}, 5)),
        at(tensor_of(offsets, {experts + 1})) {}

  // With beta 0, what was there must not matter. With 1, it is ones.
  Tensor gradient(const Shape& shape, float beta) const { return beta == 0.0F ? poison(shape) : filled(shape, 1.0F); }

  // out, hidden | gradient of in, of gates, of up and of down (added to ones)
  Outputs fused(Context& ctx, float beta = 1.0F) const {
    const Tensor out = poison({rows, d}), hidden = poison({rows, 2 * f}), a = poison({rows, f});
    const ops::ExpertRows r{in, gates, hidden, a, at};
    ops::experts(ctx, out, r, {up, down});
    Outputs all{floats(out), floats(hidden)};
    const Tensor drows = tensor_of(floats(dout), {rows, d}), dgates = poison({rows});
    const Tensor dup = gradient({experts, 2 * f, d}, beta), ddown = gradient({experts, d, f}, beta);
    ops::experts_backward(ctx, drows, dgates, {dup, ddown}, r, {up, down}, beta);
    for (const Tensor* t : {&drows, &dgates, &dup, &ddown}) all.push_back(floats(*t));
    return all;
  }
  Outputs one_by_one(Context& ctx, float beta = 1.0F) const {
    const Tensor out = poison({rows, d}), hidden = poison({rows, 2 * f}), a = poison({rows, f});
    ops::grouped_matmul_nt(ctx, hidden, in, up, at);
    ops::swiglu(ctx, a, hidden, gates);
    ops::grouped_matmul_nt(ctx, out, a, down, at);
    Outputs all{floats(out), floats(hidden)};
    const Tensor drows = tensor_of(floats(dout), {rows, d}), dgates = poison({rows});
    const Tensor dup = gradient({experts, 2 * f, d}, beta), ddown = gradient({experts, d, f}, beta);
    ops::grouped_matmul_nn(ctx, a, drows, down, at);
    ops::swiglu_backward(ctx, hidden, a, dgates, a, hidden, gates);
    ops::grouped_matmul_tn(ctx, ddown, drows, a, at, beta);
    ops::grouped_matmul_tn(ctx, dup, hidden, in, at, beta);
    ops::grouped_matmul_nn(ctx, drows, hidden, up, at);
    for (const Tensor* t : {&drows, &dgates, &dup, &ddown}) all.push_back(floats(*t));
    return all;
  }

  Offsets offsets;
  std::int64_t experts, rows, d, f;
  Tensor in, gates, up, down, dout, at;
};

Offsets even_offsets(std::int64_t experts, std::int64_t rows) {
  Offsets o;
  for (std::int64_t e = 0; e <= experts; ++e) o.push_back(e * rows);
  return o;
}

// Whole experts as tasks (even ones) and products shared out one by one (few, or a long one). The sizes are those at
// which tasks of either kind are the same products, so the bits are the same.
TEST(Experts, EqualTheOpsTheyAreMadeOf) {
  for (const Problem& p : {Problem({0, 0}, 4, 3), Problem({0, 1}, 1, 1), Problem({0, 0, 5, 5, 6, 6}, 4, 3),
                           Problem(even_offsets(16, 7), 20, 9), Problem({0, 700, 701, 710}, 9, 5)}) {
    SCOPED_TRACE(::testing::Message() << p.experts << " experts, " << p.rows << " rows");
    for (const int threads : {1, 2, 3, 7}) {
      for (const float beta : {0.0F, 1.0F}) {
        Context ctx = context(threads);
        const Outputs got = p.fused(ctx, beta), want = p.one_by_one(ctx, beta);
        EXPECT_TRUE(same_bits(got, p.fused(ctx, beta))) << "the same call gave other bits";
        for (std::size_t i = 0; i < want.size(); ++i)
          EXPECT_TRUE(same_bits({got[i]}, {want[i]}))
              << "result " << i << " on " << threads << " threads, beta " << beta;
        for (const std::size_t i : {4U, 5U})
          for (const float v : got[i]) ASSERT_TRUE(std::isfinite(v)) << "a gradient was not assigned";
      }
    }
  }
}

TEST(Experts, EqualTheFormulaAndItsGradient) {
  const Problem p({0, 2, 2, 5, 6}, 3, 2);
  const Vec in = ref::doubles(p.in), gates = ref::doubles(p.gates), up = ref::doubles(p.up),
            down = ref::doubles(p.down), r = ref::doubles(p.dout);
  const auto out = [&](const Vec& x, const Vec& g, const Vec& u, const Vec& w) {
    const Vec hidden = ref::grouped_matmul(Product::NT, x, u, p.offsets, {p.rows, 2 * p.f, p.d});
    return ref::grouped_matmul(Product::NT, ref::swiglu(hidden, g, p.f), w, p.offsets, {p.rows, p.d, p.f});
  };
  // Sums of at most six terms in a row of three products of numbers up to 1, hidden ones up to 3.
  const double tolerance = rounding(6 * kFunction, 27);
  run_and_check([&](Context& ctx) { return p.fused(ctx); },
                [&](const Outputs& got) {
                  EXPECT_TRUE(all_close(got[0], out(in, gates, up, down), tolerance));
                  const auto loss = [&](const Vec& y) { return ref::dot(r, y); };
                  EXPECT_TRUE(ref::is_gradient(
                      got[2], [&](const Vec& v) { return loss(out(v, gates, up, down)); }, in, tolerance));
                  EXPECT_TRUE(ref::is_gradient(
                      got[3], [&](const Vec& v) { return loss(out(in, v, up, down)); }, gates, tolerance));
                  std::vector<float> dup = got[4], ddown = got[5];
                  for (auto* g : {&dup, &ddown})
                    for (float& v : *g) v -= 1.0F;
                  EXPECT_TRUE(ref::is_gradient(
                      dup, [&](const Vec& v) { return loss(out(in, gates, v, down)); }, up, tolerance));
                  EXPECT_TRUE(ref::is_gradient(
                      ddown, [&](const Vec& v) { return loss(out(in, gates, up, v)); }, down, tolerance));
                });
}

TEST(Experts, RefuseOperandsThatDoNotFit) {
  const Problem p({0, 2, 5}, 3, 2);
  const Tensor out = poison({5, 3}), hidden = poison({5, 4}), a = poison({5, 2}), dgates = poison({5}),
               other = poison({5, 5});
  const Tensor none = tensor_of(Offsets{0, 3, 2}, {3}), few = tensor_of(Offsets{0, 2, 4}, {3});
  Context ctx = context();
  const ops::ExpertRows good{p.in, p.gates, hidden, a, p.at};
  const auto refused = [&](const ops::ExpertRows& r, const ops::ExpertMatrices& w, const ops::ExpertMatrices& g) {
    expect_shape_error("experts", [&] { ops::experts(ctx, out, r, w); });
    expect_shape_error("experts_backward", [&] { ops::experts_backward(ctx, out, dgates, g, r, w); });
  };
  const ops::ExpertMatrices w{p.up, p.down};
  refused({other, p.gates, hidden, a, p.at}, w, w);
  refused({p.in, a, hidden, a, p.at}, w, w);
  refused({p.in, p.gates, other, a, p.at}, w, w);
  refused({p.in, p.gates, hidden, other, p.at}, w, w);
  refused({p.in, p.gates, hidden, a, none}, w, w);
  refused({p.in, p.gates, hidden, a, few}, w, w);
  refused(good, {p.down, p.down}, w);
  expect_shape_error("experts_backward", [&] { ops::experts_backward(ctx, out, dgates, {p.down, p.down}, good, w); });
  expect_shape_error("experts_backward", [&] { ops::experts_backward(ctx, out, a, w, good, w); });
}

}  // namespace
}  // namespace emox::test
