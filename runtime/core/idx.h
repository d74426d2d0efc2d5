// Signed sizes and indices (rows, ranks, experts: -1 has a meaning, differences do not wrap) where the standard library
// takes unsigned ones.
#pragma once

#include <cstddef>
#include <type_traits>

namespace emox {

/// `value`, an integer or an enumerator, as what a container's size, its index and a count of bytes are. Not negative:
/// no check, as with operator[].
template <typename T>
requires(std::is_integral_v<T> || std::is_enum_v<T>) constexpr std::size_t idx(T value) {
  return static_cast<std::size_t>(value);
}

}  // namespace emox
