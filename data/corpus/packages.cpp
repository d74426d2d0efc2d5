#include "data/corpus/packages.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "data/corpus/place.h"
#include "data/corpus/process.h"
#include "runtime/core/error.h"
#include "runtime/telemetry/log.h"

namespace emox {
namespace {
namespace fs = std::filesystem;

/// The .deb files of a package, by the file name that apt gives them: name_version_architecture.deb.
std::vector<fs::path> files_of(const std::string& name, const fs::path& directory) {
  std::vector<fs::path> found;
  if (!fs::exists(directory)) return found;
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string file = entry.path().filename().string();
    if (file.starts_with(name + "_") && file.ends_with(".deb")) found.push_back(entry.path());
  }
  return found;
}

std::string trimmed(std::string text) {
  text.erase(text.find_last_not_of(" \n") + 1);
  return text;
}

Package describe(const std::string& name, const fs::path& file) {
  const ProcessResult version = run_process({"dpkg-deb", "--field", file.string(), "Version"});
  require<IoError>(version.exit_code == 0, "{} is not a readable package: {}; remove it and run again", file.string(),
                   trimmed(version.output));
  const ProcessResult sum = run_process({"sha256sum", "--binary", file.string()});
  // sha256sum marks escaped file names with a leading backslash.
  const std::size_t start = sum.output.starts_with('\\') ? 1 : 0;
  require<IoError>(sum.exit_code == 0 && sum.output.size() >= start + 64, "sha256sum failed on {}: {}", file.string(),
                   trimmed(sum.output));
  return {name, trimmed(version.output), sum.output.substr(start, 64), file, false};
}

/// Before downloading: an empty list and a misspelt or absent package are the user's to mend, a failing download is
/// not.
void check_known(const std::vector<std::string>& names) {
  std::vector<std::string> unknown;
  for (const std::string& name : names) {
    const ProcessResult shown = run_process({"apt-cache", "show", "--no-all-versions", name});
    if (shown.exit_code != 0) unknown.push_back(name);
  }
  require<UsageError>(
      unknown.empty(),
      "apt's package lists do not know {}: run `apt-get update` first (as root), or choose domains without them, or "
      "put the .deb files into the download directory yourself",
      fmt::join(unknown, ", "));
}

/// Downloads into a directory of its own, and moves what is whole.
void download(const std::vector<std::string>& names, const fs::path& directory, Log& log) {
  check_known(names);
  fs::create_directories(directory);
  const WorkDirectory work(directory / "download");
  const fs::path fresh = work.path();
  std::vector<std::string> command = {"apt-get", "download", "-q"};
  command.insert(command.end(), names.begin(), names.end());
  log.info("downloading {} package{}: {}", names.size(), names.size() == 1 ? "" : "s", fmt::join(names, " "));
  const ProcessResult result = run_process(command, fresh);
  require<IoError>(result.exit_code == 0,
                   "apt-get download failed ({}): {}\ncheck the network; if a file was not found, run "
                   "`apt-get update` first",
                   result.exit_code, trimmed(result.output));
  for (const std::string& name : names) {
    const std::vector<fs::path> files = files_of(name, fresh);
    require<IoError>(files.size() == 1, "apt-get download left {} files of {} in {}, expected one", files.size(), name,
                     fresh.string());
    fs::rename(files[0], directory / files[0].filename());
  }
}

}  // namespace

std::vector<Package> fetch_packages(const std::vector<std::string>& names, const fs::path& directory, Log& log) {
  std::vector<std::string> missing;
  for (const std::string& name : names) {
    const std::vector<fs::path> files = files_of(name, directory);
    require<UsageError>(files.size() <= 1, "{} holds {} versions of {}; keep one", directory.string(), files.size(),
                        name);
    if (files.empty() && std::find(missing.begin(), missing.end(), name) == missing.end()) missing.push_back(name);
  }
  if (!missing.empty()) download(missing, directory, log);
  std::vector<Package> packages;
  for (const std::string& name : names) {
    packages.push_back(describe(name, files_of(name, directory).at(0)));
    packages.back().downloaded = std::find(missing.begin(), missing.end(), name) != missing.end();
  }
  return packages;
}

void unpack_package(const Package& package, const fs::path& directory) {
  fs::create_directories(directory);
  const ProcessResult result = run_process({"dpkg-deb", "--extract", package.file.string(), directory.string()});
  require<IoError>(result.exit_code == 0, "cannot unpack {}: {}; remove the file and run again", package.file.string(),
                   trimmed(result.output));
}

}  // namespace emox
