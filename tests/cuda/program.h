// The program with a device.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "runtime/core/accelerator.h"

namespace emox::test {

/// EMOX_PROGRAM, where tests run on a real device; else the one over the emulator.
inline std::string device_program() {
  const char* named = std::getenv("EMOX_PROGRAM");
  return named != nullptr ? named : EMOX_EMULATED;
}

/// Whether this machine has fewer devices. An emulated one never has: there, too few fail the test, which would look
/// skipped and be missed.
inline bool too_few_devices(int needed) {
  const bool few = cuda::accelerator()->count() < needed;
  EXPECT_TRUE(!few || std::getenv("EMOX_PROGRAM") != nullptr)
      << "start emulated tests with EMOX_EMULATOR_DEVICES=8: this one needs " << needed;
  return few;
}

}  // namespace emox::test
