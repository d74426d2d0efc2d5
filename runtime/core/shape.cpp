#include "runtime/core/shape.h"

#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {

Shape::Shape(std::initializer_list<std::int64_t> dims) {
  require<ShapeError>(dims.size() <= kMaxRank, "a shape has at most {} extents, got {}", kMaxRank, dims.size());
  for (std::int64_t d : dims) {
    require<ShapeError>(d >= 0, "extent {} of a shape is {}; extents are not negative", rank_, d);
    dims_[idx(rank_++)] = d;
  }
}

std::int64_t Shape::numel() const {
  std::int64_t n = 1;
  for (int i = 0; i < rank_; ++i) n *= (*this)[i];
  return n;
}

Shape Shape::tail() const {
  require<ShapeError>(rank_ > 0, "a shape of rank 0 has no rows");
  Shape s;
  for (int i = 1; i < rank_; ++i) s.dims_[idx(s.rank_++)] = (*this)[i];
  return s;
}

Shape Shape::with_rows(std::int64_t rows) const {
  require<ShapeError>(rank_ > 0, "a shape of rank 0 has no rows");
  Shape s = *this;
  s.dims_[0] = rows;
  return s;
}

std::string Shape::str() const {
  std::string s = "[";
  for (int i = 0; i < rank_; ++i) s += (i ? ", " : "") + std::to_string((*this)[i]);
  return s + "]";
}

}  // namespace emox
