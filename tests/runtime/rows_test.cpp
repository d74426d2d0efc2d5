// Moving rows and elements: gather, combine, scatter.
#include "runtime/ops/moe.h"
#include "tests/runtime/op_testing.h"

namespace emox::test {
namespace {

using ref::Ids;
using ref::Vec;

Ids any_ids(std::mt19937& gen, std::int64_t count, std::int64_t below, bool with_holes = false) {
  Ids ids;
  for (std::int64_t i = 0; i < count; ++i) {
    ids.push_back(below == 0 || (with_holes && gen() % 4 == 0) ? -1 : static_cast<std::int32_t>(gen() % below));
  }
  return ids;
}

TEST(GatherRows, CopiesTheNamedRows) {
  std::mt19937 gen(1);
  for (const std::int64_t rows : {0, 1, 2, 33, 120}) {
    const std::int64_t width = any_size(gen, {1, 3, 16}, 40), source = any_size(gen, {1, 2, 30}, 50);
    const Ids index = any_ids(gen, rows, source);
    const Tensor x = random_tensor({source, width}, 2);
    const auto run = [&](Context& ctx) {
      const Tensor out = poison({rows, width});
      ops::gather_rows(ctx, out, x, ids_of(index));
      return Outputs{floats(out)};
    };
    run_and_check(run, [&](const Outputs& got) {
      EXPECT_TRUE(all_close(got[0], ref::embedding(index, ref::doubles(x), width), 0.0));
    });
  }
}

TEST(CombineRows, SumsTheSlotsOfEachToken) {
  std::mt19937 gen(2);
  for (const std::int64_t tokens : {0, 1, 2, 41, 90}) {
    for (const std::int64_t m : {1, 2, 8}) {
      const std::int64_t width = any_size(gen, {1, 3, 16}, 40), rows = any_size(gen, {0, 1, 30}, 60);
      const Ids slots = any_ids(gen, tokens * m, rows, true);
      SCOPED_TRACE(::testing::Message() << tokens << " tokens, " << m << " slots, " << rows << " rows of " << width);
      const Tensor x = random_tensor({rows, width}, 3), start = random_tensor({tokens, width}, 4);
      for (const float beta : {0.0F, 1.0F}) {
        const Vec want =
            ref::combine_rows(ref::doubles(start), ref::doubles(x), slots, width, static_cast<double>(beta));
        const auto run = [&](Context& ctx) {
          const Tensor y = beta == 0.0F ? poison({tokens, width}) : tensor_of(floats(start), {tokens, width});
          ops::combine_rows(ctx, y, x, tensor_of(slots, {tokens, m}), beta);
          return Outputs{floats(y)};
        };
        const double magnitude =
            static_cast<double>(m) * ref::largest(ref::doubles(x)) + ref::largest(ref::doubles(start));
        run_and_check(run, [&](const Outputs& got) {
          EXPECT_TRUE(all_close(got[0], want, rounding(static_cast<double>(m) + 1, magnitude)));
        });
      }
    }
  }
}

TEST(CombineRows, WithoutSlotsIsZeroOrUnchanged) {
  Context ctx = context();
  const Tensor rows = random_tensor({2, 3}, 1), none = tensor_of(Ids(4, -1), {2, 2});
  const Tensor y = poison({2, 3}), z = filled({2, 3}, 7.0F);
  ops::combine_rows(ctx, y, rows, none, 0.0F);
  ops::combine_rows(ctx, z, rows, none, 1.0F);
  EXPECT_EQ(floats(y), std::vector<float>(6, 0.0F));
  EXPECT_EQ(floats(z), std::vector<float>(6, 7.0F));
}

// Gathering is linear; its transpose is combining with the inverse index. <gather(x), r> = <x, combine(r)>.
TEST(CombineRows, IsTheBackwardOfGather) {
  const std::int64_t tokens = 5, m = 3, width = 4;
  Ids index, slots(tokens * m, -1);
  std::mt19937 gen(3);
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t j = 0; j < m; ++j) {
      if (gen() % 3 == 0) continue;
      slots[t * m + j] = static_cast<std::int32_t>(index.size());
      index.push_back(static_cast<std::int32_t>(t));
    }
  }
  const Tensor x = random_tensor({tokens, width}, 4),
               r = random_tensor({static_cast<std::int64_t>(index.size()), width}, 5);
  const Tensor dx = poison({tokens, width});
  Context ctx = context();
  ops::combine_rows(ctx, dx, r, tensor_of(slots, {tokens, m}), 0.0F);
  const Vec vr = ref::doubles(r);
  EXPECT_TRUE(ref::is_gradient(
      floats(dx), [&](const Vec& v) { return ref::dot(vr, ref::embedding(index, v, width)); }, ref::doubles(x),
      rounding(3, 3 * ref::largest(vr))));
}

TEST(Elements, GatherAndScatterAreInverse) {
  std::mt19937 gen(4);
  for (const std::int64_t count : {0, 1, 7, 300}) {
    Ids index(count);
    for (std::int64_t i = 0; i < count; ++i) index[i] = static_cast<std::int32_t>(i);
    std::shuffle(index.begin(), index.end(), gen);
    const Tensor x = random_tensor({count, 1}, 5), at = ids_of(index);  // any shape of the token side
    const auto run = [&](Context& ctx) {
      const Tensor moved = poison({count}), back = poison({count, 1});
      ops::gather_elements(ctx, moved, x, at);
      ops::scatter_elements(ctx, back, moved, at);
      return Outputs{floats(moved), floats(back)};
    };
    run_and_check(run, [&](const Outputs& got) {
      for (std::int64_t i = 0; i < count; ++i) ASSERT_EQ(got[0][i], floats(x)[index[i]]);
      EXPECT_EQ(got[1], floats(x));
    });
  }
}

TEST(Elements, ScatterLeavesTheRestAlone) {
  Context ctx = context();
  const Tensor dst = filled({2, 3}, 1.0F), src = tensor_of(std::vector<float>{5, 6}, {2});
  ops::scatter_elements(ctx, dst, src, ids_of({4, 0}));
  EXPECT_EQ(floats(dst), (std::vector<float>{6, 1, 1, 1, 5, 1}));
}

}  // namespace
}  // namespace emox::test
