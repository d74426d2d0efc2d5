#include "launch/run/find_checkpoint.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "parallel/checkpoint/host_pieces.h"
#include "parallel/checkpoint/layout.h"
#include "parallel/comm/together.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

/// Follows a link such as checkpoints/latest, so that messages name the step.
fs::path resolved(const fs::path& argument) {
  fs::path path = argument.has_filename() ? argument : argument.parent_path();
  constexpr int kMaxLinks = 40;  // as the system
  std::error_code ignored;
  for (int i = 0; i < kMaxLinks && fs::is_symlink(path, ignored); ++i)
    path = path.parent_path() / fs::read_symlink(path);
  require<UsageError>(fs::exists(path, ignored), "{} does not exist: give a run directory or one of its checkpoints",
                      path.string());
  return path.lexically_normal();
}

bool is_checkpoint(const fs::path& path) {
  return fs::exists(path / "manifest.json") || step_of_directory(path.filename().string()).has_value();
}

}  // namespace

fs::path checkpoints_directory(const fs::path& argument) {
  const fs::path path = resolved(argument);
  return fs::is_directory(path / "checkpoints") ? path / "checkpoints" : path;
}

namespace {

/// The checkpoint that the argument names, or the directory to search; both as rank 0 sees them, which decides for all:
/// files of other nodes may be behind.
struct Place {
  std::string checkpoint, directory;
};

Place place_of(Session& session, const fs::path& argument) {
  Place place;
  on_root(session.comm(), [&] {
    const fs::path path = resolved(argument);
    if (!is_checkpoint(path)) {
      place.directory = checkpoints_directory(path).string();
      return;
    }
    require<UsageError>(fs::exists(path / "manifest.json"), "{} has no manifest.json: it is not a complete checkpoint",
                        path.string());
    place.checkpoint = path.string();
  });
  return {broadcast_text(session.comm(), place.checkpoint), broadcast_text(session.comm(), place.directory)};
}

FoundCheckpoint named_checkpoint(Session& session, const std::string& path) {
  return {path, refusing_unusable([&] { return read_manifest_of(session.comm(), path); }), true};
}

[[noreturn]] void fail_none_intact(const fs::path& argument, const std::string& directory) {
  fail<UsageError>("{} holds no intact checkpoint (looked in {})", argument.string(), directory);
}

}  // namespace

FoundCheckpoint find_checkpoint(Session& session, const fs::path& argument, Glance glance) {
  const Place place = place_of(session, argument);
  if (!place.checkpoint.empty()) return named_checkpoint(session, place.checkpoint);
  auto found = refusing_unusable([&] { return find_latest(session.comm(), place.directory, &session.log(), glance); });
  if (!found) fail_none_intact(argument, place.directory);
  return {found->path, std::move(found->manifest), false};
}

constexpr int kMostVanished = 10;  ///< checkpoints that are removed while they are being loaded

std::optional<FoundCheckpoint> load_newest(Session& session, const fs::path& checkpoints, const PiecesFor& pieces_for,
                                           LoadReport* report) {
  Communicator& comm = session.comm();
  int vanished = 0;
  for (std::optional<std::int64_t> before;;) {
    auto candidate =
        refusing_unusable([&] { return find_latest(comm, checkpoints, &session.log(), Glance::Sizes, before); });
    if (!candidate) return std::nullopt;
    before = *step_of_directory(candidate->path.filename().string());
    FoundCheckpoint found{candidate->path, std::move(candidate->manifest), false};
    const HostPieces pieces(pieces_for(found));
    LoadReport read;
    const auto load = [&] { read = load_checkpoint(comm, {found.path, found.manifest}, pieces.pieces()); };
    if (!refusing_unusable([&] { return passes(comm, found.path, &session.log(), load); })) {
      // A job that goes on beside this one may have saved a newer one and removed this.
      const bool gone = root_says(comm, session.root() && !fs::exists(found.path / "manifest.json"));
      if (gone && ++vanished <= kMostVanished) before.reset();
      continue;
    }
    pieces.deliver(session.ctx());
    if (report != nullptr) *report = read;
    return found;
  }
}

FoundCheckpoint load_found(Session& session, const fs::path& argument, const PiecesFor& pieces_for,
                           LoadReport* report) {
  const Place place = place_of(session, argument);
  if (place.checkpoint.empty()) {
    auto found = load_newest(session, place.directory, pieces_for, report);
    if (!found) fail_none_intact(argument, place.directory);
    return *std::move(found);
  }
  FoundCheckpoint found = named_checkpoint(session, place.checkpoint);
  const HostPieces pieces(pieces_for(found));
  const LoadReport read = load_checkpoint(session.comm(), {found.path, found.manifest}, pieces.pieces());
  pieces.deliver(session.ctx());
  if (report != nullptr) *report = read;
  return found;
}

std::vector<fs::path> all_checkpoints(Session& session, const fs::path& argument) {
  // Rank 0's list: a run that goes on changes what there is.
  std::string names;
  on_root(session.comm(), [&] {
    const fs::path path = resolved(argument);
    for (const fs::path& found :
         is_checkpoint(path) ? std::vector{path} : list_checkpoints(checkpoints_directory(path)))
      names += found.string() + '\0';
    require<UsageError>(!names.empty(), "{} holds no checkpoints (looked in {})", argument.string(),
                        checkpoints_directory(path).string());
  });
  names = broadcast_text(session.comm(), names);
  std::vector<fs::path> all;
  for (std::size_t at = 0; at < names.size(); at = names.find('\0', at) + 1) all.emplace_back(names.c_str() + at);
  std::reverse(all.begin(), all.end());
  return all;
}

}  // namespace emox
