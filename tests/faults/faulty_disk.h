// A disk that fails: the program's own calls to open, write, sync, rename and the rest, those that libhdf5 and
// libstdc++ make too, pass through here, and one under a chosen directory can be made to fail. Works because a symbol
// that the executable exports comes before the C library's.
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace emox::test {

enum class DiskCallKind { Open, Read, Write, Truncate, Sync, Rename, MakeDirectory, Link };
std::string_view name_of(DiskCallKind kind);

/// What the calls of one kind are for one file is in order, whatever other threads do meanwhile.
struct DiskCall {
  DiskCallKind kind = DiskCallKind::Open;
  std::string path;       ///< below the watched directory, "" for itself; of two paths the second
  int nth = 0;            ///< among those of this kind and path, from 0
  std::size_t bytes = 0;  ///< written
  std::string function;   ///< as it was called, e.g. pwrite64
  std::string from;       ///< of two paths the first
};

enum class DiskFaultKind {
  Once,           ///< this call fails
  FromThenOn,     ///< this one and every later one that could change something, until the object is gone
  Short,          ///< this call writes half of what it should
  ShortThenFull,  ///< this call writes half, every later one fails
  Stall,          ///< this call does not return before release()
};

struct DiskFault {
  DiskCall at;
  DiskFaultKind kind = DiskFaultKind::Once;
  int error = 0;  ///< errno
};

/// Watches one directory, which exists, while it lives; one at a time. Syncs below it are not waited for: what reaches
/// the platters cannot be seen from here.
class FaultyDisk {
 public:
  explicit FaultyDisk(const std::filesystem::path& directory, std::optional<DiskFault> fault = std::nullopt);
  ~FaultyDisk();
  FaultyDisk(const FaultyDisk&) = delete;
  FaultyDisk& operator=(const FaultyDisk&) = delete;
  /// So far, in the order in which they began.
  std::vector<DiskCall> calls() const;
  /// Whether the fault's call came.
  bool struck() const;
  /// Lets the calls that stall go on; so does the end of the object.
  void release();
};

}  // namespace emox::test
