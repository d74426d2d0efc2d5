// The program with a device.
#pragma once

#include <cstdlib>
#include <string>

namespace emox::test {

/// EMOX_PROGRAM, where tests run on a real device; else the one over the emulator.
inline std::string device_program() {
  const char* named = std::getenv("EMOX_PROGRAM");
  return named != nullptr ? named : EMOX_EMULATED;
}

}  // namespace emox::test
