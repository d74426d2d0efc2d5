#include "data/corpus/text_files.h"

#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

#include "data/corpus/text.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {
namespace fs = std::filesystem;

constexpr std::size_t kReadBytes = std::size_t{1} << 18;
/// A line beyond this is no document but a file that is not what its name says.
constexpr std::size_t kMaxLineBytes = std::size_t{256} << 20;

InputFile input_file(const fs::path& path, const std::string& name) {
  struct stat info {};
  require<UsageError>(::stat(path.c_str(), &info) == 0 && ::access(path.c_str(), R_OK) == 0, "cannot read {}: {}",
                      path.string(), std::strerror(errno));
  return {path, name, info.st_size, std::int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec};
}

void list_directory(const fs::path& root, std::vector<InputFile>& files, TextCounts& counts) {
  std::vector<InputFile> found;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    if (entry.is_directory() && !entry.is_symlink()) continue;
    if (entry.is_symlink() || !entry.is_regular_file())
      ++counts.links;
    else
      found.push_back(input_file(entry.path(), entry.path().lexically_relative(root).string()));
  }
  std::sort(found.begin(), found.end(), [](const InputFile& a, const InputFile& b) { return a.name < b.name; });
  std::move(found.begin(), found.end(), std::back_inserter(files));
}

/// The string `text` of a line of JSON; nothing if it has none.
std::optional<std::string> text_of(std::string_view line) {
  nlohmann::json parsed = nlohmann::json::parse(line, nullptr, false);
  if (!parsed.is_object()) return std::nullopt;
  const auto text = parsed.find("text");
  if (text == parsed.end() || !text->is_string()) return std::nullopt;
  return std::move(text->get_ref<std::string&>());
}

}  // namespace

std::vector<InputFile> list_files(const std::vector<std::string>& paths, TextCounts& counts) {
  std::vector<InputFile> files;
  for (const std::string& path : paths) {
    try {
      require<UsageError>(fs::exists(path), "there is nothing at {}", path);
      if (fs::is_directory(path)) {
        list_directory(path, files, counts);
      } else {
        require<UsageError>(fs::is_regular_file(path), "{} is neither a file nor a directory", path);
        files.push_back(input_file(path, fs::path(path).filename().string()));
      }
    } catch (const fs::filesystem_error& e) {
      fail<UsageError>("cannot list {}: {}", path, e.what());
    }
  }
  require<UsageError>(!files.empty(), "there is no file in {}", paths.empty() ? "" : paths.front());
  counts.files = static_cast<std::int64_t>(files.size());
  for (const InputFile& f : files) counts.bytes += f.bytes;
  return files;
}

struct TextReader::Stream {
  explicit Stream(gzFile opened) : file(opened) {}
  ~Stream() { gzclose(file); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  gzFile file;
};

TextReader::TextReader(const InputFile& file, TextCounts& counts) : counts_(counts), name_(file.path.string()) {
  errno = 0;
  const gzFile opened = gzopen(file.path.c_str(), "rb");  // reads what is not packed as it is
  require<IoError>(opened != nullptr, "cannot open {}: {}", name_, std::strerror(errno));
  stream_ = std::make_unique<Stream>(opened);
  gzbuffer(opened, kReadBytes);

  std::string name = file.name;
  if (name.ends_with(".gz")) name.resize(name.size() - 3);
  json_lines_ = name.ends_with(".jsonl") || name.ends_with(".ndjson");
  if (!json_lines_ && name.ends_with(".json")) {
    while (rest().find('\n') == std::string_view::npos && rest().size() < kReadBytes && fill()) {
    }
    json_lines_ = text_of(rest().substr(0, rest().find('\n'))).has_value();
    // Text in one value over several lines, which is not read: its quotes and braces are nobody's text.
    if (!json_lines_ && rest().find("\"text\"") != std::string_view::npos) {
      ++counts_.no_text;
      stop();
      return;
    }
  }
  if (!json_lines_ && rest().empty()) fill();
  if (rest().starts_with("\xEF\xBB\xBF")) begin_ += 3;  // a byte order mark is not text
}

TextReader::~TextReader() = default;

std::int64_t TextReader::position() const { return gzoffset(stream_->file); }

void TextReader::stop() {
  ended_ = true;
  begin_ = buffer_.size();
}

/// Reads more; false at the end of the file or of what can be unpacked.
bool TextReader::fill() {
  if (ended_) return false;
  if (begin_ > 0) buffer_.erase(0, std::exchange(begin_, 0));
  const std::size_t before = buffer_.size();
  buffer_.resize(before + kReadBytes);
  const int n = gzread(stream_->file, buffer_.data() + before, kReadBytes);
  buffer_.resize(before + idx(std::max(n, 0)));
  int error = Z_OK;
  const char* const message = gzerror(stream_->file, &error);
  require<IoError>(error != Z_ERRNO, "cannot read {}: {}", name_, message);
  if (n <= 0) ended_ = true;
  // A file that ends too early says so after its last bytes.
  if (ended_ && error != Z_OK && error != Z_STREAM_END) ++counts_.damaged_files;
  return n > 0;
}

bool TextReader::next_line(std::string& line) {
  std::size_t searched = 0;
  for (bool too_long = false;;) {
    const std::size_t end = rest().find('\n', searched);
    const bool found = end != std::string_view::npos;
    searched = found ? end : rest().size();
    if (!found && searched > kMaxLineBytes) {
      too_long = true;
      begin_ = buffer_.size();
      searched = 0;
    }
    if (!found && fill()) continue;
    if (!found && rest().empty() && !too_long) return false;
    line = rest().substr(0, searched);
    begin_ += searched + (found ? 1 : 0);
    if (!too_long) return true;
    ++counts_.no_text;
    too_long = false;
    searched = 0;
  }
}

bool TextReader::next_text(std::string& document) {
  while (rest().size() <= kMaxTextBytes && fill()) {
  }
  if (rest().empty()) return false;
  const std::size_t size = rest().size() <= kMaxTextBytes ? rest().size() : cut_before(rest(), kMaxTextBytes);
  document = rest().substr(0, size);
  begin_ += size;
  return true;
}

bool TextReader::next(std::string& document) {
  if (!json_lines_) return next_text(document);
  std::string line;
  while (next_line(line)) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    std::optional<std::string> text = text_of(line);
    if (text) {
      document = std::move(*text);
      return true;
    }
    ++counts_.no_text;
  }
  return false;
}

}  // namespace emox
