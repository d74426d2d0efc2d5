// How a corpus gets its place: whole or not at all, never two builds at once, never over something else.
#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "data/corpus/corpus.h"

namespace emox {

class Log;

/// `output` with a suffix, for what stands beside it while it is built; slashes at its end do not count.
std::filesystem::path beside(const std::string& output, const char* suffix);

/// A new directory <path>.partial-<six characters> with a mark by which a later one for the same path finds and removes
/// it if this process is killed; nothing else that stands there is ever removed. `path` may exist or not, its parent
/// must. The destructor removes what is in it. Throws IoError if it cannot be made.
class WorkDirectory {
 public:
  explicit WorkDirectory(const std::filesystem::path& path);
  ~WorkDirectory();
  WorkDirectory(const WorkDirectory&) = delete;
  WorkDirectory& operator=(const WorkDirectory&) = delete;
  std::filesystem::path path() const;      ///< an empty directory in it to write to, which may be moved away
  std::filesystem::path replaced() const;  ///< a name in it for what is to be removed
  void keep() { keep_ = true; }            ///< the destructor removes nothing

 private:
  std::filesystem::path directory_;
  int mark_ = -1;
  bool keep_ = false;
};

/// Calls build(directory, report) with a directory beside `given`, writes the manifest and renames the directory; or
/// returns the report of the corpus that is there if it was built with the same `options` and `force` is false.
/// Whatever build() throws, nothing of what it wrote stays. Throws UsageError if the output is something else than a
/// corpus, was built with other options or by other rules, or is being built; IoError for a disk that fails.
CorpusReport build_in_place(const std::string& given, bool force, const nlohmann::json& options,
                            const std::function<void(const std::filesystem::path&, CorpusReport&)>& build, Log& log);

}  // namespace emox
