// Dense products on the device against the CPU.
#include "runtime/ops/matmul.h"

#include "runtime/cuda/blas.h"
#include "tests/cuda/product_testing.h"

namespace emox::test {
namespace {

enum class Kind { Nt, Nn, Tn };
constexpr Kind kKinds[] = {Kind::Nt, Kind::Nn, Kind::Tn};

struct Extents {
  std::int64_t m, n, k;
};
// Empty, single, odd, multiples of tiles, beyond a tile, long sums.
const Extents kSizes[] = {{0, 3, 4},    {3, 0, 4},    {5, 7, 0},     {1, 1, 1},    {3, 5, 7},     {20, 9, 33},
                          {64, 64, 16}, {65, 67, 17}, {128, 40, 70}, {130, 33, 8}, {17, 129, 300}};

class MatmulOnDevice : public DeviceTest {
 protected:
  static Shape shape_a(Kind kind, Extents e) { return kind == Kind::Tn ? Shape{e.k, e.m} : Shape{e.m, e.k}; }
  static Shape shape_b(Kind kind, Extents e) { return kind == Kind::Nt ? Shape{e.n, e.k} : Shape{e.k, e.n}; }

  static void op(Context& ctx, Kind kind, TensorView c, TensorView a, TensorView b, float beta) {
    (kind == Kind::Nt ? ops::matmul_nt : kind == Kind::Nn ? ops::matmul_nn : ops::matmul_tn)(ctx, c, a, b, beta);
  }

  // One of three in turn.
  static float beta_of(unsigned seed) { return seed / 3 % 3 == 0 ? 0.0F : seed / 3 % 3 == 1 ? 1.0F : 0.5F; }

  // By the plain kernel, whatever cuBLASLt could do.
  static void plain(Context& ctx, Kind kind, TensorView c, TensorView a, TensorView b, float beta) {
    cuda::Product p{.a = {a.raw(), a.dtype(), a.dim(1)},
                    .a_transposed = kind == Kind::Tn,
                    .b = {b.raw(), b.dtype(), b.dim(1)},
                    .b_transposed = kind == Kind::Nt,
                    .c = c.raw(),
                    .c_type = c.dtype(),
                    .c_stride = c.dim(1),
                    .beta = beta};
    p.m = c.dim(0), p.n = c.dim(1), p.k = kind == Kind::Tn ? a.dim(0) : a.dim(1);
    cuda::simt_product(cuda::queue_of(ctx), ops::Op::matmul_nt, p);
  }

