// LM head and loss on the device against the CPU.
#include <cmath>
#include <random>

#include "runtime/ops/loss.h"
#include "tests/cuda/product_testing.h"

namespace emox::test {
namespace {

struct Case {
  std::int64_t tokens, width, vocab;
  ops::LmLossOptions options = {.inverse_divisor = 1.0 / 64, .z_weight = 1e-2};
  double unscored = 0.25;
};

class LmHeadOnDevice : public DeviceTest {
 protected:
  struct Inputs {
    Tensor x, weight, labels, dweight;
  };
  static Inputs inputs(const Case& c, unsigned seed) {
    std::mt19937 gen(seed);
    std::vector<std::int32_t> labels;
    for (std::int64_t t = 0; t < c.tokens; ++t) {
      const bool scored = std::uniform_real_distribution<>(0, 1)(gen) >= c.unscored;
      labels.push_back(scored ? static_cast<std::int32_t>(gen() % static_cast<unsigned>(c.vocab)) : -1);
    }
    return {rounded(random_tensor({c.tokens, c.width}, seed + 1)),
            rounded(random_tensor({c.vocab, c.width}, seed + 2, 1.0F / std::sqrt(static_cast<float>(c.width)))),
            tensor_of(labels, {c.tokens}), random_tensor({c.vocab, c.width}, seed + 3, 0.01F)};
  }
  struct Outputs {
    std::vector<double> sums;
    std::vector<float> token_loss, dx, dweight;
    friend bool operator==(const Outputs&, const Outputs&) = default;
  };
  static Tensor scratch_for(const Context& ctx, const Case& c) {
    const auto bytes = static_cast<std::int64_t>(ops::lm_head_loss_scratch(ctx.device, c.tokens, c.vocab));
    return Tensor(ctx.device, DType::U8, {bytes});
  }
  static constexpr double kSums[] = {3.0, 0.5};  // what was there

  Outputs on_cpu(const Case& c, const Inputs& x) {
    const Tensor sums = tensor_of(std::vector<double>{kSums[0], kSums[1]}, {2}), losses({}, DType::F32, {c.tokens}),
                 dx({}, DType::F32, {c.tokens, c.width}), dweight = host_copy(x.dweight);
    ops::lm_head_loss(cpu, {sums, losses, dx, dweight}, {x.x, x.weight, x.labels}, scratch_for(cpu, c), c.options);
    return {values_of<double>(sums), values_of<float>(losses), values_of<float>(dx), values_of<float>(dweight)};
  }
  Outputs on_device(Context& ctx, const Case& c, const Inputs& x, bool gradient = true) {
    const auto low = [&](const Tensor& v) { return ctx.activations == DType::BF16 ? up_bf16(v) : up(v); };
    const Tensor sums = up(tensor_of(std::vector<double>{kSums[0], kSums[1]}, {2})),
                 losses = garbage(DType::F32, {c.tokens}), dx = garbage(ctx.activations, {c.tokens, c.width}),
                 dweight = up(x.dweight), px = low(x.x), pw = low(x.weight), labels = up(x.labels);
    const Tensor room = scratch_for(ctx, c), scratch = garbage(DType::U8, room.view().shape());
    const ops::LmLossResult all{sums, losses, dx, dweight}, loss_only{.sums = sums, .token_loss = losses};
    ops::lm_head_loss(ctx, gradient ? all : loss_only, {px, pw, labels}, scratch, c.options);
    return {down<double>(sums), floats(losses), gradient ? floats(dx) : std::vector<float>{},
            gradient ? floats(dweight) : std::vector<float>{}};
  }

