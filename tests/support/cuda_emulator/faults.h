// Touches of memory that nothing may touch: device memory outside of device work, memory beside blocks.
#pragma once

namespace emu {

/// While it lives, this OS thread does device work: what it touches of the device's memory is opened for it.
class DeviceWork {
 public:
  explicit DeviceWork(int device);
  ~DeviceWork();
  DeviceWork(const DeviceWork&) = delete;
  DeviceWork& operator=(const DeviceWork&) = delete;
};

}  // namespace emu
