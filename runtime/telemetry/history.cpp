#include "runtime/telemetry/history.h"

#include <fcntl.h>
#include <unistd.h>
#include <nlohmann/json.hpp>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <vector>

#include "runtime/core/error.h"

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

/// A file that gets its name when it is whole.
class NewFile {
 public:
  explicit NewFile(std::string path)
      : path_(std::move(path)), temporary_(path_ + ".tmp"), file_(std::fopen(temporary_.c_str(), "w")) {
    require<IoError>(file_ != nullptr, "cannot write {}: {}", temporary_, std::strerror(errno));
  }
  ~NewFile() {
    if (file_ == nullptr) return;
    std::fclose(file_);
    std::remove(temporary_.c_str());
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  void put(const std::string& text) {
    if (std::fwrite(text.data(), 1, text.size(), file_) != text.size()) fail_to_write();
  }
  void finish() {
    if (std::fflush(file_) != 0 || fsync(fileno(file_)) != 0) fail_to_write();
    const int closed = std::fclose(file_);
    file_ = nullptr;
    if (closed != 0 || std::rename(temporary_.c_str(), path_.c_str()) != 0) fail_to_write();
    // A power loss must not keep this name and lose one that came before it.
    const fs::path folder = fs::path(path_).has_parent_path() ? fs::path(path_).parent_path() : fs::path(".");
    const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
  }

 private:
  [[noreturn]] void fail_to_write() const {
    fail<IoError>("cannot write {}: {}; check the free space of its file system", path_, std::strerror(errno));
  }
  std::string path_, temporary_;
  std::FILE* file_;
};

}  // namespace

std::string aside_path(const std::string& path) {
  const std::time_t now = std::time(nullptr);
  std::tm tm{};
  char stamp[32];
  std::strftime(stamp, sizeof stamp, "%Y%m%dT%H%M%SZ", gmtime_r(&now, &tm));
  const std::string name = fmt::format("{}.until-{}", path, stamp);
  std::error_code ignored;
  std::string free = name;
  for (int i = 2; fs::exists(fs::symlink_status(free, ignored)); ++i) free = fmt::format("{}-{}", name, i);
  return free;
}

std::string move_aside(const std::string& path) {
  const std::string aside = aside_path(path);
  require<IoError>(std::rename(path.c_str(), aside.c_str()) == 0, "cannot rename {} to {}: {}", path, aside,
                   std::strerror(errno));
  return aside;
}

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
  result.file = aside_path(path);
  NewFile aside(result.file), kept(target);
  std::size_t number = 0;
  for_lines(path, [&](const std::string& line, bool torn) {
    (kinds.at(number++) == Line::Kept ? kept : aside).put(torn ? line : line + '\n');
  });
  aside.finish();
  kept.finish();
  return result;
}

}  // namespace emox
