// Several arrays in the one piece of scratch that an op may ask for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>

#include "runtime/core/idx.h"
#include "runtime/core/tensor.h"
#include "runtime/cuda/queue.h"

namespace emox::cuda {

/// Arrays of the given numbers of elements, each aligned to kTensorAlignment:
///
///   const auto [sums, counts] = scratch_arrays<double, int>(q, columns, rows);
template <typename... T, typename... N>
std::tuple<T*...> scratch_arrays(Queue& q, N... elements) {
  static_assert(sizeof...(T) == sizeof...(N));
  const auto padded = [](std::size_t bytes) {
    return (bytes + kTensorAlignment - 1) / kTensorAlignment * kTensorAlignment;
  };
  auto* at = static_cast<unsigned char*>(q.scratch((padded(idx(elements) * sizeof(T)) + ... + kTensorAlignment)));
  const auto take = [&](std::size_t bytes) {
    unsigned char* const piece = at;
    at += padded(bytes);
    return piece;
  };
  return std::tuple<T*...>{reinterpret_cast<T*>(take(idx(elements) * sizeof(T)))...};  // braces: left to right
}

}  // namespace emox::cuda
