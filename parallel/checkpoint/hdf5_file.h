// One HDF5 file for writing or reading, and the index of all of a checkpoint. The HDF5 library is not thread-safe and
// ranks may be threads, so all its calls are made behind one lock. Its errors become IoError with the innermost reason.
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

// index.h5: the whole model as one tree, for people and tools (h5ls -r, h5dump, h5py). Experts are external links to
// their groups in the shards, whole arrays are external links too, arrays in several pieces are virtual datasets. Names
// of files are relative, so that a checkpoint can be moved. Loading never uses it: a virtual dataset whose source is
// missing reads as zeros.

/// Writes it for these pieces, which make whole arrays, and syncs it. IoError when it cannot be written.
void write_index(const std::filesystem::path& path, const Manifest& manifest);

/// IoError unless every array of the manifest is in the checkpoint's index and every link and source of it leads to the
/// dataset that the manifest names, with its shape. The files' checksums must have been verified.
void check_index(const std::filesystem::path& checkpoint, const Manifest& manifest);

}  // namespace emox
