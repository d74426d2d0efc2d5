// Functions of device code do what the programming guide and PTX say.
#include <cmath>
#include <cstdlib>

#include "runtime/core/bf16.h"
#include "tests/cuda/emulator_testing.h"

namespace emox::test {
namespace {

class EmulatedWarp : public EmulatorTest {};

struct Results {
  int xor_of, down, down_in_8, up, from, from_in_8, ballot, any, all, match, sum, largest, smallest, part;
  long long wide;
};
void warp_kernel(Results* out) {
  const int lane = static_cast<int>(threadIdx.x), v = 100 + lane;
  Results r{};
  r.xor_of = __shfl_xor_sync(~0U, v, 5);
  r.down = __shfl_down_sync(~0U, v, 3);
  r.down_in_8 = __shfl_down_sync(~0U, v, 3, 8);
  r.up = __shfl_up_sync(~0U, v, 3);
  r.from = __shfl_sync(~0U, v, 9);
  r.from_in_8 = __shfl_sync(~0U, v, 9, 8);
  r.ballot = static_cast<int>(__ballot_sync(~0U, lane % 3 == 0));
  r.any = __any_sync(~0U, lane == 7);
  r.all = __all_sync(~0U, lane < 31);
  r.match = static_cast<int>(__match_any_sync(~0U, lane / 4));
  r.sum = __reduce_add_sync(~0U, lane - 3);
  r.largest = __reduce_max_sync(~0U, -lane - 1);
  r.smallest = __reduce_min_sync(~0U, 7 - lane);
  r.wide = __shfl_xor_sync(~0U, v * 10000000000LL, 1);
  // Two halves, each for itself.
  const unsigned half = lane < 16 ? 0xffffU : 0xffff0000U;
  r.part = lane < 16 ? __reduce_add_sync(half, 1) : __shfl_xor_sync(half, v, 4);
  out[lane] = r;
}

TEST_F(EmulatedWarp, ShufflesAndVotes) {
  Results* out = device<Results>(32);
  ASSERT_EQ(launch(warp_kernel, 1, 32, 0, nullptr, out), cudaSuccess);
  const std::vector<Results> all = host(out, 32);
  for (int l = 0; l < 32; ++l) {
    const Results& r = all[idx(l)];
    EXPECT_EQ(r.xor_of, 100 + (l ^ 5));
    EXPECT_EQ(r.down, l < 29 ? 103 + l : 100 + l);
    EXPECT_EQ(r.down_in_8, l % 8 < 5 ? 103 + l : 100 + l);
    EXPECT_EQ(r.up, l >= 3 ? 97 + l : 100 + l);
    EXPECT_EQ(r.from, 109);
    EXPECT_EQ(r.from_in_8, 100 + l / 8 * 8 + 1);
    EXPECT_EQ(static_cast<unsigned>(r.ballot), 0x49249249U);
    EXPECT_EQ(r.any, 1);
    EXPECT_EQ(r.all, 0);
    EXPECT_EQ(static_cast<unsigned>(r.match), 0xfU << l / 4 * 4);
    EXPECT_EQ(r.sum, 31 * 16 - 3 * 32);
    EXPECT_EQ(r.largest, -1);
    EXPECT_EQ(r.smallest, -24);
    EXPECT_EQ(r.wide, (100 + (l ^ 1)) * 10000000000LL);
    EXPECT_EQ(r.part, l < 16 ? 16 : 100 + (l ^ 4));
  }
}

void last_warp_kernel(int* out) { out[threadIdx.x] = __popc(__ballot_sync(~0U, 1)); }

TEST_F(EmulatedWarp, TheLastMayHaveFewerLanes) {
  int* out = device<int>(40);
  ASSERT_EQ(launch(last_warp_kernel, 1, 40, 0, nullptr, out), cudaSuccess);
  EXPECT_EQ(host(out, 40)[31], 32);
  EXPECT_EQ(host(out, 40)[32], 8);
}

struct Tiles {
  Bf16 a[16][16], b_columns[8][16], b_rows[16][16];
};
/// C = A B by the tensor cores, with A and B from shared memory, B transposed or not while it is read.
void product_kernel(float* out, const Bf16* a, const Bf16* b, bool transposed) {
  Tiles& s = shared_memory<Tiles>();
  const int l = static_cast<int>(threadIdx.x), g = l / 4, t = 2 * (l % 4);
  copy_async_16(&s.a[l / 2][8 * (l % 2)], a + 8 * l, true);
  copy_async_16(&s.b_rows[l / 2][8 * (l % 2)], b, false);
  copy_async_commit();
  for (int i = l; i < 8 * 16; i += 32) s.b_columns[i / 16][i % 16] = b[i % 16 * 8 + i / 16];
  copy_async_wait<0>();
  __syncwarp();
  for (int i = l; i < 16 * 8; i += 32) s.b_rows[i / 8][i % 8] = b[i];
  __syncwarp();
  std::uint32_t fa[4], fb[4];
  load_matrices_x4(fa, &s.a[l % 16][8 * (l / 16)]);
  if (transposed)
    load_matrices_x4_transposed(fb, &s.b_rows[l % 16][8 * (l / 16)]);
  else
    load_matrices_x4(fb, &s.b_columns[l % 8][8 * (l / 8 % 2)]);
  float d[4] = {1, 2, 3, 4};
  mma_m16n8k16(d, fa, {fb[0], fb[1]});
  for (int i = 0; i < 4; ++i) out[(g + 8 * (i / 2)) * 8 + t + i % 2] = d[i];
}

TEST_F(EmulatedWarp, TensorCoresMultiply) {
  std::vector<Bf16> a(256), b(128);
  for (int i = 0; i < 256; ++i) a[idx(i)] = Bf16(static_cast<float>(i * 7 % 31 - 15));
  for (int i = 0; i < 128; ++i) b[idx(i)] = Bf16(static_cast<float>(i * 5 % 23 - 11) / 4.0F);
  const Bf16 *da = device(a), *db = device(b);
  float* out = device<float>(128);
  for (const bool transposed : {false, true}) {
    ASSERT_EQ(launch(product_kernel, 1, 32, sizeof(Tiles), nullptr, out, da, db, transposed), cudaSuccess);
    const std::vector<float> got = host(out, 128);
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 8; ++j) {
        const int begin = 1 + j % 2 + 2 * (i / 8);
        auto sum = static_cast<float>(begin);
        for (int k = 0; k < 16; ++k)
          sum += static_cast<float>(a[idx(16 * i + k)]) * static_cast<float>(b[idx(8 * k + j)]);
        EXPECT_EQ(got[idx(8 * i + j)], sum) << i << " " << j << " " << transposed;
      }
  }
}

struct Words {
  float value[4 * 32];
};
template <bool kWait, bool kValid>
void copies_kernel(float* out, const float* in) {
  Words& s = shared_memory<Words>();
  copy_async_16(&s.value[4 * threadIdx.x], in + 4 * threadIdx.x, kValid);
  copy_async_commit();
  if (kWait)
    copy_async_wait<0>();
  else
    copy_async_wait<1>();
  out[threadIdx.x] = s.value[4 * threadIdx.x + 1];
}

TEST_F(EmulatedWarp, CopiesArriveWhenTheyAreWaitedFor) {
  const float* in = device(std::vector<float>(128, 3.0F));
  float* out = device<float>(32);
  const auto run = [&](auto kernel) {
    EXPECT_EQ(launch(kernel, 1, 32, sizeof(Words), nullptr, out, in), cudaSuccess);
    return host(out, 32)[7];
  };
  EXPECT_EQ(run(copies_kernel<true, true>), 3.0F);
  EXPECT_EQ(run(copies_kernel<true, false>), 0.0F);
  EXPECT_TRUE(std::isnan(run(copies_kernel<false, true>)));
}

void alone_kernel(float* out) {
  float d[4] = {};
  if (threadIdx.x < 16) mma_m16n8k16(d, {1, 2, 3, 4}, {5, 6});
  out[threadIdx.x] = d[0];
}
void misaligned_kernel(const float* in, int shift) {
  Words& s = shared_memory<Words>();
  copy_async_16(&s.value[4 * threadIdx.x + static_cast<unsigned>(shift)], in, true);
  copy_async_commit();
  copy_async_wait<0>();
}

TEST_F(EmulatedWarp, MatrixFunctionsNeedTheWholeWarp) {
  float* out = device<float>(32);
  expect_failure([&] { launch(alone_kernel, 1, 32, 0, nullptr, out); }, "before mma");
  EXPECT_EQ(launch(misaligned_kernel, 1, 16, sizeof(Words), nullptr, out, 0), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  expect_failure([&] { launch(misaligned_kernel, 1, 16, sizeof(Words), nullptr, out, 1); }, "not aligned");
}

}  // namespace
}  // namespace emox::test
