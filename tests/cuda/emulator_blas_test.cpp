// The fake cuBLASLt: products against plain loops, and calls that are wrong.
#include <cublasLt.h>

#include <cmath>
#include <cstdlib>
#include <random>

#include "runtime/core/bf16.h"
#include "tests/cuda/emulator_testing.h"

namespace emox::test {
namespace {

constexpr std::int64_t kM = 13, kN = 10, kK = 70, kWorkspace = 4096;

/// D[13,10] = 2 op(A) op(B) + beta C, column-major, with room between columns. A test changes one thing.
struct Call {
  cublasOperation_t ta = CUBLAS_OP_N, tb = CUBLAS_OP_N;
  bool low = false, low_out = false;  // bf16
  float beta = 0.5F;
  std::int64_t lda_less = 0, k_of_b = kK, other_n = kN;
  std::int64_t d_at = 0, workspace = kWorkspace;  // bytes
  bool d_is_a = false, destroyed = false, a_on_host = false;
  unsigned alignment = 256;
};

class EmulatedBlas : public EmulatorTest {
 protected:
  EmulatedBlas() { EXPECT_EQ(cublasLtCreate(&handle_), CUBLAS_STATUS_SUCCESS); }
  ~EmulatedBlas() override { EXPECT_EQ(cublasLtDestroy(handle_), CUBLAS_STATUS_SUCCESS); }

  static std::vector<float> values(std::int64_t n, unsigned seed) {
    std::mt19937 generator(seed);
    std::vector<float> v(idx(n));
    for (float& x : v) x = static_cast<float>(static_cast<int>(generator() % 31) - 15) / 8.0F;
    return v;
  }
  static std::vector<float> wide(const std::vector<Bf16>& v) { return {v.begin(), v.end()}; }
  void* up(const std::vector<float>& v, bool low) {
    return low ? static_cast<void*>(device(std::vector<Bf16>(v.begin(), v.end()))) : device(v);
  }

