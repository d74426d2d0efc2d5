#include "runtime/cuda/blas.h"

#include <algorithm>
#include <cstdint>

#include "runtime/core/error.h"

namespace emox::cuda {
namespace {

// What the heuristic may propose for sums cut along K: parts in f32 in the workspace, added in a separate step of fixed
// order (COMPUTE_TYPE), besides no cut at all (NONE, which is 0 and always allowed). Not INPLACE, whose parts meet in
// the output one after the other, and not OUTPUT_TYPE, which would round the parts to bf16.
constexpr std::uint32_t kReductions = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;

void check_blas(cublasStatus_t status, const char* what) {
  require(status == CUBLAS_STATUS_SUCCESS, "cuBLASLt: {} failed with status {}", what, static_cast<int>(status));
}

cudaDataType_t blas_type(DType type) { return type == DType::BF16 ? CUDA_R_16BF : CUDA_R_32F; }

// Bytes to which the address is aligned, as far as algorithms can care.
std::uint32_t alignment_of(const void* at) {
  constexpr std::uintptr_t kMost = 256;
  const auto address = reinterpret_cast<std::uintptr_t>(at) | kMost;
  return static_cast<std::uint32_t>(address & (~address + 1));
}

template <typename T>
void set_blas(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  check_blas(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof value), "an attribute of a product");
}

template <typename T>
void set_blas(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
  check_blas(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
             "a preference of a product");
}

// The library's matrices are column-major: a row-major X[rows,columns] is its X^T, [columns,rows].
cublasLtMatrixLayout_t blas_layout(DType type, std::int64_t rows, std::int64_t columns, std::int64_t stride) {
  cublasLtMatrixLayout_t made = nullptr;
  check_blas(cublasLtMatrixLayoutCreate(&made, blas_type(type), static_cast<std::uint64_t>(columns),
                                        static_cast<std::uint64_t>(rows), stride),
             "a matrix layout");
  return made;
}

// Row-major C = op(A) op(B) is column-major C^T = op(B)^T op(A)^T. Since the library sees B^T and A^T in their places,
// its first operand is B, its second A, each transposed where ours is.
MatmulPlans::Plan make_plan(cublasLtHandle_t handle, const Product& p) {
  MatmulPlans::Plan plan;
  check_blas(cublasLtMatmulDescCreate(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a product's description");
  const auto transpose = [](bool yes) { return static_cast<std::int32_t>(yes ? CUBLAS_OP_T : CUBLAS_OP_N); };
  set_blas(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, transpose(p.b_transposed));
  set_blas(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, transpose(p.a_transposed));
  plan.a = p.b_transposed ? blas_layout(p.b.type, p.n, p.k, p.b.stride) : blas_layout(p.b.type, p.k, p.n, p.b.stride);
  plan.b = p.a_transposed ? blas_layout(p.a.type, p.k, p.m, p.a.stride) : blas_layout(p.a.type, p.m, p.k, p.a.stride);
  plan.c = blas_layout(p.c_type, p.m, p.n, p.c_stride);

  cublasLtMatmulPreference_t preference = nullptr;
  check_blas(cublasLtMatmulPreferenceCreate(&preference), "preferences");
  set_blas(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{kProductWorkspace});
  set_blas(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, kReductions);
  set_blas(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(p.b.data));
  set_blas(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(p.a.data));
  set_blas(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(p.c));
  set_blas(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(p.c));
  cublasLtMatmulHeuristicResult_t best{};
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, plan.operation, plan.a, plan.b, plan.c, plan.c,
                                                               preference, 1, &best, &count);
  check_blas(cublasLtMatmulPreferenceDestroy(preference), "preferences");
  // Only that there is none is an answer; anything else is a mistake, and would hide as a slow run.
  if (status != CUBLAS_STATUS_NOT_SUPPORTED) check_blas(status, "the choice of an algorithm");
  plan.found = status == CUBLAS_STATUS_SUCCESS && count > 0 && best.state == CUBLAS_STATUS_SUCCESS;
  plan.algorithm = best.algo;
  return plan;
}

}  // namespace

MatmulPlans::~MatmulPlans() {
  for (auto& [key, plan] : plans_) {
    cublasLtMatmulDescDestroy(plan.operation);
    for (cublasLtMatrixLayout_t matrix : {plan.a, plan.b, plan.c}) cublasLtMatrixLayoutDestroy(matrix);
  }
}

const MatmulPlans::Plan& MatmulPlans::of(cublasLtHandle_t handle, const Product& p) {
  const std::int64_t kinds = static_cast<std::int64_t>(p.a_transposed) |
                             static_cast<std::int64_t>(p.b_transposed) << 1 |
                             static_cast<std::int64_t>(p.beta == 0.0F) << 2;
  const Key key{p.m,
                p.n,
                p.k,
                kinds,
                static_cast<std::int64_t>(p.a.type),
                static_cast<std::int64_t>(p.b.type),
                static_cast<std::int64_t>(p.c_type),
                p.a.stride,
                p.b.stride,
                p.c_stride,
                alignment_of(p.a.data),
                alignment_of(p.b.data),
                alignment_of(p.c)};
  const auto at = plans_.find(key);
  if (at != plans_.end()) return at->second;
  return plans_.emplace(key, make_plan(handle, p)).first->second;
}

void product(Queue& queue, ops::Op op, const Product& p, void* workspace) {
  if (p.m == 0 || p.n == 0) return;
  if (p.k == 0) return simt_product(queue, op, p);  // an empty sum: beta C remains, which the library does not compute
  const MatmulPlans::Plan& plan = queue.plans().of(queue.blas(), p);
  if (!plan.found) {
    queue.count_fallback();
    return simt_product(queue, op, p);
  }
  queue.count_launch(op);
  constexpr float kOne = 1.0F;
  check_blas(cublasLtMatmul(queue.blas(), plan.operation, &kOne, p.b.data, plan.a, p.a.data, plan.b, &p.beta, p.c,
                            plan.c, p.c, plan.c, &plan.algorithm, workspace, kProductWorkspace, queue.handle()),
             ops::name_of(op).data());
}

}  // namespace emox::cuda
