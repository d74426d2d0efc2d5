#include "parallel/checkpoint/shard.h"

#include <algorithm>
#include <chrono>
#include <system_error>
#include <tuple>
#include <utility>

#include "parallel/checkpoint/checksum.h"
#include "parallel/checkpoint/hdf5_file.h"
#include "parallel/checkpoint/layout.h"
#include "runtime/core/error.h"
#include "runtime/files/files.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

bool is_nothing(const CheckpointPiece& p) { return p.begin == p.end && p.shape.numel() != 0; }

std::vector<const CheckpointPiece*> in_order(std::span<const CheckpointPiece> pieces) {
  std::vector<const CheckpointPiece*> sorted;
  for (const CheckpointPiece& p : pieces)
    if (!is_nothing(p)) sorted.push_back(&p);
  const auto key = [](const CheckpointPiece& p) { return std::tie(p.name, p.role, p.begin, p.end); };
  std::sort(sorted.begin(), sorted.end(), [&](const auto* a, const auto* b) { return key(*a) < key(*b); });
  return sorted;
}

bool same_array(const ManifestTensor& t, const CheckpointPiece& p) { return t.name == p.name && t.role == p.role; }

bool adjoins(const ManifestTensor& t, const CheckpointPiece& p) {
  return same_array(t, p) && t.end == p.begin && t.begin != t.end && t.shape == p.shape && t.dtype == p.view.dtype();
}

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Calls `before` with every dataset and writes it. Returns where their elements are in the file.
template <typename Before>
std::vector<std::int64_t> write_datasets(const fs::path& path, std::span<const ShardDataset> datasets,
                                         const Before& before) {
  std::error_code error;  // of many ranks one makes it; its name is synced once, not by all (saver.cpp)
  fs::create_directories(path.parent_path(), error);
  require<IoError>(!error, "cannot make the directory {}: {}", path.parent_path().string(), error.message());
  Hdf5File file = Hdf5File::create(path);
  std::vector<std::int64_t> offsets;
  for (const ShardDataset& s : datasets) {
    before(s);
    offsets.push_back(file.write(s.entry, s.blocks));
  }
  file.close();
  return offsets;
}

}  // namespace

void check_piece(const CheckpointPiece& p) {
  require<ShapeError>(is_tensor_name(p.name), "\"{}\" cannot be the name of a tensor in a checkpoint", p.name);
  require<ShapeError>(is_role(p.role), "{}: \"{}\" is not weight, exp_avg or exp_avg_sq", p.name, p.role);
  const std::int64_t n = p.shape.numel();
  require<ShapeError>(0 <= p.begin && p.begin <= p.end && p.end <= n, "{} ({}): elements [{}, {}) of {}", p.name,
                      p.role, p.begin, p.end, p.shape.str());
  require<ShapeError>(!p.view.null() || p.begin == p.end, "{} ({}): elements [{}, {}) have no memory", p.name, p.role,
                      p.begin, p.end);
  require<ShapeError>(p.view.numel() == p.end - p.begin, "{} ({}): elements [{}, {}) in memory of {}", p.name, p.role,
                      p.begin, p.end, p.view.shape().str());
  require<ShapeError>(p.view.device().type == DeviceType::Cpu, "{} ({}) is not in host memory", p.name, p.role);
}

std::string checksum_of_blocks(std::span<const TensorView> blocks) {
  Checksum checksum;
  for (const TensorView& b : blocks) checksum.update(b.raw(), b.bytes());
  return checksum.hex();
}

std::vector<ShardDataset> shard_datasets(std::span<const CheckpointPiece> pieces, const std::string& file) {
  for (const CheckpointPiece& p : pieces) check_piece(p);
  const std::string unknown(32, '0');  // what is written says what its checksum is
  std::vector<ShardDataset> datasets;
  for (const CheckpointPiece* p : in_order(pieces)) {
    const bool later = !datasets.empty() && same_array(datasets.back().entry, *p);
    if (later && adjoins(datasets.back().entry, *p)) {
      datasets.back().entry.end = p->end;
      datasets.back().blocks.push_back(p->view);
      continue;
    }
    std::string dataset = later ? later_dataset_path(p->name, p->role, p->begin) : dataset_path(p->name, p->role);
    ManifestTensor entry{p->name, p->role, p->view.dtype(),    p->shape, p->begin,
                         p->end,  file,    std::move(dataset), unknown};
    datasets.push_back({std::move(entry), {p->view}});
  }
  return datasets;
}

WrittenShard write_shard(const fs::path& directory, const std::string& file_name,
                         std::span<const ShardDataset> datasets) {
  const fs::path path = directory / file_name;
  const auto start = Clock::now();
  WrittenShard written;
  // In front of its writing, each dataset: then it comes from a cache.
  written.offsets = write_datasets(
      path, datasets, [&](const ShardDataset& s) { written.checksums.push_back(checksum_of_blocks(s.blocks)); });
  // The storage works while the file is read back from memory.
  start_writing_to_disk(path);
  written.file = {file_name, bytes_of_file(path), checksum_of_file(path)};
  sync_to_disk(path);  // the library does not do it
  written.seconds = since(start);
  return written;
}

double write_shard_unchecked(const fs::path& directory, const std::string& file_name,
                             std::span<const ShardDataset> datasets) {
  const auto start = Clock::now();
  write_datasets(directory / file_name, datasets, [](const ShardDataset&) {});
  sync_to_disk(directory / file_name);
  return since(start);
}

}  // namespace emox
