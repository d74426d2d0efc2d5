// Arrays of any shape in .npy files of version 1.0, as the golden cases hold them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace emox::test {

struct Npy {
  std::string type;  ///< as in the header, without the byte order: f4, f8, i4, i8, u1
  std::vector<std::int64_t> shape;
  std::string bytes;
};

/// Throws std::runtime_error "FILE: WHY".
[[noreturn]] void fail_file(const std::filesystem::path& file, const std::string& why);
std::string read_whole_file(const std::filesystem::path& file);

/// Little-endian, C order; anything else throws.
Npy read_npy(const std::filesystem::path& file);
/// The elements of an f4 or f8 array, and of an i4, i8 or u1 array; `file` is for the message.
std::vector<double> reals_of(const std::filesystem::path& file, const Npy& npy);
std::vector<std::int64_t> whole_numbers_of(const std::filesystem::path& file, const Npy& npy);
/// The name that case.json has for an element type: "float32", "int64", ...
std::string type_name(const std::string& type);

}  // namespace emox::test
