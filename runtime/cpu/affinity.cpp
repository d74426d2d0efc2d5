#include "runtime/cpu/affinity.h"

#include <sched.h>

#include <bit>
#include <cctype>
#include <cstdio>
#include <fstream>
#include <memory>
#include <sstream>
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

CoreMask cores_of_list(const std::string& list) {
  CoreMask mask{};
  std::istringstream in(list);
  for (std::string part; std::getline(in, part, ',');) {
    int first = 0, last = 0;
    char rest = 0;
    const int read = std::sscanf(part.c_str(), "%d-%d %c", &first, &last, &rest);
    if (read == 1 && std::sscanf(part.c_str(), "%d %c", &first, &rest) == 1)
      last = first;
    else if (read != 2)
      return {};
    if (first < 0 || last < first || last >= static_cast<int>(8 * mask.size())) return {};
    for (int core = first; core <= last; ++core) mask[idx(core / 8)] |= static_cast<std::uint8_t>(1U << (core % 8));
  }
  return mask;
}

std::string list_of(const CoreMask& mask) {
  const auto has = [&](std::size_t core) { return core < 8 * mask.size() && (mask[core / 8] >> (core % 8) & 1) != 0; };
  std::string text;
  for (std::size_t core = 0; core < 8 * mask.size(); ++core) {
    if (!has(core)) continue;
    std::size_t last = core;
    while (has(last + 1)) ++last;
    if (!text.empty()) text += ',';
    text += std::to_string(core);
    if (last != core) text.append("-").append(std::to_string(last));
    core = last;
  }
  return text;
}

CoreMask cores_near(std::string pci_address, const std::string& devices) {
  for (char& c : pci_address) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  std::ifstream in(devices + "/" + pci_address + "/local_cpulist");
  std::string list;
  std::getline(in, list);
  return cores_of_list(list);
}

int stay_on(const CoreMask& near) {
  CoreMask both = allowed_cores();
  for (std::size_t i = 0; i < both.size(); ++i) both[i] &= near[i];
  const int count = count_of(both);
  if (count == 0) return 0;
  constexpr int kCores = static_cast<int>(8 * sizeof(CoreMask));
  const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> set(CPU_ALLOC(kCores), [](cpu_set_t* s) { CPU_FREE(s); });
  const std::size_t bytes = CPU_ALLOC_SIZE(kCores);
  CPU_ZERO_S(bytes, set.get());
  for (int core = 0; core < kCores; ++core)
    if ((both[idx(core / 8)] >> (core % 8) & 1) != 0) CPU_SET_S(idx(core), bytes, set.get());
  return sched_setaffinity(0, bytes, set.get()) == 0 ? count : 0;
}

}  // namespace emox::cpu
