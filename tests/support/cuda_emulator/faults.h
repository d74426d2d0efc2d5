// Touches of memory that nothing may touch: device memory outside of device work, memory beside blocks.
#pragma once

namespace emu {

/// Prepares the calling OS thread. From the first device memory on.
void watch_faults();

/// While it lives, this OS thread does device work: what it touches of the device's memory is opened for it.
class DeviceWork {
 public:
  explicit DeviceWork(int device);
  ~DeviceWork();
  DeviceWork(const DeviceWork&) = delete;
  DeviceWork& operator=(const DeviceWork&) = delete;
};

/// Inside of DeviceWork: work of another device for as long as it lives.
class PeerWork {
 public:
  explicit PeerWork(int device);
  ~PeerWork();
  PeerWork(const PeerWork&) = delete;
  PeerWork& operator=(const PeerWork&) = delete;

 private:
  int before_;
};

}  // namespace emu
