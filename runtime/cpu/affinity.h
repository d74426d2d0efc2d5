// The cores that the system lets this process use: a launcher or a job scheduler may bind it to a few of the machine's.
#pragma once

#include <array>
#include <cstdint>

namespace emox::cpu {

/// A bit a core; those beyond its size are not known.
using CoreMask = std::array<std::uint8_t, 512>;
CoreMask allowed_cores();
int count_of(const CoreMask& mask);

}  // namespace emox::cpu
