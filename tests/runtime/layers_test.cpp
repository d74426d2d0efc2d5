// Embedding, RMSNorm, RoPE and SwiGLU against float64 loops; their gradients against differences of these.
#include "runtime/ops/layers.h"

#include <cmath>

#include "tests/runtime/op_testing.h"

namespace emox::test {
namespace {

using ref::Vec;

std::vector<float> minus(std::vector<float> a, const std::vector<float>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return a;
}

TEST(Embedding, CopiesRowsAndAddsTheirGradients) {
  std::mt19937 gen(1);
  for (const std::int64_t tokens : {0, 1, 2, 7, 65, 300}) {
    const std::int64_t width = any_size(gen, {1, 3, 16}, 30), vocab = any_size(gen, {1, 2, 50}, 80);
    SCOPED_TRACE(::testing::Message() << tokens << " tokens, width " << width << ", " << vocab << " words");
    ref::Ids ids;
    for (std::int64_t t = 0; t < tokens; ++t)
      ids.push_back(static_cast<std::int32_t>(gen() % static_cast<unsigned>(vocab)));
    const Tensor table = random_tensor({vocab, width}, 2), dy = random_tensor({tokens, width}, 3);
    const Tensor start = random_tensor({vocab, width}, 4), at = ids_of(ids);
    Vec want = ref::doubles(start), sizes = ref::absolute(want);
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t d = 0; d < width; ++d) {
        const double g = ref::doubles(dy)[t * width + d];
        want[ids[t] * width + d] += g;
        sizes[ids[t] * width + d] += std::abs(g);
      }
    }
    const auto run = [&](Context& ctx) {
      const Tensor y = poison({tokens, width}), dtable = tensor_of(floats(start), {vocab, width});
      ops::embedding(ctx, y, at, table);
      ops::embedding_backward(ctx, dtable, at, dy);
      return Outputs{floats(y), floats(dtable)};
    };
    run_and_check(run, [&](const Outputs& got) {
      EXPECT_TRUE(all_close(got[0], ref::embedding(ids, ref::doubles(table), width), 0.0));  // a copy: exact
      EXPECT_TRUE(all_close(got[1], want, rounding(static_cast<double>(tokens) + 1, ref::largest(sizes))));
    });
  }
}

TEST(Embedding, BackwardIsTheGradient) {
  const ref::Ids ids{2, 0, 2, 2, 1};
  const Tensor table = random_tensor({4, 3}, 1), r = random_tensor({5, 3}, 2), dtable = filled({4, 3}, 0.0F);
  const Vec vr = ref::doubles(r);
  Context ctx = context();
  ops::embedding_backward(ctx, dtable, ids_of(ids), r);
  EXPECT_TRUE(ref::is_gradient(
      floats(dtable), [&](const Vec& v) { return ref::dot(vr, ref::embedding(ids, v, 3)); }, ref::doubles(table),
      rounding(5, 5 * ref::largest(vr))));
}

TEST(Embedding, NamesAnIdBeyondTheTable) {
  Context ctx = context();
  for (const std::int32_t id : {4, -1}) {
    try {
      ops::embedding(ctx, filled({2, 3}, 0.0F), ids_of({0, id}), filled({4, 3}, 0.0F));
      ADD_FAILURE() << "id " << id << " of 4 words was accepted";
    } catch (const UsageError& e) {
      EXPECT_NE(e.message().find("has id " + std::to_string(id)), std::string::npos) << e.message();
    }
  }
}

// The roundings of rms_norm: a mean of D squares of one sign (relative error D/2 kEps, halved by the root), the
// function itself, two products.
double norm_tolerance(std::int64_t width, double magnitude) {
  return rounding(static_cast<double>(width) / 2 + kFunction, magnitude);
}

TEST(RmsNorm, EqualsTheFormula) {
  std::mt19937 gen(2);
  for (const std::int64_t tokens : {0, 1, 2, 9, 70}) {
    for (const float size : {1.0F, 1e-3F, 1e4F}) {  // 1e-3: eps takes part
      const std::int64_t width = any_size(gen, {1, 2, 64}, 130);
      SCOPED_TRACE(::testing::Message() << tokens << " tokens, width " << width << ", size " << size);
      const Tensor x = random_tensor({tokens, width}, 5, size), scale = random_tensor({width}, 6);
      const ref::Norm want = ref::rms_norm(ref::doubles(x), ref::doubles(scale), static_cast<double>(1e-6F));
      const auto run = [&](Context& ctx) {
        const Tensor y = poison({tokens, width}), rstd = poison({tokens});
        ops::rms_norm(ctx, y, rstd, x, scale, 1e-6F);
        return Outputs{floats(y), floats(rstd)};
      };
      run_and_check(run, [&](const Outputs& got) {
        EXPECT_TRUE(all_close(got[0], want.y, norm_tolerance(width, ref::largest(want.y))));
        EXPECT_TRUE(all_close(got[1], want.rstd, norm_tolerance(width, ref::largest(want.rstd))));
      });
    }
  }
}

