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

/// Calls build(directory, report) with a directory beside `output`, writes the manifest and renames the directory; or
/// returns the report of the corpus that is there if it was built with the same `options` and `force` is false.
/// Whatever build() throws, nothing of what it wrote stays. Throws UsageError if the output is something else than a
/// corpus, was built with other options or by other rules, or is being built; IoError for a disk that fails.
CorpusReport build_in_place(const std::string& output, bool force, const nlohmann::json& options,
                            const std::function<void(const std::filesystem::path&, CorpusReport&)>& build, Log& log);

}  // namespace emox
