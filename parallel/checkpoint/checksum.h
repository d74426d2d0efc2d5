// XXH3-128 of memory and of files, as 32 hexadecimal digits.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>

namespace emox {

std::string checksum_of(const void* data, std::size_t bytes);
inline std::string checksum_of(const std::string& text) { return checksum_of(text.data(), text.size()); }

/// Of a whole file, read in pieces. IoError when it cannot be read.
std::string checksum_of_file(const std::filesystem::path& path);

}  // namespace emox
