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

/// An ordered queue of work on a device. On the CPU work runs in the caller, so the queue is always empty.
struct Stream {
  Device device;
  void* handle = nullptr;
  friend bool operator==(const Stream&, const Stream&) = default;
};

}  // namespace emox
