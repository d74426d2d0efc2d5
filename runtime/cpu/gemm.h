// The general matrix product that the ops are made of.
#pragma once

#include <cstdint>

namespace emox::cpu {

/// C[m,n] = op(A) op(B) + beta C, row-major, rows lda, ldb, ldc floats apart; ta, tb: 'N', or 'T' for a transposed
/// operand. With beta = 0, C is not read. On all threads of the caller's, on one inside a parallel region.
void sgemm(char ta, char tb, std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t lda,
           const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc);

}  // namespace emox::cpu
