// How a head's rows come from qkv into attention's scratch and back: contiguous, padded to whole registers, queries and
// keys rotated to their positions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "runtime/core/error.h"
#include "runtime/cpu/block_product.h"
#include "runtime/ops/layers.h"

namespace emox::cpu {

inline constexpr std::int64_t kStrip = 2 * kLanes;  ///< queries of one strip

struct HeadShape {
  std::int64_t width, stride, head_dim;  ///< of out rows, of qkv rows, of one head
  std::int64_t padded_dim;               ///< of one head's rows in scratch
  float scale;
};

inline HeadShape describe(const TensorView& qkv, int heads) {
  const std::int64_t width = qkv.dim(1) / 3, d = width / heads;
  return {width, qkv.dim(1), d, round_up(d, kLanes), 1.0F / std::sqrt(static_cast<float>(d))};
}

/// The rotary angles of a segment's tokens; no positions: nothing turns.
struct Angles {
  const std::int32_t* positions;
  const float *cos, *sin;  ///< [positions, half]
  std::int64_t half;       ///< of head_dim

  Angles from(std::int64_t token) const { return {positions == nullptr ? nullptr : positions + token, cos, sin, half}; }
};

/// Positions are looked at once a call: they reach into the tables.
inline Angles checked_angles(const char* op, const ops::Rotation& r) {
  if (r.cos.null() || r.positions.numel() == 0) return {nullptr, nullptr, nullptr, 0};
  const auto* at = r.positions.data<std::int32_t>();
  const std::int64_t limit = r.cos.dim(0);
  for (std::int64_t t = 0; t < r.positions.numel(); ++t)
    require<ShapeError>(at[t] >= 0 && at[t] < limit, "[{}] position {} of token {} is beyond the table of {}", op,
                        at[t], t, limit);
  return {at, r.cos.data<float>(), r.sin.data<float>(), r.cos.dim(1)};
}

/// A row (u, v) of two halves -> (u cos - v sin, v cos + u sin); sign -1 turns back.
inline void rotate_row(float* to, const float* from, const Angles& a, std::int64_t token, float sign) {
  const std::int64_t half = a.half;
  const float *c = a.cos + a.positions[token] * half, *s = a.sin + a.positions[token] * half;
  std::int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Lanes u = load(from + i), v = load(from + half + i), ci = load(c + i), si = sign * load(s + i);
    store(to + i, u * ci - v * si);
    store(to + half + i, v * ci + u * si);
  }
  for (; i < half; ++i) {
    const float u = from[i], v = from[half + i], si = sign * s[i];
    to[i] = u * c[i] - v * si;
    to[half + i] = v * c[i] + u * si;
  }
}

/// n rows of one head into contiguous rows of padded_dim, zeros in the padding and in the rows up to `rows`.
inline void pack(const HeadShape& p, float* to, Rows<const float> from, std::int64_t n, std::int64_t rows) {
  for (std::int64_t i = 0; i < n; ++i, to += p.padded_dim) {
    const float* row = from.at + i * from.row;
    std::int64_t d = 0;
    for (; d + kLanes <= p.head_dim; d += kLanes) store(to + d, load(row + d));
    for (; d < p.padded_dim; ++d) to[d] = d < p.head_dim ? row[d] : 0.0F;
  }
  std::fill_n(to, (rows - n) * p.padded_dim, 0.0F);
}

/// The same, and rotated to their positions, those of the first n of `a`.
inline void pack_rotated(const HeadShape& p, float* to, Rows<const float> from, std::int64_t n, std::int64_t rows,
                         const Angles& a) {
  if (a.positions == nullptr) return pack(p, to, from, n, rows);
  for (std::int64_t i = 0; i < n; ++i) {
    rotate_row(to + i * p.padded_dim, from.at + i * from.row, a, i, 1.0F);
    std::fill_n(to + i * p.padded_dim + p.head_dim, p.padded_dim - p.head_dim, 0.0F);
  }
  std::fill_n(to + n * p.padded_dim, (rows - n) * p.padded_dim, 0.0F);
}

/// The first n packed rows to where they belong.
inline void unpack(const HeadShape& p, Rows<float> to, const float* from, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i, from += p.padded_dim) {
    float* row = to.at + i * to.row;
    std::int64_t d = 0;
    for (; d + kLanes <= p.head_dim; d += kLanes) store(row + d, load(from + d));
    for (; d < p.head_dim; ++d) row[d] = from[d];
  }
}

/// The same, and rotated back.
inline void unpack_rotated(const HeadShape& p, Rows<float> to, const float* from, std::int64_t n, const Angles& a) {
  if (a.positions == nullptr) return unpack(p, to, from, n);
  for (std::int64_t i = 0; i < n; ++i) rotate_row(to.at + i * to.row, from + i * p.padded_dim, a, i, -1.0F);
}

/// factor * the first `rows` rows (a multiple of kLanes) of a packed strip, as [padded_dim, kStrip].
inline void transpose_strip(const HeadShape& p, float* to, const float* from, std::int64_t rows, float factor) {
  for (std::int64_t i = 0; i < rows; i += kLanes) {
    for (std::int64_t d = 0; d < p.padded_dim; d += kLanes) {
      Lanes block[kLanes];
      for (std::int64_t j = 0; j < kLanes; ++j) block[j] = load(from + (i + j) * p.padded_dim + d) * factor;
      transpose(block);
      for (std::int64_t j = 0; j < kLanes; ++j) store(to + (d + j) * kStrip + i, block[j]);
    }
  }
}

}  // namespace emox::cpu
