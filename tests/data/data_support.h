// Helpers of the tests in this folder.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/files/files.h"
#include "tests/support/support.h"

namespace emox::test {

/// Passes if the call throws an E whose message holds every one of the parts.
template <typename E, typename F>
::testing::AssertionResult throws_with(F&& call, std::initializer_list<std::string_view> parts) {
  try {
    call();
  } catch (const E& e) {
    for (const std::string_view part : parts) {
      if (e.message().find(part) == std::string::npos) {
        return ::testing::AssertionFailure() << "the message does not say '" << part << "': " << e.message();
      }
    }
    return ::testing::AssertionSuccess();
  } catch (const std::exception& e) {
    return ::testing::AssertionFailure() << "another exception: " << e.what();
  }
  return ::testing::AssertionFailure() << "nothing was thrown";
}

inline void write_bytes(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

inline std::string read_bytes(const std::filesystem::path& path) { return try_read_text(path).text; }

/// Words in a pseudo-random order, other ones for every number: texts that have no span in common.
inline std::string made_text(int number, std::size_t bytes) {
  std::uint64_t state = static_cast<std::uint64_t>(number) * 0x9E3779B97F4A7C15 + 1;
  std::string text = fmt::format("{:06}", number);
  while (text.size() < bytes) {
    state = state * 6364136223846793005 + 1442695040888963407;
    text += fmt::format(" {:x}", state >> 48);
  }
  return text.substr(0, bytes);
}

/// The values as raw little-endian memory.
template <typename T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

/// An .npy file as NumPy writes it, with any header text.
inline std::string npy_bytes(int major, const std::string& dictionary, const std::string& data) {
  std::string file = "\x93NUMPY";
  file += static_cast<char>(major);
  file += '\0';
  const auto length = static_cast<std::uint32_t>(dictionary.size() + 1);
  for (int i = 0; i < (major == 1 ? 2 : 4); ++i) file += static_cast<char>((length >> (8 * i)) & 0xFF);
  return file + dictionary + "\n" + data;
}

inline std::string header(const std::string& type, const std::string& shape, const std::string& order = "False") {
  return "{'descr': '" + type + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }";
}

}  // namespace emox::test
