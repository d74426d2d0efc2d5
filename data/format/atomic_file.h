// Files that are either whole or absent.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>

namespace emox {

/// Writes the parts one after another to a temporary name beside `path`, flushes them to the disk and renames the file
/// into place: a reader sees the old content, or none, or all of the new. Throws IoError naming the path and the cause.
void write_file_atomically(const std::filesystem::path& path, std::span<const std::span<const std::byte>> parts);
void write_file_atomically(const std::filesystem::path& path, std::string_view text);

/// Flushes a directory's entries to the disk, so that a rename inside it survives a power loss. Throws IoError.
void flush_directory(const std::filesystem::path& directory);

}  // namespace emox
