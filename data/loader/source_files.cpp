#include "data/loader/source_files.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <glob.h>

#include <algorithm>
#include <array>
#include <system_error>

#include "data/format/token_file.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

constexpr const char* kBuild = "`emox corpus` builds the quickstart sources, `emox corpus --text LABEL=PATH` others";

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}
bool is_folder(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

/// The parts of a corpus that are never trained on, and what is known of documents.
bool is_other_part(const std::string& name) {
  constexpr std::array kNames = {"heldout.", "tune."};
  return name.ends_with(".docs.npy") || name.ends_with(".files.npy") ||
         std::any_of(kNames.begin(), kNames.end(), [&](const char* part) { return name.starts_with(part); });
}

/// Appends what a directory holds to train on.
void append_directory(const fs::path& directory, const std::string& label, std::vector<fs::path>& files) {
  if (is_there(directory / "train.npy")) {
    files.push_back(directory / "train.npy");
    return;
  }
  std::error_code error;
  std::size_t found = 0;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    const std::string extension = it->path().extension().string();
    if ((extension != ".npy" && extension != ".bin") || is_other_part(it->path().filename().string())) continue;
    if (is_folder(it->path())) continue;
    files.push_back(it->path());
    ++found;
  }
  require<UsageError>(!error, "data.source {}: cannot read the directory {}: {}", label, directory.string(),
                      error.message());
  require<UsageError>(found > 0, "data.source {}: the directory {} has no train.npy and no other token file; {}", label,
                      directory.string(), kBuild);
}

/// The pieces between the commas that are in no braces.
std::vector<std::string> split_list(const std::string& text) {
  std::vector<std::string> pieces(1);
  int depth = 0;
  for (const char c : text) {
    depth += c == '{' ? 1 : c == '}' ? -1 : 0;
    if (c == ',' && depth <= 0)
      pieces.emplace_back();
    else
      pieces.back() += c;
  }
  return pieces;
}

struct Globbed {
  glob_t found{};
  ~Globbed() { globfree(&found); }
};

/// Whatever matches, in any order.
std::vector<fs::path> matches(const std::string& pattern) {
  Globbed g;
  const int code = ::glob(pattern.c_str(), GLOB_BRACE | GLOB_NOSORT, nullptr, &g.found);
  require<UsageError>(code == 0 || code == GLOB_NOMATCH, "cannot look for the files {}: out of memory, or not readable",
                      pattern);
  std::vector<fs::path> paths;
  for (std::size_t i = 0; code == 0 && i < g.found.gl_pathc; ++i) paths.emplace_back(g.found.gl_pathv[i]);
  return paths;
}

/// A directory's name, so that its wildcards mean themselves.
std::string escaped(const fs::path& directory) {
  std::string text;
  for (const char c : directory.string()) {
    if (std::string_view("*?[]{},\\").find(c) != std::string_view::npos) text += '\\';
    text += c;
  }
  return text;
}

/// What the path names below the base: one path where it is that of a file or directory, else all that its patterns
/// match; nothing if one of them matches nothing.
std::vector<fs::path> named(const std::string& path, const fs::path& base) {
  const fs::path plain = base / path;
  if (is_there(plain)) return {plain};
  if (path.find_first_of("*?[{,") == std::string::npos) return {};
  std::vector<fs::path> all;
  for (const std::string& piece : split_list(path)) {
    if (piece.empty()) return {};
    std::vector<fs::path> some;
    if (is_there(base / piece)) {
      some = {base / piece};
    } else {
      const bool below = !base.empty() && fs::path(piece).is_relative();
      some = matches(below ? escaped(base) + "/" + piece : piece);
    }
    if (some.empty()) return {};
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

std::vector<fs::path> files_of(const std::vector<fs::path>& paths, const std::string& label) {
  std::vector<fs::path> files;
  // A pattern such as DIR/*.npy matches held-out parts and indices as well.
  const bool one = paths.size() == 1;
  for (const fs::path& path : paths) {
    if (is_folder(path))
      append_directory(path, label, files);
    else if (one || !is_other_part(path.filename().string()))
      files.push_back(path);
  }
  std::sort(files.begin(), files.end(), [](const fs::path& a, const fs::path& b) { return a.native() < b.native(); });
  files.erase(std::unique(files.begin(), files.end()), files.end());
  require<UsageError>(!files.empty(), "data.source {}: only held-out parts and document indices are named so; {}",
                      label, kBuild);
  return files;
}

fs::path whole(const fs::path& base) {
  return base.empty() ? fs::current_path() : fs::absolute(base).lexically_normal();
}

SourceFiles find(const SourceSpec& source, std::span<const fs::path> bases, bool train) {
  SourceFiles found{source, source.path, {}, {}, {}, {}, {}};
  std::vector<fs::path> paths;
  std::vector<std::string> places;
  const bool absolute = fs::path(source.path).is_absolute();
  for (std::size_t i = 0; i < (absolute ? 1 : bases.size()) && paths.empty(); ++i) {
    found.base = absolute ? fs::path() : bases[i];
    paths = named(source.path, found.base);
    const std::string place = whole(found.base).string();
    if (std::find(places.begin(), places.end(), place) == places.end()) places.push_back(place);
  }
  if (paths.empty()) {
    found.missing = fmt::format("data.source {}: {} does not exist{}", source.label, source.path,
                                absolute ? "" : fmt::format(" (looked in {})", fmt::join(places, ", ")));
    require<UsageError>(!train, "{}; {}", found.missing, kBuild);
    return found;
  }
  found.spec.path = paths.size() == 1 ? paths.front().string() : (found.base / source.path).string();
  if (!absolute) found.base = whole(found.base);
  if (train) found.train = files_of(paths, source.label);
  if (paths.size() != 1 || !is_folder(paths.front())) return found;
  for (const auto& [name, part] : {std::pair("heldout.npy", &found.held_out), std::pair("tune.npy", &found.tune)})
    if (is_there(paths.front() / name)) part->push_back(paths.front() / name);
  return found;
}

}  // namespace

std::vector<fs::path> training_files(const SourceSpec& source) {
  const fs::path here;
  return find_source(source, std::span(&here, 1)).train;
}

SourceFiles find_source(const SourceSpec& source, std::span<const fs::path> bases) { return find(source, bases, true); }

SourceFiles find_held_out(const SourceSpec& source, std::span<const fs::path> bases) {
  return find(source, bases, false);
}

}  // namespace emox
