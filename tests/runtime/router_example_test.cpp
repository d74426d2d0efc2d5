// The worked example of the specification (section 2.5): six tokens, four routed experts, two of them picked, two
// documents with pools of 3 and 2. The numbers are the printed ones, six decimals.
#include <cmath>

#include "runtime/ops/moe.h"
#include "tests/runtime/op_testing.h"

namespace emox::test {
namespace {

constexpr double kPrinted = 0.5e-6 + 8 * kEps;  // half of the last printed digit, and float32

TEST(RouterExample, HasThePrintedNumbers) {
  Context ctx = context();
  const Tensor logits = tensor_of(std::vector<float>{2,   1,   0, -1,   0,    3,   1,    .5F,  1, 0,   2.5F, 0,
                                                     .2F, .1F, 0, 1.9F, -.5F, .4F, 2.2F, 1.1F, 0, .3F, .1F,  2},
                                  {6, 4});
  const Tensor segments = ids_of({0, 3, 6}), sizes = ids_of({3, 2});
  const Tensor q = poison({6, 4}), scores = poison({2, 4}), pool = tensor_of(ref::Flags(8, 9), {2, 4});
  ops::router_softmax(ctx, q, logits);
  ops::document_scores(ctx, scores, q, segments);
  EXPECT_TRUE(
      all_close(floats(scores), {.844041, 1.085189, .914767, .156004, .257137, .340455, .840614, 1.561793}, kPrinted));
  ops::document_pools(ctx, pool, scores, sizes);
  EXPECT_EQ(values_of<std::uint8_t>(pool), (ref::Flags{1, 1, 1, 0, 0, 0, 1, 1}));

  const Tensor p = poison({6, 4}), lse = poison({6}), gates = poison({6, 2}), ids = tensor_of(ref::Ids(12), {6, 2});
  const ops::TopkResult r{p, lse, ids, gates};
  ops::masked_topk(ctx, r, logits, pool, segments, TensorView(), false);
  EXPECT_TRUE(all_close(floats(p),
                        {.665241, .244728, .090031, 0, .042010, .843795, .114195, 0, .170953, .062890, .766157, 0, 0,
                         0,       .130108, .869892, 0, 0,       .750260, .249740, 0, 0,       .130108, .869892},
                        kPrinted));
  EXPECT_EQ(values_of<std::int32_t>(ids), (ref::Ids{0, 1, 1, 2, 2, 0, 3, 2, 2, 3, 3, 2}));

  const Tensor counts({}, DType::I64, {4}), p_sum({}, DType::F64, {4}), z_sum({}, DType::F64, {1});
  ops::router_statistics(ctx, counts, p_sum, z_sum, r);
  EXPECT_EQ(values_of<std::int64_t>(counts), (std::vector<std::int64_t>{2, 2, 5, 3}));
  const ref::Vec sums = values_of<double>(p_sum), means{.146367, .191902, .330143, .331587};
  const double divisor = 5;
  double balance = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(sums[i] / 6, means[i], kPrinted);
    balance += 4.0 / 2.0 * static_cast<double>(values_of<std::int64_t>(counts)[i]) * sums[i] / 6 / divisor;
  }
  EXPECT_NEAR(balance, 1.328807, kPrinted);
  EXPECT_NEAR(values_of<double>(z_sum)[0] / divisor, 7.684039, 0.5e-6 + 8 * kEps * 7.7);
}

}  // namespace
}  // namespace emox::test
