// Matrices of the fake cuBLASLt.
#pragma once

#include <cublasLt.h>

#include <cstdint>

namespace emu {

struct Matrix {
  std::uint64_t mark = 0;
  std::int64_t rows = 0, cols = 0, ld = 0;
  int type = CUDA_R_32F, order = CUBLASLT_ORDER_COL, batch = 1;
  std::int64_t step = 0;  ///< from one matrix of the batch to the next

  std::int64_t size() const { return type == CUDA_R_16BF ? 2 : 4; }
  /// Elements that lie side by side; how often.
  std::int64_t length() const { return order == CUBLASLT_ORDER_COL ? rows : cols; }
  std::int64_t lines() const { return order == CUBLASLT_ORDER_COL ? cols : rows; }
  std::int64_t extent() const { return (lines() - 1) * ld + length(); }
  std::int64_t all_bytes() const { return ((batch - 1) * step + extent()) * size(); }
};

/// Whether some byte belongs to both; two parts of the rows of one larger matrix do not overlap.
bool overlap(const Matrix& a, const void* at_a, const Matrix& b, const void* at_b);

struct Operand {
  Matrix matrix;
  const void* data = nullptr;
  bool transposed = false;
};
/// D = alpha op(A) op(B) + beta C, f32 sums in the order of k; C is not read when beta is 0.
void multiply(const Operand& a, const Operand& b, const Operand& c, const Matrix& d, void* to, float alpha, float beta);

}  // namespace emu
