// Elementwise ops, copies, the optimizer, balance and scores on a device against the CPU.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "runtime/ops/balance.h"
#include "runtime/ops/basic.h"
#include "runtime/ops/expert_scores.h"
#include "runtime/ops/optim.h"
#include "tests/cuda/device_test.h"

namespace emox::test {
namespace {

using ops::Op;

class CudaBasic : public DeviceTest, public ::testing::WithParamInterface<std::int64_t> {};

TEST_P(CudaBasic, FillsZeroesCopies) {
  const std::int64_t n = GetParam();
  const Tensor x = garbage(DType::F32, {n}), y = garbage(DType::F32, {n}), bytes = garbage(DType::U8, {n});
  ops::fill(gpu, x, 0.375F);
  ops::copy(gpu, y, x);
  ops::zero(gpu, x);
  ops::zero(gpu, bytes);
  EXPECT_EQ(down<float>(y), std::vector<float>(idx(n), 0.375F));
  EXPECT_EQ(down<float>(x), std::vector<float>(idx(n), 0.0F));
  EXPECT_EQ(down<std::uint8_t>(bytes), std::vector<std::uint8_t>(idx(n), 0));
}

TEST_P(CudaBasic, RoundsAsTheHostDoes) {
  const std::int64_t n = GetParam();
  const Tensor x = random_tensor({n}, 3);
  const float special[] = {INFINITY, -INFINITY, NAN, 3.4e38F, 0x1.01p0F, 0x1.03p0F, -0.0F};
  for (std::int64_t i = 0; i < std::min<std::int64_t>(n, 7); ++i) x.view().data<float>()[i] = special[i];
  const Tensor low({}, DType::BF16, {n}), there = garbage(DType::BF16, {n}), back = garbage(DType::F32, {n});
  ops::convert(cpu, low, x);
  ops::convert(gpu, there, up(x));
  ops::convert(gpu, back, there);
  EXPECT_EQ(down<Bf16>(there), values_of<Bf16>(low));
  EXPECT_TRUE(agree(floats(back), floats(rounded(x)), 0, 0));
}

TEST_P(CudaBasic, Adds) {
  const Tensor x = rounded(random_tensor({GetParam()}, 5)), y = rounded(random_tensor({GetParam()}, 6));
  const Tensor gy = up(y), by = up_bf16(y);
  ops::add(gpu, gy, up(x));
  ops::add(gpu_bf16, by, up_bf16(x));
  ops::add(cpu, y, x);
  EXPECT_EQ(floats(gy), floats(y));
  EXPECT_EQ(floats(by), floats(rounded(y)));  // one rounding of the exact sum
}

TEST_P(CudaBasic, SquaresAddUp) {
  const Tensor x = random_tensor({GetParam()}, 7);
  const Tensor host = tensor_of<double>({1.5}, {1}), device = up(host);
  ops::sum_of_squares(cpu, host, x);
  ops::sum_of_squares(gpu, device, up(x));
  const double want = values_of<double>(host)[0];
  EXPECT_NEAR(down<double>(device)[0], want, 1e-13 * want);
}

TEST_P(CudaBasic, AdamWStepsAsOnTheCpu) {
  const Shape shape{GetParam()};
  const Tensor p = random_tensor(shape, 1), g = random_tensor(shape, 2), m = random_tensor(shape, 3, 0.1F),
               v({}, DType::F32, shape);
  for (std::int64_t i = 0; i < shape.numel(); ++i)
    v.view().data<float>()[i] = std::abs(g.view().data<float>()[i]) * 0.01F;
  const Tensor dp = up(p), dg = up(g), dm = up(m), dv = up(v), copy = garbage(DType::BF16, shape);
  const ops::AdamW o{3e-3, 0.9, 0.95, 1e-8, 0.1, 0.7, 5};
  ops::adamw(cpu, p, {}, g, m, v, o);
  ops::adamw(gpu, dp, copy, dg, dm, dv, o);
  // Multiplications and additions that are fused or not: a few units in the last place.
  EXPECT_TRUE(agree(floats(dm), floats(m), 1e-6, 1e-7));
  EXPECT_TRUE(agree(floats(dv), floats(v), 1e-6, 1e-9));
  EXPECT_TRUE(agree(floats(dp), floats(p), 2e-6, 1e-7));
  std::vector<float> want;
  for (const float x : floats(dp)) want.push_back(rounded_to_bf16(x));
  EXPECT_EQ(floats(copy), want);
  ops::adamw(gpu, dp, {}, dg, dm, dv, o);
}

INSTANTIATE_TEST_SUITE_P(Sizes, CudaBasic, ::testing::Values(0, 1, 7, 1023, 1024, 1025, 40000));

class CudaOps : public DeviceTest {};

TEST_F(CudaOps, WeightsBeginTheSame) {
  const std::int64_t n = 1000;
  const Tensor host({}, DType::F32, {n}), device = garbage(DType::F32, {n});
  ops::random_truncated_normal(cpu, host, Philox(42, RngPurpose::Init), 3, 77, 0.02, 0.06);
  ops::random_truncated_normal(gpu, device, Philox(42, RngPurpose::Init), 3, 77, 0.02, 0.06);
  EXPECT_EQ(down<float>(device), values_of<float>(host));
}

// More than the staging ring holds, so that halves are used again while copies are on their way.
TEST_F(CudaOps, UploadsLargerThanTheRingArriveWhole) {
  const std::int64_t n = std::int64_t{18} << 20;
  std::vector<std::int32_t> values(idx(n));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::int32_t>(i);
  const Tensor x(gpu.device, DType::I32, {n});
  ops::copy_from_host(gpu, x, values.data());
  const auto want = values;
  std::fill(values.begin(), values.end(), -1);  // the host side is free
  EXPECT_TRUE(down<std::int32_t>(x) == want);
}

TEST_F(CudaOps, ManySmallUploadsArrive) {
  constexpr std::int64_t kCount = 3000, kSize = 5000;
  const Tensor x(gpu.device, DType::I32, {kCount, kSize});
  std::vector<std::int32_t> values(kSize);
  for (std::int64_t i = 0; i < kCount; ++i) {
    std::fill(values.begin(), values.end(), static_cast<std::int32_t>(i));
    ops::copy_from_host(gpu, x.view()[i], values.data());
  }
  const auto got = down<std::int32_t>(x);
  for (std::int64_t i = 0; i < kCount; ++i)
    ASSERT_EQ(std::count(got.begin() + i * kSize, got.begin() + (i + 1) * kSize, i), kSize) << i;
}

TEST_F(CudaOps, WithoutAWordAFaultIsThrownAtTheNextWait) {
  Context bare = gpu;
  bare.fault = {};
  const Tensor ids = up(tensor_of<std::int32_t>({0, 9, 1}, {3})), table = up(tensor_of<std::int32_t>({4, 5}, {2}));
  ops::translate_ids(bare, ids, table);
  EXPECT_THROW(down<std::int32_t>(ids), ShapeError);
  EXPECT_EQ(down<std::int32_t>(ids), (std::vector<std::int32_t>{4, 9, 5}));  // said once
}

TEST_F(CudaOps, BalanceAsOnTheCpu) {
  for (const std::int64_t layers : {1, 3})
    for (const std::int64_t n : {1, 31, 127, 512}) {
      const Tensor counts({}, DType::I64, {layers, n}), p({}, DType::F64, {layers, n});
      for (std::int64_t i = 0; i < layers * n; ++i) {
        counts.view().data<std::int64_t>()[i] = (i * 7919) % 1000;
        p.view().data<double>()[i] = static_cast<double>((i * 104729) % 977) / 13.0;
      }
      const Tensor g({}, DType::F32, {layers, n}), loss = tensor_of<double>({0.25}, {1});
      const Tensor dg = garbage(DType::F32, {layers, n}), dloss = up(loss), bias = random_tensor({layers, n}, 4);
      const Tensor dbias = up(bias), dcounts = up(counts), total = up(counts);
      const ops::BalanceOptions o{0.01, 3, 321.0};
      ops::balance_gradient(cpu, g, loss, counts, p, o);
      ops::balance_gradient(gpu, dg, dloss, dcounts, up(p), o);
      EXPECT_EQ(floats(dg), floats(g));
      EXPECT_NEAR(down<double>(dloss)[0], values_of<double>(loss)[0], 1e-12);
      ops::move_selection_bias(cpu, bias, counts, 1e-3);
      ops::move_selection_bias(gpu, dbias, dcounts, 1e-3);
      EXPECT_EQ(floats(dbias), floats(bias));
      ops::add_counts(gpu, total, dcounts);
      auto twice = values_of<std::int64_t>(counts);
      for (auto& c : twice) c *= 2;
      EXPECT_EQ(down<std::int64_t>(total), twice);
      // Nothing was counted: no pull, no loss.
      ops::zero(gpu, dcounts);
      ops::balance_gradient(gpu, dg, dloss, dcounts, up(p), o);
      EXPECT_EQ(floats(dg), std::vector<float>(idx(layers * n), 0.0F));
    }
}

TEST_F(CudaOps, SumsInOrder) {
  const Tensor total = up(tensor_of<double>({1.0}, {1}));
  ops::add_sum(gpu, total, up(tensor_of<double>({0x1p-53, 0x1p-53, -1.0}, {3})));
  EXPECT_EQ(down<double>(total)[0], 1.0 + 0x1p-53 + 0x1p-53 - 1.0);
}

TEST_F(CudaOps, ScoresOfExperts) {
  for (const std::int64_t tokens : {0, 1, 300}) {
    constexpr std::int64_t n = 31, shared = 2, k = 3, width = 20;
    const Tensor ids({}, DType::I32, {tokens, k}),
        routed = random_tensor({tokens, k}, 1), norms = random_tensor({shared, tokens}, 2),
        h = rounded(random_tensor({tokens, width}, 3)), y = rounded(random_tensor({tokens, width}, 4)),
        change({}, DType::F64, {tokens}), scores({}, DType::F64, {n + shared}), row({}, DType::F32, {tokens});
    for (std::int64_t i = 0; i < tokens * k; ++i)
      ids.view().data<std::int32_t>()[i] = static_cast<std::int32_t>((i * i) % n);
    if (tokens > 0) std::fill_n(h.view().data<float>(), width, 0.0F);  // no direction: the change is 1
    const Tensor dids = up(ids), dchange = garbage(DType::F64, {tokens}), dscores = up(scores),
                 drow = garbage(DType::F32, {tokens}), low_row = garbage(DType::F32, {tokens});
    ops::row_norms(cpu, row, y);
    ops::row_norms(gpu, drow, up(y));
    ops::row_norms(gpu_bf16, low_row, up_bf16(y));
    EXPECT_TRUE(agree(floats(drow), floats(row), 1e-7, 0));
    EXPECT_EQ(floats(low_row), floats(drow));
    ops::output_change(cpu, change, h, y);
    ops::output_change(gpu, dchange, up(h), up(y));
    const auto want = values_of<double>(change), got = down<double>(dchange);
    for (std::size_t t = 0; t < want.size(); ++t) EXPECT_NEAR(got[t], want[t], 1e-14) << t;
    ops::output_change(gpu_bf16, dchange, up_bf16(h), up_bf16(y));
    EXPECT_EQ(down<double>(dchange), got);
    ops::add_expert_scores(cpu, scores, ids, routed, norms, change);
    ops::add_expert_scores(gpu, dscores, dids, up(routed), up(norms), dchange);
    const auto sums = values_of<double>(scores), dsums = down<double>(dscores);
    for (std::size_t e = 0; e < sums.size(); ++e) EXPECT_NEAR(dsums[e], sums[e], 1e-12) << e;
    EXPECT_EQ(fault(), std::nullopt);
  }
}

TEST_F(CudaOps, WrongIdsAreReported) {
  const Tensor ids = up(tensor_of<std::int32_t>({0, 2, -1}, {3}));
  ops::translate_ids(gpu, ids, up(tensor_of<std::int32_t>({7, 8, 9}, {3})));
  EXPECT_EQ(fault(), (ops::Fault{Op::translate_ids, 1, 2}));
  EXPECT_EQ(down<std::int32_t>(ids), (std::vector<std::int32_t>{7, 9, -1}));
  const Tensor scores = up(tensor_of<double>({0, 0, 0}, {3})), change = up(tensor_of<double>({1}, {1}));
  ops::add_expert_scores(gpu, scores, up(tensor_of<std::int32_t>({1, 3}, {1, 2})), up(tensor_of<float>({2, 4}, {1, 2})),
                         Tensor(gpu.device, DType::F32, {0, 1}), change);
  EXPECT_EQ(fault(), (ops::Fault{Op::add_expert_scores, 2, 1}));
  EXPECT_EQ(down<double>(scores), (std::vector<double>{0, 2, 0}));
}

}  // namespace
}  // namespace emox::test