TEST(RmsNorm, BackwardAddsTheGradient) {
  for (const Shape& shape : {Shape{0, 5}, Shape{1, 1}, Shape{1, 7}, Shape{3, 6}, Shape{13, 9}, Shape{40, 33}}) {
    SCOPED_TRACE(shape.str());
    const std::int64_t width = shape[1];
    const Tensor x = random_tensor(shape, 1), scale = random_tensor({width}, 2), dy = random_tensor(shape, 3);
    const Tensor dx0 = random_tensor(shape, 4), dscale0 = random_tensor({width}, 5);
    const Vec vx = ref::doubles(x), vs = ref::doubles(scale), vr = ref::doubles(dy);
    const double eps = static_cast<double>(1e-6F);
    const double largest_rstd = ref::largest(ref::rms_norm(vx, vs, eps).rstd);
    const auto run = [&](Context& ctx) {
      const Tensor y = poison(shape), rstd = poison({shape[0]});
      const Tensor dx = tensor_of(floats(dx0), shape), dscale = tensor_of(floats(dscale0), {width});
      ops::rms_norm(ctx, y, rstd, x, scale, 1e-6F);
      ops::rms_norm_backward_add(ctx, dx, dscale, dy, x, rstd, scale);
      return Outputs{minus(floats(dx), floats(dx0)), minus(floats(dscale), floats(dscale0))};
    };
    run_and_check(run, [&](const Outputs& got) {
      // Of dx, both terms are bounded by rstd |g|_2 (Cauchy-Schwarz); two more roundings for what was there before.
      const double g = ref::largest(vr) * ref::largest(vs) * std::sqrt(static_cast<double>(width));
      EXPECT_TRUE(ref::is_gradient(
          got[0], [&](const Vec& v) { return ref::dot(vr, ref::rms_norm(v, vs, eps).y); }, vx,
          norm_tolerance(2 * width, 2 * g * largest_rstd + ref::largest(ref::doubles(dx0)))));
      const double sum = static_cast<double>(shape[0]) * ref::largest(vr) * std::sqrt(static_cast<double>(width));
      EXPECT_TRUE(ref::is_gradient(
          got[1], [&](const Vec& v) { return ref::dot(vr, ref::rms_norm(vx, v, eps).y); }, vs,
          rounding(static_cast<double>(shape[0]) + static_cast<double>(width) / 2 + kFunction,
                   sum + ref::largest(ref::doubles(dscale0)))));
    });
  }
}

TEST(Rope, TablesAreExactCosines) {
  for (const Shape& shape : {Shape{0, 4}, Shape{1, 1}, Shape{5, 3}, Shape{4096, 8}}) {
    const auto run = [&](Context& ctx) {
      const Tensor cos = poison(shape), sin = poison(shape);
      ops::rope_tables(ctx, cos, sin, 500000.0);
      return Outputs{floats(cos), floats(sin)};
    };
    Vec cosines, sines;
    for (std::int64_t s = 0; s < shape[0]; ++s) {
      for (std::int64_t i = 0; i < shape[1]; ++i) {
        const double angle = static_cast<double>(s) *
                             std::pow(500000.0, -2.0 * static_cast<double>(i) / static_cast<double>(2 * shape[1]));
        cosines.push_back(std::cos(angle));
        sines.push_back(std::sin(angle));
      }
    }
    // Computed in double and rounded once: half a spacing of the float32 numbers below 1. An angle in float32 would be
    // off by up to 4096 kEps / 2.
    run_and_check(run, [&](const Outputs& got) {
      EXPECT_TRUE(all_close(got[0], cosines, kEps / 3));
      EXPECT_TRUE(all_close(got[1], sines, kEps / 3));
    });
  }
}

class Swiglu : public ::testing::TestWithParam<bool> {};

