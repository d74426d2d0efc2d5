// The extents of a tensor: up to four, row-major, the last one contiguous.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "runtime/core/idx.h"

namespace emox {

class Shape {
 public:
  static constexpr int kMaxRank = 4;
  Shape() = default;
  Shape(std::initializer_list<std::int64_t> dims);

  int rank() const { return rank_; }
  std::int64_t operator[](int i) const { return dims_[idx(i)]; }
  /// Number of elements; 1 for rank 0.
  std::int64_t numel() const;
  /// The shape without its first extent.
  Shape tail() const;
  /// This shape with another first extent.
  Shape with_rows(std::int64_t rows) const;
  std::string str() const;
  friend bool operator==(const Shape&, const Shape&) = default;

 private:
  std::array<std::int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

}  // namespace emox
