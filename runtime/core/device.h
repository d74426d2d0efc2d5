// Where tensors live and work runs: small values, compared by content.
#pragma once

#include <cstdint>

namespace emox {

enum class DeviceType : std::uint8_t { Cpu, Cuda };

struct Device {
  DeviceType type = DeviceType::Cpu;
  int index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

}  // namespace emox
