// One input of the manifest fuzzer: bytes become a manifest, which is parsed and, where it passes, loaded from.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emox::test {

/// What became of this process's inputs.
struct FuzzCounts {
  std::int64_t refused = 0;     ///< by parse_manifest
  std::int64_t accepted = 0;    ///< by parse_manifest; a quarter of those that differ from a good one is loaded from
  std::int64_t loaded = 0;      ///< load_checkpoint filled every piece
  std::int64_t unloadable = 0;  ///< load_checkpoint refused
};
FuzzCounts fuzz_counts();

}  // namespace emox::test

/// What libFuzzer calls, a test too. An exception other than emox::Error leaves it; a manifest that was accepted and
/// does not survive being written and read again is a std::logic_error.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
