#include "parallel/checkpoint/shard_writer.h"

#include <chrono>

#include "parallel/checkpoint/checksum.h"
#include "parallel/checkpoint/hdf5_file.h"
#include "runtime/core/error.h"
#include "runtime/files/files.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Calls `before` with every stretch and writes it. Returns where their elements are in the file.
template <typename Before>
std::vector<std::int64_t> write_datasets(const fs::path& path, std::span<const Stretch> stretches,
                                         const Before& before) {
  std::error_code error;  // of many ranks one makes it; its name is synced once, not by all (saver.cpp)
  fs::create_directories(path.parent_path(), error);
  require<IoError>(!error, "cannot make the directory {}: {}", path.parent_path().string(), error.message());
  Hdf5File file = Hdf5File::create(path);
  std::vector<std::int64_t> offsets;
  for (const Stretch& s : stretches) {
    before(s);
    offsets.push_back(file.write(s.entry, s.blocks));
  }
  file.close();
  return offsets;
}

}  // namespace

WrittenShard write_shard(const fs::path& directory, const std::string& file_name, std::span<const Stretch> stretches) {
  const fs::path path = directory / file_name;
  const auto start = Clock::now();
  WrittenShard written;
  // In front of its writing, each stretch: then it comes from a cache.
  written.offsets = write_datasets(
      path, stretches, [&](const Stretch& s) { written.checksums.push_back(checksum_of_blocks(s.blocks)); });
  // The storage works while the file is read back from memory.
  start_writing_to_disk(path);
  written.file = {file_name, bytes_of_file(path), checksum_of_file(path)};
  sync_to_disk(path);  // the library does not do it
  written.seconds = since(start);
  return written;
}

double write_shard_unchecked(const fs::path& directory, const std::string& file_name,
                             std::span<const Stretch> stretches) {
  const auto start = Clock::now();
  write_datasets(directory / file_name, stretches, [](const Stretch&) {});
  sync_to_disk(directory / file_name);
  return since(start);
}

}  // namespace emox
