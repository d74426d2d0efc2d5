// Reading a checkpoint of any size with little memory: its files opened when they are needed, arrays block by block,
// the work dealt over the ranks.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "parallel/checkpoint/hdf5_file.h"
#include "parallel/checkpoint/manifest.h"
#include "parallel/comm/communicator.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/core/tensor.h"

namespace emox {

/// Memory for a block of at most so many bytes, for elements of any type.
class Block {
 public:
  explicit Block(std::int64_t bytes) : memory_({}, DType::U8, {bytes}) {}
  /// How many elements of the type fit.
  std::int64_t capacity(DType dtype) const {
    return memory_.view().numel() / static_cast<std::int64_t>(size_of(dtype));
  }
  TensorView elements(DType dtype, std::int64_t n) const { return {memory_.view().raw(), dtype, {n}}; }

 private:
  Tensor memory_;
};

/// The HDF5 files of a checkpoint; their checksums must have been verified. A few stay open.
class OpenFiles {
 public:
  explicit OpenFiles(std::filesystem::path checkpoint) : checkpoint_(std::move(checkpoint)) {}
  /// Elements of the entry's array, all in the entry's dataset. IoError as Hdf5File::read.
  void read(const ManifestTensor& entry, const ArraySlice& slice);
  /// Reads all of the entry's dataset, a block at a time, and gives each to `use`; IoError when their checksum is not
  /// the entry's.
  void read_whole(const ManifestTensor& entry, const Block& block, const std::function<void(const TensorView&)>& use);

 private:
  struct Open {
    std::string name;
    std::unique_ptr<Hdf5File> file;
  };
  std::filesystem::path checkpoint_;
  std::list<Open> open_;  ///< the last used first
};

inline constexpr std::int64_t kBlockBytes = std::int64_t{16} << 20;

/// The consecutive items [first, second) that are a rank's share, about equal by their bytes.
std::pair<std::size_t, std::size_t> share_of(std::span<const std::int64_t> bytes, int rank, int size);

/// Datasets in an order in which a rank's share lies in few files.
std::vector<const ManifestTensor*> by_file(std::vector<const ManifestTensor*> datasets);
/// The rank's share of datasets, by their bytes.
std::pair<std::size_t, std::size_t> share_of_datasets(const std::vector<const ManifestTensor*>& datasets,
                                                      const Communicator& comm);

/// Calls `use` with the view's elements as a span of their type.
template <typename Use>
void with_elements(const TensorView& view, const Use& use) {
  const auto n = idx(view.numel());
  switch (view.dtype()) {
    case DType::F32:
      return use(std::span<const float>(view.data<float>(), n));
    case DType::F64:
      return use(std::span<const double>(view.data<double>(), n));
    case DType::I32:
      return use(std::span<const std::int32_t>(view.data<std::int32_t>(), n));
    case DType::I64:
      return use(std::span<const std::int64_t>(view.data<std::int64_t>(), n));
    case DType::U8:
      return use(std::span<const std::uint8_t>(view.data<std::uint8_t>(), n));
    case DType::BF16:
      break;
  }
  fail<ShapeError>("a checkpoint holds no {}: it holds the f32 master weights", name_of(view.dtype()));
}

/// Collective. The ranks' messages by number, all of them on every rank; a number is one rank's.
std::map<std::size_t, std::string> join_messages(Communicator& comm,
                                                 const std::map<std::size_t, std::string>& messages);

}  // namespace emox
