// What tests, and the fakes of CUDA's libraries, ask the emulator.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace emu {

struct Options {
  std::uint64_t seed = 1;                     ///< EMOX_EMULATOR_SEED
  int devices = 1;                            ///< EMOX_EMULATOR_DEVICES; 0: cudaErrorNoDevice
  std::size_t memory = std::size_t{8} << 30;  ///< EMOX_EMULATOR_MEMORY, bytes of each device
  int driver = CUDART_VERSION;                ///< EMOX_EMULATOR_DRIVER; 0: there is none
  bool shuffle = true;                        ///< threads, blocks and streams in random order
  unsigned blas_alignment = 1;                ///< cuBLASLt has no algorithm for operands aligned to less
};
/// From the environment at first; a test may change them.
Options& options();

/// What was last seen to be wrong, where and how; empty: nothing since the start, or since reset().
std::string last_report();
/// After a planted mistake: forgets pending work, errors and the report, and begins again with options().seed. What was
/// allocated stays.
void reset();

/// From here to the end of the live device allocation that holds p; 0: there is none.
std::size_t device_bytes_at(const void* p);
/// The same for pinned host memory.
std::size_t pinned_bytes_at(const void* p);
/// Device allocations that live.
std::size_t allocations();
/// Pieces of work that streams hold back.
std::size_t pending();
/// Times that a thread of a kernel gave way to another.
std::uint64_t switches();
int open_ranges();  ///< of nvtx, not closed yet

/// Keeps the text for last_report(), and prints it.
void report(const std::string& text);

}  // namespace emu
