// Token files that every node must see alike: a path may be a copy on each node's own disk, and ranks read for
// themselves.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/loader/identity.h"
#include "parallel/comm/communicator.h"

namespace emox {

/// A file as the rank saw it that identified it.
struct SeenFile {
  FileIdentity identity;
  std::string mark;  ///< file_mark of its path there
  int rank = 0;      ///< which rank that was
};

/// Size, inode and time of the last change: the same on all nodes for a file of a shared file system, and another one
/// for a copy. Empty if there is no such file.
std::string file_mark(const std::string& path);

/// How a node looks at file `i`: its mark, and the file itself where that is another one.
struct NodeView {
  std::function<std::string(std::size_t)> mark;
  std::function<FileIdentity(std::size_t)> identify;
};

/// Collective. The ranks of every node other than that of `SeenFile::rank` look at the file; only one with another mark
/// is read. UsageError, on every rank, that names the first file whose content differs, rank and difference, or that
/// cannot be read there.
void require_same_files(Communicator& comm, const std::vector<SeenFile>& files, const NodeView& view);

}  // namespace emox