  template <typename F>
  void check(const F& product, Kind kind, Extents e, float beta, unsigned seed) {
    SCOPED_TRACE(::testing::Message() << "kind " << static_cast<int>(kind) << " of " << e.m << " x " << e.n << " x "
                                      << e.k << ", beta " << beta);
    const Tensor a = random_tensor(shape_a(kind, e), seed), b = random_tensor(shape_b(kind, e), seed + 1);
    const Tensor start = random_tensor({e.m, e.n}, seed + 2);
    const auto on_cpu = [&](const TensorView& x, const TensorView& y, const TensorView& z) {
      const Tensor c = host_copy(z);
      op(cpu, kind, c, x, y, beta);
      return values_of<float>(c);
    };
    const auto on_device = [&](Context& ctx, const Tensor& x, const Tensor& y, const Tensor& z) {
      // With beta 0 what was there must not matter, not even NaN.
      const Tensor c = beta == 0.0F ? garbage(z.view().dtype(), {e.m, e.n}) : up(z);
      const auto low = [&](const Tensor& v) { return ctx.activations == DType::BF16 ? up_bf16(v) : up(v); };
      const Tensor dx = low(x), dy = low(y);
      if (beta != 0.0F && ctx.activations == DType::BF16 && kind != Kind::Tn) {
        const Tensor low_c = up_bf16(z);
        product(ctx, kind, low_c, dx, dy, beta);
        return floats(low_c);
      }
      if (ctx.activations == DType::BF16 && kind != Kind::Tn) {
        const Tensor low_c = garbage(DType::BF16, {e.m, e.n});
        product(ctx, kind, low_c, dx, dy, beta);
        return floats(low_c);
      }
      product(ctx, kind, c, dx, dy, beta);
      return floats(c);
    };
    const ProductTolerance f32{.terms = static_cast<double>(e.k) + 1};
    const auto size = [&](const TensorView& x, const TensorView& y, const TensorView& z) {
      return on_cpu(absolute(x), absolute(y), absolute(z));
    };
    EXPECT_TRUE(sums_agree(on_device(gpu, a, b, start), on_cpu(a, b, start), size(a, b, start), f32));
    const Tensor ra = rounded(a), rb = rounded(b), rc = rounded(start);
    const ProductTolerance low{.terms = f32.terms, .bf16_result = kind != Kind::Tn};
    EXPECT_TRUE(sums_agree(on_device(gpu_bf16, ra, rb, rc), on_cpu(ra, rb, rc), size(ra, rb, rc), low));
    EXPECT_FALSE(fault());
  }
};

TEST_F(MatmulOnDevice, EqualsTheCpu) {
  unsigned seed = 0;
  for (const Kind kind : kKinds)
    for (const Extents e : kSizes) seed += 3, check(op, kind, e, beta_of(seed), seed);
  for (const Kind kind : kKinds)
    for (const float beta : {0.0F, 1.0F, 0.5F}) check(op, kind, {9, 6, 10}, beta, seed += 3);
}

TEST_F(MatmulOnDevice, ThePlainKernelEqualsTheCpu) {
  unsigned seed = 1000;
  for (const Kind kind : kKinds)
    for (const Extents e : kSizes) seed += 3, check(plain, kind, e, beta_of(seed), seed);
  for (const Kind kind : kKinds)
    for (const float beta : {0.0F, 1.0F, 0.5F}) check(plain, kind, {9, 6, 10}, beta, seed += 3);
}

TEST_F(MatmulOnDevice, PlansAreKeptByShape) {
  auto& queue = cuda::queue_of(gpu);
  const Tensor a = up(random_tensor({24, 16}, 1)), b = up(random_tensor({40, 16}, 2)),
               c = garbage(DType::F32, {24, 40});
  ops::matmul_nt(gpu, c, a, b);
  const std::size_t plans = queue.plans().size();
  const std::int64_t launches = queue.counters().launches;
  for (int i = 0; i < 3; ++i) ops::matmul_nt(gpu, c, a, b);
  EXPECT_EQ(queue.plans().size(), plans);
  EXPECT_EQ(queue.counters().launches, launches + 3);
  ops::matmul_nt(gpu, c, a, b, 1.0F);  // another problem: C is read
  EXPECT_EQ(queue.plans().size(), plans + 1);
}

class LogitsOnDevice : public DeviceTest {
 protected:
  // Logits [tokens, columns] of which the last columns - vocab are nobody's.
  std::vector<float> first_columns(const TensorView& z, std::int64_t vocab) {
    std::vector<float> all = floats(z), v;
    for (std::int64_t t = 0; t < z.dim(0); ++t)
      v.insert(v.end(), all.begin() + t * z.dim(1), all.begin() + t * z.dim(1) + vocab);
    return v;
  }
  static Tensor wider(const TensorView& z, std::int64_t columns) {
    std::vector<float> v(idx(z.dim(0) * columns), std::nanf(""));
    for (std::int64_t t = 0; t < z.dim(0); ++t)
      std::copy_n(z.data<float>() + t * z.dim(1), z.dim(1), v.begin() + t * columns);
    return tensor_of(v, {z.dim(0), columns});
  }
};

TEST_F(LogitsOnDevice, EqualTheCpuAndLeaveTheLastColumnsAlone) {
  for (const auto& [tokens, width, vocab, columns] :
       {std::tuple{0, 4, 5, 8}, std::tuple{1, 1, 1, 1}, std::tuple{7, 20, 127, 128}, std::tuple{70, 33, 9, 12},
        std::tuple{130, 64, 130, 136}}) {
    SCOPED_TRACE(::testing::Message() << tokens << " x " << vocab << " of " << columns);
    const Tensor x = rounded(random_tensor({tokens, width}, 1)), w = rounded(random_tensor({vocab, width}, 2));
    const Tensor want({}, DType::F32, {tokens, vocab}), magnitude({}, DType::F32, {tokens, vocab});
    ops::logits(cpu, want, x, w);
    ops::logits(cpu, magnitude, absolute(x), absolute(w));
    for (Context* ctx : {&gpu, &gpu_bf16}) {
      const auto low = [&](const Tensor& v) { return ctx->activations == DType::BF16 ? up_bf16(v) : up(v); };
      const Tensor z = up(wider(tensor_of(std::vector<float>(idx(tokens * vocab)), {tokens, vocab}), columns));
      ops::logits(*ctx, z, low(x), low(w));
      EXPECT_TRUE(sums_agree(first_columns(z, vocab), values_of<float>(want), values_of<float>(magnitude),
                             {.terms = static_cast<double>(width)}));
      const std::vector<float> all = floats(z);
      for (std::int64_t i = 0; i < z.view().numel(); ++i) ASSERT_TRUE(i % columns < vocab || std::isnan(all[idx(i)]));
    }
  }
}

TEST_F(LogitsOnDevice, GradientsEqualTheCpu) {
  for (const auto& [tokens, width, vocab, columns] :
       {std::tuple{0, 4, 5, 8}, std::tuple{1, 1, 1, 1}, std::tuple{7, 20, 127, 128}, std::tuple{170, 33, 9, 12},
        std::tuple{130, 64, 130, 136}}) {
    SCOPED_TRACE(::testing::Message() << tokens << " x " << vocab << " of " << columns);
    const Tensor x = rounded(random_tensor({tokens, width}, 1)), w = rounded(random_tensor({vocab, width}, 2));
    const Tensor dz = random_tensor({tokens, vocab}, 3), dx = rounded(random_tensor({tokens, width}, 4)),
                 dw = random_tensor({vocab, width}, 5);
    const auto on_cpu = [&](const TensorView& dlogits, const TensorView& px, const TensorView& pw, const TensorView& a,
                            const TensorView& b) {
      const Tensor da = host_copy(a), db = host_copy(b);
      ops::logits_backward(cpu, da, db, dlogits, px, pw);
      return std::pair{values_of<float>(da), values_of<float>(db)};
    };
    const auto size = on_cpu(absolute(dz), absolute(x), absolute(w), absolute(dx), absolute(dw));
    for (Context* ctx : {&gpu, &gpu_bf16}) {
      const bool bf16 = ctx->activations == DType::BF16;
      const auto low = [&](const Tensor& v) { return bf16 ? up_bf16(v) : up(v); };
      const Tensor got_x = low(dx), got_w = up(dw), wide = up(wider(dz, columns)), px = low(x), pw = low(w);
      ops::logits_backward(*ctx, got_x, got_w, wide, px, pw);
      // dx is that of the rounded gradient of the logits; the weight's keeps 16 bits of it.
      const auto want = on_cpu(dz, x, w, dx, dw), want_low = on_cpu(rounded(dz), x, w, dx, dw);
      EXPECT_TRUE(sums_agree(floats(got_x), (bf16 ? want_low : want).first, size.first,
                             {.terms = static_cast<double>(vocab) + 1, .bf16_result = bf16}));
      const double terms = static_cast<double>(tokens) + 1;
      if (!bf16) {
        EXPECT_TRUE(sums_agree(floats(got_w), want.second, size.second, {.terms = terms}));
      } else {  // what hi + lo leave out: at most 2^-17 of each dlogits
        const std::vector<float> got = floats(got_w);
        for (std::size_t i = 0; i < got.size(); ++i)
          ASSERT_NEAR(got[i], want.second[i], (0x1p-17 + (4 * std::sqrt(terms) + 4) * 0x1p-24) * size.second[i]);
      }
    }
  }
}

}  // namespace
}  // namespace emox::test
