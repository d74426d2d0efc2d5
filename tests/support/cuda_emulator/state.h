// What the emulator's own files share: one lock, one generator of random numbers, errors.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>

#include "tests/support/cuda_emulator/emulator.h"

namespace emu {

/// Held by every call of the API, and while device work runs.
std::recursive_mutex& lock();

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ULL | 1) {}
  std::uint32_t bits() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<std::uint32_t>(state_ * 0x2545F4914F6CDD1DULL >> 32);
  }
  /// Of 0 .. n - 1; 0 where nothing is to be in random order.
  std::uint64_t below(std::uint64_t n) { return options().shuffle ? bits() * n >> 32 : 0; }

 private:
  std::uint64_t state_;
};
Random& random();

/// A mistake that device work makes ends it; whoever synchronises gets cudaErrorLaunchFailure, and so does every later
/// call.
struct LaunchFailure : std::runtime_error {
  using std::runtime_error::runtime_error;
};
void device_failed(const std::string& text);

/// Remembers the code for cudaGetLastError.
cudaError_t answer(cudaError_t code);
/// The same for a call that is wrong by itself; device work goes on.
cudaError_t refuse(cudaError_t code, const std::string& text);
/// Why no call can succeed: no device, or device work that failed.
cudaError_t trouble();
int current_device();
void forget_errors();

std::string at(Where where);

}  // namespace emu
