// Products of small blocks that lie in scratch memory: no set-up, no tails.
//
// Rows come in groups of kGroup and columns in multiples of kLanes; callers pad their scratch to these. A group of rows
// and two registers of columns is summed in registers, which runs at the processor's full rate once the number of steps
// is a few dozen; a general matrix product needs several hundred rows and columns to get there.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/core/idx.h"
#include "runtime/cpu/lanes.h"

namespace emox::cpu {

/// Rows of one group: 2 kGroup sums and their factors fit the registers (32 with AVX-512, else 16).
inline constexpr std::int64_t kGroup = kLanes == 16 ? 8 : 4;

/// The left factor of a product: element (r, s) lies at at[r * row + s * step].
struct LeftFactor {
  const float* at;
  std::int64_t row, step;
};

/// A matrix whose rows lie `row` floats apart.
template <typename T>
struct Rows {
  T* at;
  std::int64_t row;
};

template <int kRegisters>
void product_tile(Rows<float> c, LeftFactor a, Rows<const float> b, std::int64_t steps, bool add) {
  Lanes sum[kGroup][kRegisters] = {};
  std::int64_t s = 0;
  do {  // with a test before the first step, GCC 12 moves the sums to memory and back
    Lanes right[kRegisters];
    for (int j = 0; j < kRegisters; ++j) right[j] = load(b.at + s * b.row + j * kLanes);
    for (int r = 0; r < kGroup; ++r)
      for (int j = 0; j < kRegisters; ++j) sum[r][j] += a.at[s * a.step + r * a.row] * right[j];
  } while (++s < steps);
  if (add)
    for (int r = 0; r < kGroup; ++r)
      for (int j = 0; j < kRegisters; ++j) sum[r][j] += load(c.at + r * c.row + j * kLanes);
  for (int r = 0; r < kGroup; ++r)
    for (int j = 0; j < kRegisters; ++j) store(c.at + r * c.row + j * kLanes, sum[r][j]);
}

/// C[r, j] = (add ? C[r, j] : 0) + sum over s < steps of a(r, s) B[s, j], for kGroup rows r and `columns` columns j, a
/// multiple of kLanes; steps >= 1.
inline void product_group(Rows<float> c, LeftFactor a, Rows<const float> b, std::int64_t steps, std::int64_t columns,
                          bool add) {
  std::int64_t j = 0;
  for (; j + 2 * kLanes <= columns; j += 2 * kLanes)
    product_tile<2>({c.at + j, c.row}, a, {b.at + j, b.row}, steps, add);
  if (j < columns) product_tile<1>({c.at + j, c.row}, a, {b.at + j, b.row}, steps, add);
}

/// Memory that starts on a cache line and is kept from call to call; contents are what the last user left.
class Scratch {
 public:
  float* floats(std::int64_t n) {
    const std::size_t lines = idx(round_up(n, 16) / 16);
    if (lines > lines_.size()) lines_.resize(lines);
    return lines_.front().values;
  }

 private:
  struct alignas(64) Line {
    float values[16];
  };
  std::vector<Line> lines_ = std::vector<Line>(1);
};

}  // namespace emox::cpu
