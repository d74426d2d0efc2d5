// corpus.json: what a corpus was built from and with, and how much of it there is.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "data/corpus/corpus.h"

namespace emox {

inline constexpr const char* kManifestName = "corpus.json";

/// Writes <directory>/corpus.json. The same packages and options give the same bytes.
void write_manifest(const std::filesystem::path& directory, const CorpusOptions& options,
                    const std::vector<Domain>& domains, const CorpusReport& report);
/// Throws UsageError if the file is no manifest of a corpus.
nlohmann::json read_corpus_manifest(const std::filesystem::path& directory);
CorpusReport report_of(const nlohmann::json& manifest);
/// True if the options that decide the content are the same: cap, held-out fraction, domains and their rules.
bool same_options(const nlohmann::json& manifest, const CorpusOptions& options, const std::vector<Domain>& domains);

}  // namespace emox