  static void expect_sums_agree(const Outputs& got, const Outputs& want, const Case& c) {
    const double scored = std::max(1.0, static_cast<double>(c.tokens));
    for (int i = 0; i < 2; ++i)
      EXPECT_NEAR(got.sums[idx(i)], want.sums[idx(i)], 1e-6 * (std::abs(want.sums[idx(i)]) + scored));
    EXPECT_TRUE(agree(got.token_loss, want.token_loss, 2e-6, 2e-6));
  }
};

const Case kCases[] = {{0, 4, 5},           {1, 1, 1},
                       {3, 4, 7},           {40, 20, 33},
                       {70, 16, 1030},  // beyond the logits that a small block of threads takes at once
                       {9, 8, 9001},    // beyond those of a large one
                       {33, 64, 4096},      {20, 8, 50, {.inverse_divisor = 0.5, .z_weight = 0.0}},
                       {20, 8, 50, {}, 1.0}};  // no token is scored

TEST_F(LmHeadOnDevice, EqualsTheCpu) {
  unsigned seed = 0;
  for (const Case& c : kCases) {
    SCOPED_TRACE(::testing::Message() << c.tokens << " x " << c.width << " x " << c.vocab);
    const Inputs x = inputs(c, seed += 10);
    const Outputs got = on_device(gpu, c, x), want = on_cpu(c, x);
    expect_sums_agree(got, want, c);
    const double scale = c.options.inverse_divisor;
    EXPECT_TRUE(agree(got.dx, want.dx, 4e-6, 2e-6 * scale));
    EXPECT_TRUE(agree(got.dweight, want.dweight, 4e-6, 4e-6 * scale));
    EXPECT_TRUE(got == on_device(gpu, c, x));
    EXPECT_FALSE(fault());
  }
}

TEST_F(LmHeadOnDevice, InBf16EqualsTheCpuToTheRoundingOfTheLogitsGradient) {
  unsigned seed = 300;
  for (const Case& c : kCases) {
    SCOPED_TRACE(::testing::Message() << c.tokens << " x " << c.width << " x " << c.vocab);
    const Inputs x = inputs(c, seed += 10);
    const Outputs got = on_device(gpu_bf16, c, x), want = on_cpu(c, x);
    expect_sums_agree(got, want, c);
    // |dlogits| adds up to at most 2 inverse_divisor (1 + 2 w lse) a token; bf16 leaves 2^-8 of it at most.
    const double most = 2 * c.options.inverse_divisor * (1 + 2 * c.options.z_weight * 12);
    double largest_x = 0, largest_w = 0;
    for (const float v : values_of<float>(x.x)) largest_x = std::max(largest_x, std::abs(static_cast<double>(v)));
    for (const float v : values_of<float>(x.weight)) largest_w = std::max(largest_w, std::abs(static_cast<double>(v)));
    EXPECT_TRUE(agree(got.dx, want.dx, 0x1p-8, 0x1p-8 * most * largest_w));
    // A word's gradient adds up over the tokens: those of its label, and small parts of all others.
    EXPECT_TRUE(agree(got.dweight, want.dweight, 1e-5, 0x1p-8 * most * largest_x * 3));
    EXPECT_TRUE(got == on_device(gpu_bf16, c, x));
  }
}

TEST_F(LmHeadOnDevice, TheLossAloneIsTheSame) {
  const Case c{40, 20, 33};
  const Inputs x = inputs(c, 7);
  for (Context* ctx : {&gpu, &gpu_bf16}) {
    const Outputs with = on_device(*ctx, c, x), without = on_device(*ctx, c, x, false);
    EXPECT_EQ(with.sums, without.sums);
    EXPECT_EQ(with.token_loss, without.token_loss);
  }
}

// More tokens than one block of logits holds.
TEST_F(LmHeadOnDevice, TakesTokensInBlocks) {
  const Case c{4111, 4, 16};
  ASSERT_LT(ops::lm_head_loss_scratch(gpu.device, c.tokens, c.vocab), idx(c.tokens * c.vocab) * sizeof(float));
  const Inputs x = inputs(c, 11);
  const Outputs want = on_cpu(c, x);
  const Outputs got = on_device(gpu, c, x);
  expect_sums_agree(got, want, c);
  EXPECT_TRUE(agree(got.dx, want.dx, 4e-6, 2e-6 * c.options.inverse_divisor));
  EXPECT_TRUE(agree(got.dweight, want.dweight, 1e-5, 1e-5));
}

// Uniform logits: the loss is log V, and the gradient (softmax - label) / divisor, known without another body.
TEST_F(LmHeadOnDevice, KnowsTheLossOfUniformLogits) {
  const Case c{5, 4, 16, {.inverse_divisor = 0.25, .z_weight = 0.0}, 0.0};
  Inputs x = inputs(c, 3);
  x.weight = Tensor({}, DType::F32, {c.vocab, c.width});
  for (Context* ctx : {&gpu, &gpu_bf16}) {
    const Outputs got = on_device(*ctx, c, x);
    for (const float loss : got.token_loss) EXPECT_NEAR(loss, std::log(16.0), 1e-6);
    EXPECT_NEAR(got.sums[0] - kSums[0], 5 * std::log(16.0), 1e-5);
    EXPECT_NEAR(got.sums[1] - kSums[1], 5 * std::log(16.0) * std::log(16.0), 1e-5);
    for (std::int64_t v = 0; v < c.vocab; ++v)
      for (std::int64_t d = 0; d < c.width; ++d) {
        double want = x.dweight.view().data<float>()[v * c.width + d];
        for (std::int64_t t = 0; t < c.tokens; ++t)
          want += 0.25 * (1.0 / 16 - (x.labels.view().data<std::int32_t>()[t] == v ? 1 : 0)) *
                  static_cast<double>(x.x.view().data<float>()[t * c.width + d]);
        EXPECT_NEAR(got.dweight[idx(v * c.width + d)], want, 1e-6);
      }
  }
}

// Memory is reserved once, for the most tokens; any fewer must do with it.
TEST_F(LmHeadOnDevice, ScratchIsEnoughForFewerTokens) {
  constexpr std::int64_t kVocab = 100;
  std::size_t most = 0;
  for (std::int64_t tokens = 0; tokens <= 13000; ++tokens) {
    const std::size_t bytes = ops::lm_head_loss_scratch(gpu.device, tokens, kVocab);
    ASSERT_GE(bytes, most) << tokens;
    most = bytes;
  }
}

}  // namespace
}  // namespace emox::test
