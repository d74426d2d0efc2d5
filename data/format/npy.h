// NumPy's .npy files, one-dimensional arrays of integers only (format versions 1.0 and 2.0).
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/format/stored_file.h"

namespace emox {

/// The integer types that token files and document indices use, all little-endian.
enum class NpyType { U2, U4, I4, I8 };
std::size_t size_of(NpyType type);
/// "<u2", "<u4", "<i4", "<i8".
const char* name_of(NpyType type);

struct NpyHeader {
  NpyType type = NpyType::U2;
  std::int64_t count = 0;  ///< elements
  std::size_t offset = 0;  ///< where the first element begins, in bytes
};

/// True if the bytes begin with the magic string of .npy.
bool is_npy(std::span<const std::byte> file);

/// As many bytes of a file's begin as its header can be looked for in.
inline constexpr std::int64_t kNpyHead = 1 << 16;

/// Reads the header of a file of `bytes` bytes from its first ones (kNpyHead, or all); `name` is for the messages.
/// Throws UsageError if the header is damaged, of an unknown version, not one-dimensional, big-endian, of another
/// element type, or promises other than what the file holds.
NpyHeader parse_npy_header(std::span<const std::byte> head, std::int64_t bytes, const std::string& name);
/// The same of an open file. Nothing if it does not begin as .npy does.
std::optional<NpyHeader> read_npy_header(const StoredFile& file);

/// Writes a version 1.0 file, whole or not at all. Throws IoError.
void write_npy(const std::filesystem::path& path, std::span<const std::uint16_t> values);
void write_npy(const std::filesystem::path& path, std::span<const std::uint32_t> values);
void write_npy(const std::filesystem::path& path, std::span<const std::int64_t> values);

/// The elements of `from`, as many as fit into it whole, to `to`.
void widen(std::span<const std::byte> from, NpyType type, std::int64_t* to);
/// Elements [begin, begin + count) of an array that begins at byte `offset`.
std::vector<std::int64_t> read_integers(const StoredFile& file, NpyType type, std::int64_t offset, std::int64_t begin,
                                        std::int64_t count);
/// Reads an array of any of the four types. Throws UsageError as above, or if the file is missing.
std::vector<std::int64_t> read_npy_integers(const std::filesystem::path& path);

}  // namespace emox
