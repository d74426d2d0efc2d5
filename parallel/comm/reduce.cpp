#include "parallel/comm/reduce.h"

#include <algorithm>
#include <array>

#include "runtime/core/error.h"

namespace emox {
namespace {

// Small enough to stay in the first-level cache while all parts stream past.
constexpr std::int64_t kBlock = 1024;

template <typename T>
void combine(T* acc, const T* part, std::int64_t n, ReduceOp op) {
  if (op == ReduceOp::Sum) {
    for (std::int64_t i = 0; i < n; ++i) acc[i] += part[i];
  } else {
    for (std::int64_t i = 0; i < n; ++i) acc[i] = std::max(acc[i], part[i]);
  }
}

template <typename T>
void reduce(std::span<const void* const> parts, std::span<void* const> outs, std::int64_t n, ReduceOp op) {
  std::array<T, kBlock> acc;
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    const std::int64_t count = std::min(kBlock, n - begin);
    std::copy_n(static_cast<const T*>(parts[0]) + begin, count, acc.data());
    for (const void* part : parts.subspan(1)) combine(acc.data(), static_cast<const T*>(part) + begin, count, op);
    for (void* out : outs) std::copy_n(acc.data(), count, static_cast<T*>(out) + begin);
  }
}

}  // namespace

void reduce_in_rank_order(std::span<const void* const> parts, std::span<void* const> outs, std::int64_t n, DType dtype,
                          ReduceOp op) {
  switch (dtype) {
    case DType::F32:
      return reduce<float>(parts, outs, n, op);
    case DType::F64:
      return reduce<double>(parts, outs, n, op);
    case DType::I32:
      return reduce<std::int32_t>(parts, outs, n, op);
    case DType::I64:
      return reduce<std::int64_t>(parts, outs, n, op);
    case DType::U8:
    case DType::BF16:
      break;
  }
  fail<CommError>("no sum of {} over ranks", name_of(dtype));
}

}  // namespace emox
