// Moving rows and elements on a device against the CPU.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "runtime/core/bf16.h"
#include "runtime/ops/moe.h"
#include "tests/cuda/device_test.h"

namespace emox::test {
namespace {

using Ids = std::vector<std::int32_t>;

Tensor ids_of(const Ids& v) { return tensor_of(v, {static_cast<std::int64_t>(v.size())}); }
Ids any_ids(std::mt19937& gen, std::int64_t count, std::int64_t below, bool with_holes) {
  Ids ids;
  for (std::int64_t i = 0; i < count; ++i)
    ids.push_back(below == 0 || (with_holes && gen() % 4 == 0) ? -1 : static_cast<std::int32_t>(gen() % below));
  return ids;
}

class RowsTest : public DeviceTest {
 protected:
  Tensor up_as(const Context& ctx, const TensorView& host) {
    return ctx.activations == DType::BF16 ? up_bf16(host) : up(host);
  }
  static std::int64_t element(const Context& ctx) { return ctx.activations == DType::BF16 ? 2 : 4; }
};

// Widths of 1, odd, of whole 16-byte pieces, of several rounds of a warp's pieces and a rest.
constexpr std::int64_t kWidths[] = {1, 7, 16, 20, 128, 1160, 2048};

TEST_F(RowsTest, GatherCopiesTheNamedRows) {
  std::mt19937 gen(1);
  for (const std::int64_t width : kWidths)
    for (const std::int64_t rows : {0, 1, 33}) {
      const Tensor x = random_tensor({19, width}, 2);
      const Ids index = any_ids(gen, rows, 19, false);
      for (Context* ctx : {&gpu, &gpu_bf16}) {
        SCOPED_TRACE(::testing::Message() << rows << " rows of " << width << " x " << element(*ctx) << " bytes");
        const Tensor low = rounded(x), want({}, DType::F32, {rows, width}),
                     out = garbage(ctx->activations, {rows, width});
        ops::gather_rows(cpu, want, ctx == &gpu ? x.view() : low.view(), ids_of(index));
        ops::gather_rows(*ctx, out, up_as(*ctx, x), up(ids_of(index)));
        EXPECT_EQ(floats(out), floats(want));
        EXPECT_EQ(fault(), std::nullopt);
      }
    }
}

// A view need not begin at a multiple of 16 bytes, though its rows are as long.
TEST_F(RowsTest, RowsThatBeginAnywhere) {
  for (Context* ctx : {&gpu, &gpu_bf16}) {
    const std::int64_t bytes = element(*ctx);
    const Tensor memory = up_as(*ctx, random_tensor({1 + 6 * 16}, 3)),
                 out_memory = garbage(ctx->activations, {1 + 6 * 16});
    const auto shifted = [&](const Tensor& t) {
      return TensorView(static_cast<char*>(t.view().raw()) + bytes, ctx->activations, {6, 16}, t.view().device());
    };
    const Ids reversed{5, 4, 3, 2, 1, 0};
    ops::gather_rows(*ctx, shifted(out_memory), shifted(memory), up(ids_of(reversed)));
    const std::vector<float> in = floats(memory);
    std::vector<float> out = floats(out_memory);
    for (int r = 0; r < 6; ++r)
      EXPECT_TRUE(std::equal(&in[idx(1 + 16 * r)], &in[idx(1 + 16 * r)] + 16, &out[idx(1 + 16 * (5 - r))])) << r;
    ops::combine_rows(*ctx, shifted(out_memory), shifted(memory), up(tensor_of(reversed, {6, 1})), 0.0F);
    EXPECT_EQ(floats(out_memory)[96], in[16]);
    EXPECT_TRUE(std::isnan(floats(out_memory)[0]));
  }
}

TEST_F(RowsTest, CombineSumsTheSlotsOfEachToken) {
  std::mt19937 gen(2);
  for (const std::int64_t width : kWidths)
    for (const std::int64_t m : {0, 1, 4, 7, 8, 33})
      for (const std::int64_t tokens : {0, 1, 11}) {
        if ((m > 8 || m == 1) && width > 200) continue;
        const std::int64_t rows = gen() % 5 == 0 ? 0 : 30;
        const Tensor x = random_tensor({rows, width}, 3), start = random_tensor({tokens, width}, 4);
        const Tensor slots = tensor_of(any_ids(gen, tokens * m, rows, true), {tokens, m});
        for (const float beta : {0.0F, 1.0F, 0.5F})
          for (Context* ctx : {&gpu, &gpu_bf16}) {
            SCOPED_TRACE(::testing::Message() << tokens << " tokens of " << m << " rows of " << width << " x "
                                              << element(*ctx) << " bytes, beta " << beta);
            const bool low = ctx == &gpu_bf16;
            const Tensor in = low ? rounded(x) : tensor_of(floats(x), {rows, width});
            const Tensor want = low ? rounded(start) : tensor_of(floats(start), {tokens, width});
            ops::combine_rows(cpu, want, in, slots, beta);
            const Tensor device_x = up_as(*ctx, x), device_slots = up(slots);
            const auto run = [&] {
              const Tensor y = beta == 0.0F ? garbage(ctx->activations, {tokens, width}) : up_as(*ctx, start);
              ops::combine_rows(*ctx, y, device_x, device_slots, beta);
              return floats(y);
            };
            // The same sums in the same order, so the same bits; halving is exact, and a fused multiplication with it.
            const std::vector<float> got = run();
            EXPECT_EQ(got, floats(low ? rounded(want).view() : want.view()));
            if (width == 20) {
              EXPECT_EQ(got, run());
            }
            EXPECT_EQ(fault(), std::nullopt);
          }
      }
}

TEST_F(RowsTest, ElementsThereAndBack) {
  std::mt19937 gen(4);
  for (const std::int64_t count : {0, 1, 7, 1000}) {
    Ids index(idx(count));
    std::iota(index.begin(), index.end(), 0);
    std::shuffle(index.begin(), index.end(), gen);
    const Tensor x = random_tensor({count, 2}, 5), at = up(ids_of(index)), device = up(x);
    const Tensor moved = garbage(DType::F32, {count}), back = up(x);
    ops::gather_elements(gpu, moved, device, at);
    const std::vector<float> got = floats(moved);
    for (std::size_t i = 0; i < got.size(); ++i) EXPECT_EQ(got[i], floats(x)[idx(index[i])]);
    ops::scatter_elements(gpu, back, moved, at);  // what is not named stays
    EXPECT_EQ(floats(back), floats(x));
    const Tensor zeros({}, DType::F32, {count, 2}), scattered = up(zeros);
    ops::scatter_elements(gpu, scattered, moved, at);
    ops::scatter_elements(cpu, zeros, tensor_of(got, {count}), ids_of(index));
    EXPECT_EQ(floats(scattered), floats(zeros));
    EXPECT_EQ(fault(), std::nullopt);
  }
}

TEST_F(RowsTest, WrongIndicesAreFaultsAndReadNothing) {
  for (const std::int32_t wrong : {-2, 5, 1 << 30, -(1 << 30)}) {
    const Tensor x = up(random_tensor({5, 16}, 6)), rows = garbage(DType::F32, {3, 16});
    ops::gather_rows(gpu, rows, x, up(ids_of({4, wrong, 0})));
    EXPECT_EQ(fault(), (ops::Fault{ops::Op::gather_rows, 3, 1}));
    EXPECT_TRUE(std::isnan(floats(rows)[16])) << "nothing is computed from it";
    EXPECT_EQ(floats(rows)[0], floats(x)[64]);
    const Tensor y = garbage(DType::F32, {2, 16});
    ops::combine_rows(gpu, y, x, up(tensor_of(Ids{1, -1, 3, wrong}, {2, 2})), 0.0F);
    EXPECT_EQ(fault(), (ops::Fault{ops::Op::combine_rows, 3, 3}));
    EXPECT_EQ(floats(y)[16], floats(x)[48]);
    const Tensor source = up(random_tensor({5}, 7)), moved = garbage(DType::F32, {3});
    ops::gather_elements(gpu, moved, source, up(ids_of({1, 2, wrong})));
    EXPECT_EQ(fault(), (ops::Fault{ops::Op::gather_elements, 3, 2}));
    EXPECT_TRUE(std::isnan(floats(moved)[2]));
    ops::scatter_elements(gpu, source, up(random_tensor({3}, 8)), up(ids_of({wrong, 2, 3})));
    EXPECT_EQ(fault(), (ops::Fault{ops::Op::scatter_elements, 3, 0}));
  }
  const Tensor x = up(random_tensor({5, 16}, 6)), rows = garbage(DType::F32, {1, 16});
  ops::gather_rows(gpu, rows, x, up(ids_of({-1})));  // no row is none of them, but for combine_rows
  EXPECT_EQ(fault(), (ops::Fault{ops::Op::gather_rows, 3, 0}));
}

}  // namespace
}  // namespace emox::test
