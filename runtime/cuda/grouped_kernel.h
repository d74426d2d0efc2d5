// The grouped products of bf16, whatever multiplies a tile: a block takes tiles of all experts one after the other and
// writes C straight from registers, in pairs of neighbouring elements. Against the reads of a tile its writes are few.
// A sum over an expert's rows (Tn) stays whole in one block, so that no order is left open.
#pragma once

#include <device_ptx.h>

#include <cstdint>
#include <type_traits>

#include "runtime/cuda/device.h"
#include "runtime/cuda/grouped_tiles.h"

namespace emox::cuda {

// Of two elements the second may be beyond the row's end. wide: both are there and C allows to write them at once.
__device__ __forceinline__ void store_pair(Bf16* c, float x, float y, float, bool second, bool wide) {
  if (wide) {
    *reinterpret_cast<std::uint32_t*>(c) = pack_bf16(x, y);
    return;
  }
  c[0] = Bf16(x);
  if (second) c[1] = Bf16(y);
}

__device__ __forceinline__ void store_pair(float* c, float x, float y, float beta, bool second, bool wide) {
  if (wide) {
    auto& to = *reinterpret_cast<float2*>(c);
    if (beta != 0.0F) {
      const float2 old = to;
      x += beta * old.x, y += beta * old.y;
    }
    to = float2{x, y};
    return;
  }
  c[0] = beta == 0.0F ? x : x + beta * c[0];
  if (second) c[1] = beta == 0.0F ? y : y + beta * c[1];
}

/// Machine: Shared, Sum, kRows and kColumns of a tile, RowLoader<k> and ColumnLoader<k> of its operands (k: their rows
/// in memory run along the sum), multiply(), add() and each_pair().
template <GroupedKind kKind, typename Machine>
__device__ __forceinline__ void grouped_tiles_of_block(const GroupedProduct& p, const std::int64_t* plan) {
  constexpr bool kTn = kKind == GroupedKind::Tn, kNt = kKind == GroupedKind::Nt;
  constexpr int kRows = Machine::kRows, kColumns = Machine::kColumns;
  using C = std::conditional_t<kTn, float, Bf16>;
  using Rows = typename Machine::template RowLoader<!kTn>;
  using Columns = typename Machine::template ColumnLoader<kNt>;
  auto& s = shared_memory<typename Machine::Shared>();
  const auto *pa = static_cast<const Bf16*>(p.a), *pb = static_cast<const Bf16*>(p.b);
  const bool wide = p.n % 2 == 0 && reinterpret_cast<std::uintptr_t>(p.c) % (2 * sizeof(C)) == 0;
  const std::int64_t tiles = grouped_tiles<kKind>(p, plan, kRows, kColumns);
  for (std::int64_t number = blockIdx.x; number < tiles; number += gridDim.x) {
    const GroupedTile t = grouped_tile<kKind>(p, plan, kRows, kColumns, number);
    const std::int64_t columns = p.n - t.column;
    typename Machine::Sum sum;
    float beta = p.beta;
    C* c = static_cast<C*>(p.c) + t.column;
    if constexpr (kTn) {
      const std::int64_t depth = t.end - t.begin;
      if (depth == 0 && beta == 1.0F) continue;  // nothing is added
      Machine::multiply(s, sum, Rows(pa + t.begin * p.k + t.first, p.k, t.lines, depth),
                        Columns(pb + t.begin * p.n + t.column, p.n, columns, depth), depth);
      c += (t.expert * p.k + t.first) * p.n;
      if (beta != 0.0F && wide && t.lines == kRows && columns >= kColumns) {
        Machine::add(sum, c, p.n, beta);
        beta = 0.0F;
      }
    } else {
      const Bf16* weight = pb + t.expert * p.n * p.k + t.column * (kNt ? p.k : 1);
      Machine::multiply(s, sum, Rows(pa + t.first * p.k, p.k, t.lines, p.k),
                        Columns(weight, kNt ? p.k : p.n, columns, p.k), p.k);
      c += t.first * p.n;
    }
    Machine::each_pair(sum, [&](int row, int column, float x, float y) {
      if (row < t.lines && column < columns) store_pair(c + row * p.n + column, x, y, beta, column + 1 < columns, wide);
    });
  }
}

/// One of three kernels, by kind.
template <typename Kernel>
Kernel of_kind(GroupedKind kind, Kernel nt, Kernel nn, Kernel tn) {
  return kind == GroupedKind::Nt ? nt : kind == GroupedKind::Nn ? nn : tn;
}

}  // namespace emox::cuda
