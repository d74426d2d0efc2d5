#include "runtime/telemetry/history.h"

#include <nlohmann/json.hpp>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/files/atomic_file.h"
#include "runtime/files/files.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

enum class Line : std::uint8_t { Kept, Later, Unreadable };

Line kind_of(const std::string& line, bool torn, std::int64_t last_step) {
  if (torn) return Line::Unreadable;
  const auto record = nlohmann::json::parse(line, nullptr, false);
  if (!record.is_object()) return Line::Unreadable;
  const auto step = record.find("step");
  if (step == record.end() || !step->is_number_integer()) return Line::Unreadable;
  return step->get<std::int64_t>() <= last_step ? Line::Kept : Line::Later;
}

/// Calls visit(line, whether its end is missing) for every line.
template <typename Visit>
void for_lines(const std::string& path, Visit&& visit) {
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  require<IoError>(in.is_open(), "cannot read {}: {}; make it readable, or move it away", path, std::strerror(errno));
  for (std::string line; std::getline(in, line);) visit(line, in.eof());
  require<IoError>(!in.bad(), "cannot read {}: {}; make it readable, or move it away", path, std::strerror(errno));
}

}  // namespace

SetAside settle_history(const std::string& path, std::int64_t last_step) {
  SetAside result;
  std::error_code error;
  const fs::file_status status = fs::symlink_status(path, error);  // what a link leads to is somebody else's
  if (status.type() == fs::file_type::not_found) return result;
  require<IoError>(!fs::is_directory(status) && status.type() != fs::file_type::none,
                   "cannot read {}: {}; move it away", path, error ? error.message() : "it is a directory");
  require<IoError>(fs::is_regular_file(status), "{} is {}: move it away", path,
                   fs::is_symlink(status) ? "a symbolic link" : "not a regular file");

  std::vector<Line> kinds;
  for_lines(path, [&](const std::string& line, bool torn) {
    kinds.push_back(kind_of(line, torn, last_step));
    result.later += kinds.back() == Line::Later ? 1 : 0;
    result.unreadable += kinds.back() == Line::Unreadable ? 1 : 0;
  });
  if (result.later + result.unreadable == 0) return result;

  // First what goes, then what stays: between the two, lines are in both files.
  const std::string target = fs::canonical(path).string();  // where a link leads to
  result.file = name_aside(path).string();
  AtomicFile aside(result.file), kept(target);
  std::size_t number = 0;
  for_lines(path, [&](const std::string& line, bool torn) {
    (kinds.at(number++) == Line::Kept ? kept : aside).write(torn ? line : line + '\n');
  });
  aside.commit();
  kept.commit();
  return result;
}

}  // namespace emox
