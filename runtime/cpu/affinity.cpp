#include "runtime/cpu/affinity.h"

#include <sched.h>

#include <bit>
#include <memory>
#include <thread>

#include "runtime/core/idx.h"

namespace emox::cpu {

CoreMask allowed_cores() {
  constexpr int kCores = static_cast<int>(8 * sizeof(CoreMask));
  CoreMask mask{};
  const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> set(CPU_ALLOC(kCores), [](cpu_set_t* s) { CPU_FREE(s); });
  const std::size_t bytes = CPU_ALLOC_SIZE(kCores);
  CPU_ZERO_S(bytes, set.get());
  const bool known = sched_getaffinity(0, bytes, set.get()) == 0;
  const auto all = static_cast<int>(std::thread::hardware_concurrency());
  for (int core = 0; core < kCores; ++core)
    if (known ? CPU_ISSET_S(idx(core), bytes, set.get()) : core < all)
      mask[idx(core / 8)] |= static_cast<std::uint8_t>(1U << (core % 8));
  return mask;
}

int count_of(const CoreMask& mask) {
  int count = 0;
  for (const std::uint8_t byte : mask) count += std::popcount(byte);
  return count;
}

}  // namespace emox::cpu
