// corpus.json: what a corpus was built from and with, and how much of it there is.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "data/corpus/corpus.h"

namespace emox {

inline constexpr const char* kManifestName = "corpus.json";

/// What decides the content: the rules' version and, of a corpus from packages, the cap, the held-out fraction, the
/// domains and their rules.
nlohmann::json options_json(const CorpusOptions& options, const std::vector<Domain>& domains);
/// The version of the rules, alone.
nlohmann::json rules_json();

/// Writes <directory>/corpus.json. The same packages and options give the same bytes.
void write_manifest(const std::filesystem::path& directory, const nlohmann::json& options, const CorpusReport& report);
/// Throws UsageError if the file is no manifest of a corpus.
nlohmann::json read_corpus_manifest(const std::filesystem::path& directory);
CorpusReport report_of(const nlohmann::json& manifest);
/// Throws UsageError if the corpus at `output` was built by other rules or with other options, and says which.
void check_same_options(const nlohmann::json& manifest, const nlohmann::json& options, const std::string& output);

}  // namespace emox
