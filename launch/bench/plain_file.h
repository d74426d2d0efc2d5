// What the file system gives without a checkpoint's structure: plain files, for benchmarks to compare with.
#pragma once

#include <filesystem>

#include "runtime/core/tensor.h"

namespace emox {

/// Seconds to write the memory into a new file by large write(2) calls and to sync it. IoError when that fails.
double write_plain_file(const std::filesystem::path& path, const TensorView& memory);
/// Seconds to read the file into the memory, as many bytes as that has, by large read(2) calls.
double read_plain_file(const std::filesystem::path& path, const TensorView& memory);
/// Removes a file or a tree and waits until the file system is at rest: freeing gigabytes (and telling the device so)
/// takes seconds that would otherwise be counted to whatever is written next.
void remove_and_settle(const std::filesystem::path& path);
/// Asks the system to forget what it has cached of the file, so that reading it means the storage. The file must have
/// been synced.
void drop_from_cache(const std::filesystem::path& path);

}  // namespace emox
