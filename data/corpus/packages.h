// Debian packages: downloading them with apt's own client and unpacking them, without root.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace emox {

class Log;

struct Package {
  std::string name, version, sha256;
  std::filesystem::path file;
  bool downloaded = false;  ///< by this call; false: it was already there
};

/// Makes sure that `directory` holds one .deb of every name, downloading the missing ones, and describes them in the
/// order of the names. An interrupted download leaves nothing that a later call takes for a package. Throws UsageError
/// if the package lists are empty or do not know a name; IoError if apt-get fails otherwise, or if a file is no
/// readable package.
std::vector<Package> fetch_packages(const std::vector<std::string>& names, const std::filesystem::path& directory,
                                    Log& log);

/// Unpacks the files of a package below `directory`. Throws IoError.
void unpack_package(const Package& package, const std::filesystem::path& directory);

}  // namespace emox
