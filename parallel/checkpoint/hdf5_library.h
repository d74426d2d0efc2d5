// What the files that call the HDF5 library share: its lock, its reasons, its types. Not for the rest of the room.
#pragma once

#include <hdf5.h>

#include <filesystem>
#include <mutex>
#include <set>
#include <string>
#include <utility>

#include "runtime/core/dtype.h"
#include "runtime/core/shape.h"

namespace emox::hdf5 {

static_assert(sizeof(hid_t) == sizeof(std::int64_t));

/// Held around every call of the library. The first holder silences the library's own printing of errors, and keeps it
/// from cleaning up when the process ends: every file is closed by then, and after a file that could not be closed
/// (disk full) HDF5 1.10 crashes there.
std::unique_lock<std::mutex> library_lock();

/// Why the last call failed. To be asked at once: the next call, even one that closes a handle, forgets it.
std::string library_reason();

/// Closes an identifier of any kind with its own function.
class Handle {
 public:
  Handle(hid_t id, herr_t (*with)(hid_t)) : id_(id), close_(with) {}
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  hid_t get() const { return id_; }
  bool good() const { return id_ >= 0; }
  /// False when the library could not: what it still held of a dataset is lost then.
  bool close() { return close_(std::exchange(id_, -1)) >= 0; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

/// A file that is being written. Destroyed before close(), it is one to be thrown away: what the library still holds of
/// it may not reach the disk, so it is diverted.
class OutputFile {
 public:
  explicit OutputFile(hid_t id) : id_(id) {}
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  /// Flushes and closes. IoError with the system's reason.
  void close(const std::filesystem::path& path);

 private:
  hid_t id_;
};

hid_t memory_type(DType t);
hid_t file_type(DType t);
/// A new dataspace of this shape.
hid_t space_of(const Shape& shape);
/// New property lists: how files are opened, how they are made (equal content gives equal bytes).
hid_t access_properties();
hid_t file_properties();
/// Makes the groups that lead to the dataset, but those in `made`, which grows. `path` is the file's, for the error.
void create_groups(hid_t file, const std::string& dataset, std::set<std::string>& made,
                   const std::filesystem::path& path);

}  // namespace emox::hdf5