  cublasStatus_t run(const Call& c) {
    const std::int64_t ra = c.ta == CUBLAS_OP_N ? kM : kK, rb = c.tb == CUBLAS_OP_N ? kK : kN;
    const std::int64_t ca = kM + kK - ra, cb = kK + kN - rb, lda = ra + 3, ldb = rb + 2, ldd = kM + 1;
    const std::vector<float> a = values(lda * ca, 1), b = values(ldb * cb, 2), base = values(ldd * kN, 3);
    void *da = up(a, c.low), *db = up(b, c.low), *dd = up(base, c.low_out), *space = device<char>(kWorkspace);
    const cudaDataType in = c.low ? CUDA_R_16BF : CUDA_R_32F, out = c.low_out ? CUDA_R_16BF : CUDA_R_32F;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t la, lb, ld;
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &c.ta, sizeof c.ta);
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSB, &c.tb, sizeof c.tb);
    const auto u = [](std::int64_t n) { return static_cast<std::uint64_t>(n); };
    cublasLtMatrixLayoutCreate(&la, in, u(ra), u(ca), lda - c.lda_less);
    cublasLtMatrixLayoutCreate(&lb, in, u(c.tb == CUBLAS_OP_N ? c.k_of_b : rb), u(cb), ldb);
    cublasLtMatrixLayoutCreate(&ld, out, u(kM), u(kN), ldd);
    cublasLtMatmulPreferenceCreate(&preference);
    const std::uint64_t most = kWorkspace;
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most, sizeof most);
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &c.alignment, 4);
    cublasLtMatmulHeuristicResult_t best{};
    int found = 0;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle_, desc, la, lb, ld, ld, preference, 1, &best, &found);
    if (status == CUBLAS_STATUS_SUCCESS) {
      EXPECT_EQ(found, 1);
      if (c.other_n != kN) {  // the algorithm is of another problem, then
        const std::uint64_t n = u(c.other_n);
        cublasLtMatrixLayoutSetAttribute(ld, CUBLASLT_MATRIX_LAYOUT_COLS, &n, sizeof n);
        cublasLtMatrixLayoutSetAttribute(lb, CUBLASLT_MATRIX_LAYOUT_COLS, &n, sizeof n);
      }
      if (c.destroyed) cublasLtMatmulDescDestroy(desc);
      const float alpha = 2;
      void* const to = c.d_is_a ? da : static_cast<char*>(dd) + c.d_at;
      status = cublasLtMatmul(handle_, desc, &alpha, c.a_on_host ? a.data() : da, la, db, lb, &c.beta, to, ld, to, ld,
                              &best.algo, space, idx(c.workspace), nullptr);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
      const std::vector<float> got = c.low_out ? wide(host(static_cast<const Bf16*>(dd), ldd * kN))
                                               : host(static_cast<const float*>(dd), ldd * kN);
      for (std::int64_t j = 0; j < kN; ++j)
        for (std::int64_t i = 0; i < kM; ++i) {
          float sum = 0;
          for (std::int64_t k = 0; k < kK; ++k)
            sum += a[idx(c.ta == CUBLAS_OP_N ? k * lda + i : i * lda + k)] *
                   b[idx(c.tb == CUBLAS_OP_N ? j * ldb + k : k * ldb + j)];
          const float want = 2 * sum + c.beta * base[idx(j * ldd + i)];
          EXPECT_EQ(got[idx(j * ldd + i)], c.low_out ? static_cast<float>(Bf16(want)) : want);
        }
      EXPECT_EQ(got[kM], base[kM]);  // between columns nothing is written
      EXPECT_EQ(host(static_cast<const unsigned char*>(space), 1)[0], 0xff);
    }
    if (!c.destroyed) cublasLtMatmulDescDestroy(desc);
    for (cublasLtMatrixLayout_t l : {la, lb, ld}) EXPECT_EQ(cublasLtMatrixLayoutDestroy(l), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasLtMatmulPreferenceDestroy(preference), CUBLAS_STATUS_SUCCESS);
    return status;
  }

  void expect_wrong(const Call& c, const std::string& text) {
    EXPECT_EQ(run(c), CUBLAS_STATUS_INVALID_VALUE);
    EXPECT_NE(emu::last_report().find(text), std::string::npos) << emu::last_report();
  }

  cublasLtHandle_t handle_ = nullptr;
};

TEST_F(EmulatedBlas, Multiplies) {
  for (const auto ta : {CUBLAS_OP_N, CUBLAS_OP_T})
    for (const auto tb : {CUBLAS_OP_N, CUBLAS_OP_T})
      for (const int types : {0, 1, 3})
        for (const float beta : {0.0F, 0.5F})
          EXPECT_EQ(run({.ta = ta, .tb = tb, .low = types > 0, .low_out = types == 3, .beta = beta}),
                    CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(emu::last_report(), "");
}

TEST_F(EmulatedBlas, RefusesWhatIsWrong) {
  expect_wrong({.lda_less = 4}, "leading dimension of A is 12, but it has 13 rows");
  expect_wrong({.k_of_b = kK - 1}, "op(B) 69 x 10");
  expect_wrong({.other_n = kN - 1}, "chosen for another problem");
  expect_wrong({.d_at = 512, .alignment = 16}, "C needs");
  expect_wrong({.d_at = 4}, "not aligned to 256 bytes");
  expect_wrong({.workspace = kWorkspace - 1}, "a workspace of 4095 bytes");
  expect_wrong({.d_is_a = true}, "D overlaps A");
  expect_wrong({.destroyed = true}, "null or destroyed");
  expect_wrong({.a_on_host = true}, "A needs");
  EXPECT_EQ(run({.low_out = true}), CUBLAS_STATUS_NOT_SUPPORTED);
  emu::options().blas_alignment = 16;
  EXPECT_EQ(run({.alignment = 8}), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(run({.alignment = 16}), CUBLAS_STATUS_SUCCESS);
}

}  // namespace
}  // namespace emox::test
