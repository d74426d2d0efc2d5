#include "launch/run/node_files.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <exception>
#include <optional>

#include "parallel/comm/together.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

/// What is wrong with this node's file, or nothing.
std::optional<std::string> difference(const Communicator& comm, const SeenFile& file, const NodeView& view,
                                      std::size_t i) {
  try {
    if (view.mark(i) == file.mark) return std::nullopt;
    const auto differs = file_difference(file.identity, view.identify(i));
    if (!differs) return std::nullopt;
    return fmt::format(
        "{} is not the same on all nodes: on that of rank {} it {}, compared with that of rank {}; copy "
        "it there again",
        file.identity.path, comm.rank(), *differs, file.rank);
  } catch (const Error& e) {
    return fmt::format("{} (on the node of rank {}; rank {} could read it)", e.message(), comm.rank(), file.rank);
  } catch (const std::exception& e) {
    return fmt::format("{}: {} (on the node of rank {}; rank {} could read it)", file.identity.path, e.what(),
                       comm.rank(), file.rank);
  }
}

}  // namespace

std::string file_mark(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return "";
  return fmt::format("{}:{}:{}.{}", info.st_size, info.st_ino, info.st_mtim.tv_sec, info.st_mtim.tv_nsec);
}

void require_same_files(Communicator& comm, const std::vector<SeenFile>& files, const NodeView& view) {
  const std::vector<int>& nodes = comm.nodes();
  const auto step = idx(comm.node_size());
  std::string own;
  for (auto i = idx(comm.node_rank()); i < files.size() && own.empty(); i += step)
    if (nodes[idx(files[i].rank)] != nodes[idx(comm.rank())]) own = difference(comm, files[i], view, i).value_or("");
  const std::string first = first_text(comm, own);
  require<UsageError>(first.empty(), "{}", first);
}

}  // namespace emox
