// One HDF5 file for writing or reading. The HDF5 library is not thread-safe and ranks may be threads, so all its calls
// are made behind one lock. Its errors become IoError with the innermost reason.
#pragma once

#include <cstdint>
#include <filesystem>
#include <set>
#include <span>
#include <string>

#include "parallel/checkpoint/manifest.h"
#include "runtime/core/tensor.h"

namespace emox {

/// Memory for elements of an array, as many as the view has, from `begin` on.
struct ArraySlice {
  std::int64_t begin;
  TensorView view;
};

class Hdf5File {
 public:
  /// A new file; one that is there is overwritten.
  static Hdf5File create(const std::filesystem::path& path) { return {path, true}; }
  /// An existing file, read only. Its checksum must have been verified: the library is not made for damaged files.
  static Hdf5File open(const std::filesystem::path& path) { return {path, false}; }
  Hdf5File(const Hdf5File&) = delete;
  Hdf5File& operator=(const Hdf5File&) = delete;
  ~Hdf5File();

  /// Creates the entry's dataset (an absolute path; missing groups are made) of the entry's type; a part of an array
  /// gets the attributes begin, end and shape. The blocks, one after another, are its elements. Returns where they are
  /// in the file, in one stretch; 0 without elements.
  std::int64_t write(const ManifestTensor& entry, std::span<const TensorView> blocks);
  /// For an array that does not fit in memory: creates the dataset of a whole array; write_slice must then give every
  /// element once.
  void create_whole(const ManifestTensor& entry);
  void write_slice(const ManifestTensor& entry, const ArraySlice& slice);
  /// A text attribute of the file's root, for people.
  void write_note(const char* name, const std::string& text);
  /// Fills the slices. All their elements must be in the entry's dataset, which must have the shape and type that the
  /// entry says. Reads those elements only, straight into the slices' memory.
  void read(const ManifestTensor& entry, std::span<const ArraySlice> slices);
  /// Where the entry's elements are in the file; IoError unless they are there, of its shape and type, in one stretch.
  std::int64_t offset_of(const ManifestTensor& entry);
  /// Flushes and closes. A file destroyed before is to be thrown away.
  void close();

 private:
  Hdf5File(std::filesystem::path path, bool write);
  std::int64_t create_dataset(const ManifestTensor& entry);      ///< a hid_t, to be closed
  std::int64_t open_dataset(const ManifestTensor& entry) const;  ///< the same, of the entry's shape and type
  std::filesystem::path path_;
  std::set<std::string> groups_;  ///< those created so far
  bool write_ = false;
  std::int64_t id_ = -1;  ///< hid_t, named by its type so that <hdf5.h> stays in one file
};

}  // namespace emox
