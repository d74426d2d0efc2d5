// Embedding, RMSNorm and the rotary tables on a device against the CPU.
#include <algorithm>
#include <cmath>

#include "runtime/core/bf16.h"
#include "runtime/ops/layers.h"
#include "tests/cuda/device_test.h"

namespace emox::test {
namespace {

using Ids = std::vector<std::int32_t>;
constexpr double kEps = 0x1.0p-23;
/// One rounding to bf16, at most half of the spacing.
constexpr double kBf16Rounding = kBf16Epsilon / 2;

double largest(const std::vector<float>& v) {
  double most = 0;
  for (const float x : v) most = std::max(most, std::abs(static_cast<double>(x)));
  return most;
}

class LayersTest : public DeviceTest {
 protected:
  /// What the device computes with, for the CPU.
  static Tensor values(bool low, const Tensor& t) {
    return low ? rounded(t) : tensor_of(values_of<float>(t), t.view().shape());
  }
  Tensor up_as(const Context& ctx, const Tensor& host) {
    return ctx.activations == DType::BF16 ? up_bf16(host) : up(host);
  }
  void check_embedding(const Ids& ids, std::int64_t vocab, std::int64_t width, unsigned seed) {
    SCOPED_TRACE(::testing::Message() << ids.size() << " tokens, " << vocab << " words of " << width);
    const auto tokens = static_cast<std::int64_t>(ids.size());
    const Tensor table = random_tensor({vocab, width}, seed), dy = random_tensor({tokens, width}, seed + 1);
    const Tensor start = random_tensor({vocab, width}, seed + 2), at = tensor_of(ids, {tokens}), dev_at = up(at);
    std::vector<int> count(idx(vocab));
    for (const auto id : ids) ++count[idx(id)];
    const double terms = *std::max_element(count.begin(), count.end()) + 1.0;
    for (const bool low : {false, true}) {
      SCOPED_TRACE(low ? "bf16" : "f32");
      Context& ctx = low ? gpu_bf16 : gpu;
      const Tensor t = values(low, table), g = values(low, dy);
      const Tensor y({}, DType::F32, {tokens, width}), want = tensor_of(floats(start), {vocab, width});
      ops::embedding(cpu, y, at, t);
      ops::embedding_backward(cpu, want, at, g);
      const Tensor out = garbage(ctx.activations, {tokens, width});
      ops::embedding(ctx, out, dev_at, up_as(ctx, table));
      EXPECT_TRUE(floats(out) == floats(y)) << "rows are copied";
      const auto gradient = [&] {
        const Tensor dtable = up(start);
        ops::embedding_backward(ctx, dtable, dev_at, up_as(ctx, dy));
        return floats(dtable);
      };
      const std::vector<float> got = gradient();
      // A sum of at most `terms` numbers in another order, in f32 for both types.
      EXPECT_TRUE(agree(got, floats(want), 0, terms * kEps * std::sqrt(terms) * (largest(floats(g)) + 5)));
      EXPECT_TRUE(got == gradient()) << "the same call gave other bits";
    }
  }
  void check_norm(std::int64_t rows, std::int64_t width, float size, unsigned seed) {
    SCOPED_TRACE(::testing::Message() << rows << " rows of " << width << ", size " << size);
    const Tensor x = random_tensor({rows, width}, seed, size), scale = random_tensor({width}, seed + 1);
    const Tensor dy = random_tensor({rows, width}, seed + 2), dx0 = random_tensor({rows, width}, seed + 3);
    const Tensor dscale0 = random_tensor({width}, seed + 4);
    constexpr float kNormEps = 1e-6F;
    for (const bool low : {false, true}) {
      SCOPED_TRACE(low ? "bf16" : "f32");
      Context& ctx = low ? gpu_bf16 : gpu;
      const Tensor cx = values(low, x), cs = values(low, scale), cg = values(low, dy), cdx = values(low, dx0);
      const Tensor y({}, DType::F32, {rows, width}), rstd({}, DType::F32, {rows});
      const Tensor cds = tensor_of(floats(dscale0), {width});
      ops::rms_norm(cpu, y, rstd, cx, cs, kNormEps);
      ops::rms_norm_backward_add(cpu, cdx, cds, cg, cx, rstd, cs);
      const Tensor dev_x = up_as(ctx, x), dev_s = up_as(ctx, scale), dev_g = up_as(ctx, dy);
      const auto run = [&] {
        const Tensor out = garbage(ctx.activations, {rows, width}), r = garbage(DType::F32, {rows});
        const Tensor dx = up_as(ctx, dx0), ds = up(dscale0);
        ops::rms_norm(ctx, out, r, dev_x, dev_s, kNormEps);
        ops::rms_norm_backward_add(ctx, dx, ds, dev_g, dev_x, r, dev_s);
        return std::vector<std::vector<float>>{floats(out), floats(r), floats(dx), floats(ds)};
      };
      const auto got = run();
      // The mean of squares: sums of `width` terms of one sign in two orders, which rarely differ by more than a few
      // times the root of their number; halved by the root of the mean.
      const double mean = (8 + 2 * std::sqrt(static_cast<double>(width))) * kEps;
      const double output = (low ? kBf16Rounding : 0) + mean;
      EXPECT_TRUE(agree(got[0], floats(y), output, 0));
      EXPECT_TRUE(agree(got[1], floats(rstd), mean, 0));
      const double r = largest(floats(rstd)), g = largest(floats(cg)), s = largest(floats(cs));
      const double normed = largest(floats(cx)) * r;
      EXPECT_TRUE(
          agree(got[2], floats(cdx), low ? kBf16Rounding : 0, 2 * mean * (5 + r * g * s * (1 + normed * normed))));
      const double terms = static_cast<double>(rows) + 16;
      EXPECT_TRUE(agree(got[3], floats(cds), 0, (terms * kEps + 2 * mean) * (5 + g * normed * std::sqrt(terms))));
      EXPECT_TRUE(got == run()) << "the same call gave other bits";
    }
  }
};

TEST_F(LayersTest, EmbeddingAndItsGradient) {
  std::mt19937 gen(1);
  unsigned seed = 1;
  for (const std::int64_t tokens : {0, 1, 2, 63, 64, 65, 300, 1100}) {
    for (const auto& [vocab, width] : {std::pair<std::int64_t, std::int64_t>{1, 3}, {50, 8}, {300, 20}}) {
      Ids ids;
      for (std::int64_t t = 0; t < tokens; ++t)
        ids.push_back(static_cast<std::int32_t>(gen() % static_cast<unsigned>(vocab)));
      check_embedding(ids, vocab, width, seed++);
    }
  }
}

TEST_F(LayersTest, EmbeddingOfManyWordsSomeOfThemFrequent) {
  std::mt19937 gen(2);
  Ids ids;  // three passes of the sort; runs inside a stretch, over one boundary, over many, to the last token
  for (int t = 0; t < 2100; ++t) {
    const unsigned kind = gen() % 4;
    ids.push_back(static_cast<std::int32_t>(kind == 0   ? 70'000
                                            : kind == 1 ? 300
                                            : kind == 2 ? gen() % 16
                                                        : gen() % 70'001));
  }
  check_embedding(ids, 70'001, 4, 11);
}

TEST_F(LayersTest, EmbeddingOfRowsWiderThanABlock) {
  check_embedding({1, 0, 1, 1}, 2, 2056, 12);
  check_embedding({1, 0, 1, 1}, 2, 300, 13);
}

TEST_F(LayersTest, RmsNormAndItsGradient) {
  unsigned seed = 100;
  for (const float size : {1.0F, 1e-3F, 1e4F})  // 1e-3: eps takes part
    for (const auto& [rows, width] :
         {std::pair<std::int64_t, std::int64_t>{0, 8}, {1, 1}, {2, 7}, {9, 20}, {70, 64}, {3, 130}})
      check_norm(rows, width, size, seed++);
}

TEST_F(LayersTest, RmsNormOfWideRows) {
  // What a lane holds in registers, exactly and one more piece, for f32 and bf16; more than shared memory holds.
  for (const std::int64_t width : {1024, 1032, 2048, 2056, 4104}) check_norm(3, width, 1.0F, 200);
}

TEST_F(LayersTest, RmsNormOfManyRows) {
  check_norm(600, 16, 1.0F, 300);  // two rows a block, the last one has less
  check_norm(1057, 3, 1.0F, 301);
}

TEST_F(LayersTest, RotaryTablesHaveTheCpusBits) {
  for (const Shape& shape : {Shape{0, 4}, Shape{1, 1}, Shape{130, 32}}) {
    const Tensor cos({}, DType::F32, shape), sin({}, DType::F32, shape);
    ops::rope_tables(cpu, cos, sin, 10'000.0);
    const Tensor dev_cos = garbage(DType::F32, shape), dev_sin = garbage(DType::F32, shape);
    ops::rope_tables(gpu, dev_cos, dev_sin, 10'000.0);
    EXPECT_TRUE(floats(dev_cos) == floats(cos) && floats(dev_sin) == floats(sin));
  }
}

}  // namespace
}  // namespace emox::test
