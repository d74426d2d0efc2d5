// Dense products by cuBLASLt, and the kernel that takes those for which the library has no algorithm.
//
// Equal calls must give equal bits. So the library's first proposal for a shape is kept and no algorithm is timed
// against another; and a sum that is cut along K must be put together in a separate step, in f32 (kReductions in
// blas.cpp).
#pragma once

#include <cublasLt.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>

#include "runtime/core/dtype.h"
#include "runtime/cuda/queue.h"
#include "runtime/ops/op_list.h"

namespace emox::cuda {

/// An operand as it lies in memory: row-major, its rows `stride` elements apart.
struct Matrix {
  const void* data = nullptr;
  DType type = DType::F32;
  std::int64_t stride = 0;
};

/// C[m,n] = op(A) op(B) + beta C, where op(X) is X, or its transpose: then A lies as [k,m] and B as [n,k]. A and B have
/// one type, C the same or f32. All arithmetic in f32, never in TF32. With beta = 0, C is not read.
struct Product {
  std::int64_t m = 0, n = 0, k = 0;
  Matrix a;
  bool a_transposed = false;
  Matrix b;
  bool b_transposed = false;
  void* c = nullptr;
  DType c_type = DType::F32;
  std::int64_t c_stride = 0;
  float beta = 0.0F;
};

/// Scratch of a product. An op that makes several, one after the other, gives them the same.
inline constexpr std::size_t kProductWorkspace = std::size_t{32} << 20;

/// Enqueues the product. workspace: kProductWorkspace bytes on the device, aligned to 256.
void product(Queue& queue, ops::Op op, const Product& p, void* workspace);

/// The same by a plain kernel, for any strides and alignment; moderate speed.
void simt_product(Queue& queue, ops::Op op, const Product& p);

/// How the library computes the products that a queue has met.
class MatmulPlans {
 public:
  struct Plan {
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
    cublasLtMatmulAlgo_t algorithm{};
    bool found = false;  ///< false: the library has no algorithm
  };

  MatmulPlans() = default;
  ~MatmulPlans();
  MatmulPlans(const MatmulPlans&) = delete;
  MatmulPlans& operator=(const MatmulPlans&) = delete;

  const Plan& of(cublasLtHandle_t handle, const Product& p);
  std::size_t size() const { return plans_.size(); }

 private:
  using Key = std::array<std::int64_t, 13>;
  std::map<Key, Plan> plans_;
};

}  // namespace emox::cuda