TEST_P(Swiglu, EqualsTheFormulaForwardAndBackward) {
  const bool gated = GetParam();
  for (const Shape& shape : {Shape{0, 3}, Shape{1, 1}, Shape{1, 9}, Shape{5, 4}, Shape{23, 17}, Shape{70, 40}}) {
    SCOPED_TRACE(shape.str());
    const std::int64_t rows = shape[0], width = shape[1];
    const Tensor h = random_tensor({rows, 2 * width}, 1, 2.0F), da = random_tensor(shape, 3);
    const Tensor gates = gated ? random_tensor({rows}, 2) : Tensor();
    const Vec vh = ref::doubles(h), vr = ref::doubles(da), vg = gated ? ref::doubles(gates) : Vec{};
    const Vec want = ref::swiglu(vh, vg, width);
    const auto run = [&](Context& ctx) {
      const Tensor a = poison(shape), dh = poison({rows, 2 * width}), again = poison(shape);
      const Tensor dgates = gated ? poison({rows}) : Tensor();
      ops::swiglu(ctx, a, h, gates);
      ops::swiglu_backward(ctx, dh, again, dgates, da, h, gates);
      return Outputs{floats(a), floats(again), floats(dh), floats(dgates)};
    };
    const double gate = gated ? std::max(ref::largest(vg), 1.0) : 1.0, size = std::max(ref::largest(vh), 1.0);
    run_and_check(run, [&](const Outputs& got) {
      const double tolerance = rounding(kFunction, size * size * gate);
      EXPECT_TRUE(all_close(got[0], want, tolerance));
      EXPECT_TRUE(all_close(got[1], want, tolerance));
      // |silu'| < 1.1, and its terms are of the order of |h|.
      EXPECT_TRUE(ref::is_gradient(
          got[2], [&](const Vec& v) { return ref::dot(vr, ref::swiglu(v, vg, width)); }, vh,
          rounding(2 * kFunction, size * size * gate * std::max(ref::largest(vr), 1.0))));
      if (gated) {
        EXPECT_TRUE(ref::is_gradient(
            got[3], [&](const Vec& v) { return ref::dot(vr, ref::swiglu(vh, v, width)); }, vg,
            rounding(static_cast<double>(width) + kFunction,
                     static_cast<double>(width) * size * size * ref::largest(vr))));
      }
    });
  }
}

TEST_P(Swiglu, BackwardWorksInPlace) {
  const bool gated = GetParam();
  const std::int64_t rows = 19, width = 21;
  const Tensor h = random_tensor({rows, 2 * width}, 1), da = random_tensor({rows, width}, 2);
  const Tensor gates = gated ? random_tensor({rows}, 3) : Tensor();
  for (const int threads : {1, 2}) {
    Context ctx = context(threads);
    const Tensor dh = poison({rows, 2 * width}), a = poison({rows, width}), dgates = poison({rows}),
                 dgates2 = poison({rows});
    ops::swiglu_backward(ctx, dh, a, gated ? dgates.view() : TensorView(), da, h, gates);
    const Tensor h2 = tensor_of(floats(h), {rows, 2 * width}), da2 = tensor_of(floats(da), {rows, width});
    ops::swiglu_backward(ctx, h2, da2, gated ? dgates2.view() : TensorView(), da2, h2, gates);
    EXPECT_TRUE(same_bits({floats(dh), floats(a)}, {floats(h2), floats(da2)}));
    EXPECT_TRUE(same_bits({floats(dgates)}, {floats(dgates2)}));
  }
}

TEST_P(Swiglu, SurvivesLargeInputs) {
  // exp(-h) overflows float32 here; silu and its slope are 0 and h, or 0 and 1.
  const Tensor h = tensor_of(std::vector<float>{-200.0F, 200.0F, 3.0F, 3.0F}, {1, 4});
  const Tensor gates = GetParam() ? filled({1}, 0.5F) : Tensor();
  const Tensor a = poison({1, 2}), dh = poison({1, 4}), again = poison({1, 2}), da = filled({1, 2}, 1.0F);
  Context ctx = context();
  ops::swiglu(ctx, a, h, gates);
  ops::swiglu_backward(ctx, dh, again, TensorView(), da, h, gates);
  const double g = GetParam() ? 0.5 : 1.0;
  EXPECT_TRUE(all_close(floats(a), {0.0, 600.0 * g}, rounding(kFunction, 600.0)));
  EXPECT_TRUE(all_close(floats(dh), {0.0, 3.0 * g, 0.0, 200.0 * g}, rounding(kFunction, 600.0)));
}

INSTANTIATE_TEST_SUITE_P(, Swiglu, ::testing::Bool(),
                         [](const ::testing::TestParamInfo<bool>& i) { return i.param ? "Gated" : "Plain"; });

}  // namespace
}  // namespace emox::test
