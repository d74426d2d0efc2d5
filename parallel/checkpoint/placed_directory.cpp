// A finished directory gets its name, and the newest one the link: a part of commit.h.
#include "parallel/checkpoint/commit.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <system_error>
#include <utility>

#include "runtime/core/error.h"
#include "runtime/files/files.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

/// Where the next attempt will tell, or what is left is plainly unfinished.
std::error_code& ignored_error() {
  thread_local std::error_code error;
  return error;
}

/// False where the file system cannot, or the disk fails.
bool swap_paths(const fs::path& a, const fs::path& b) {
  return renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0;
}

}  // namespace

PlacedDirectory::PlacedDirectory(fs::path from, fs::path to, Existing existing)
    : from_(std::move(from)), to_(std::move(to)), existing_(existing) {
  try {
    place();
    sync_to_disk(parent_of(to_));
  } catch (const IoError&) {
    take_back();
    throw;
  }
}

void PlacedDirectory::place() {
  const bool occupied = name_is_taken(to_);
  if (occupied && existing_ == Existing::Remove && swap_paths(from_, to_)) {
    old_ = from_;
    return;
  }
  if (occupied) {
    // Between the two renames neither is in place, but both are on the disk. Not every file system can swap.
    const fs::path aside =
        existing_ == Existing::MoveAside ? name_aside(to_, "aside") : fs::path(to_.string() + ".tmp-old");
    if (existing_ == Existing::Remove) fs::remove_all(aside, ignored_error());
    rename_path(to_, aside);
    old_ = aside;
  }
  rename_path(from_, to_);
  placed_ = true;
}

PlacedDirectory::~PlacedDirectory() {
  if (!kept_) take_back();
}

void PlacedDirectory::take_back() {
  if (old_ == from_) {
    swap_paths(from_, to_);
    return;
  }
  // A rename that reported an error may have been made. What may be somebody else's is not touched.
  const bool ours = placed_ || fs::symlink_status(from_, ignored_error()).type() == fs::file_type::not_found;
  if (ours && std::rename(to_.c_str(), from_.c_str()) != 0) fs::remove_all(to_, ignored_error());
  if (!old_.empty()) std::rename(old_.c_str(), to_.c_str());
}

fs::path PlacedDirectory::keep() {
  kept_ = true;
  if (existing_ == Existing::MoveAside) return old_;
  if (!old_.empty()) fs::remove_all(old_, ignored_error());
  return {};
}

void replace_link(const fs::path& target, const fs::path& link) {
  const fs::path temporary = link.string() + ".tmp";
  const auto lead_to = [&](const fs::path& there) {
    unlink(temporary.c_str());  // a crash's leftover
    const bool linked = symlink(there.c_str(), temporary.c_str()) == 0;
    require<IoError>(linked, "cannot make the link {}: {}", temporary.string(), std::strerror(errno));
    // A copy of the tree that followed links has a directory here. It is not ours to delete.
    if (name_is_taken(link) && !fs::is_symlink(link)) rename_path(link, link.string() + ".replaced");
    rename_path(temporary, link);
    sync_to_disk(parent_of(link));
  };
  const fs::path before = fs::read_symlink(link, ignored_error());
  try {
    lead_to(target);
  } catch (const IoError&) {
    unlink(temporary.c_str());
    if (fs::read_symlink(link, ignored_error()) == before) throw;
    try {
      require<IoError>(!before.empty(), "{} was not there before", link.string());
      lead_to(before);
    } catch (const IoError&) {
      unlink(link.c_str());
    }
    throw;
  }
}

}  // namespace emox
