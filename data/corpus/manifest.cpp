#include "data/corpus/manifest.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "data/format/atomic_file.h"
#include "runtime/core/error.h"

namespace emox {
namespace {
using nlohmann::json;

/// Raised when a rule changes what it writes: older corpora then no longer pass for the same.
constexpr int kRulesVersion = 1;

json options_json(const CorpusOptions& options, const std::vector<Domain>& domains) {
  json list = json::array();
  for (const Domain& d : domains) {
    list.push_back({{"label", d.label}, {"packages", d.packages}, {"files", d.files}, {"rule", name_of(d.rule)}});
  }
  return {{"bytes_per_domain", options.bytes_per_domain},
          {"held_out_fraction", options.held_out_fraction},
          {"rules_version", kRulesVersion},
          {"domains", list}};
}

json domain_json(const DomainReport& d) {
  json packages = json::array();
  for (const PackageReport& p : d.packages) {
    packages.push_back({{"name", p.name}, {"version", p.version}, {"sha256", p.sha256}, {"bytes", p.bytes}});
  }
  return {{"label", d.label},
          {"packages", packages},
          {"documents", d.documents},
          {"bytes", d.bytes},
          {"tokens", d.bytes + d.documents},  // one EOS a document
          {"heldout_documents", d.held_out_documents},
          {"heldout_bytes", d.held_out_bytes},
          {"duplicates_dropped", d.duplicates},
          {"too_short_dropped", d.too_short},
          {"beyond_cap", d.beyond_cap}};
}

DomainReport domain_report(const json& j) {
  DomainReport d;
  d.label = j.at("label");
  for (const json& p : j.at("packages"))
    d.packages.push_back({p.at("name"), p.at("version"), p.at("sha256"), p.at("bytes")});
  d.documents = j.at("documents");
  d.bytes = j.at("bytes");
  d.held_out_documents = j.at("heldout_documents");
  d.held_out_bytes = j.at("heldout_bytes");
  d.duplicates = j.at("duplicates_dropped");
  d.too_short = j.at("too_short_dropped");
  d.beyond_cap = j.at("beyond_cap");
  return d;
}

json domains_json(const CorpusReport& report) {
  json list = json::array();
  for (const DomainReport& d : report.domains) list.push_back(domain_json(d));
  return list;
}

}  // namespace

json to_json(const CorpusReport& report) {
  return {{"output", report.output},
          {"reused", report.reused},
          {"seconds", report.seconds},
          {"sources", source_lines(report)},
          {"domains", domains_json(report)}};
}

void write_manifest(const std::filesystem::path& directory, const CorpusOptions& options,
                    const std::vector<Domain>& domains, const CorpusReport& report) {
  const json manifest = {{"format", "emox-corpus-1"},
                         {"tokenizer", "byte"},
                         {"options", options_json(options, domains)},
                         {"domains", domains_json(report)}};
  write_file_atomically(directory / kManifestName, manifest.dump(1) + "\n");
}

json read_corpus_manifest(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / kManifestName;
  std::ifstream file(path);
  const json manifest = json::parse(file, nullptr, false);
  require<UsageError>(manifest.is_object() && manifest.value("format", "") == "emox-corpus-1",
                      "{} is not the manifest of a corpus: remove {} or choose another output", path.string(),
                      directory.string());
  return manifest;
}

CorpusReport report_of(const json& manifest) {
  CorpusReport report;
  try {
    for (const json& d : manifest.at("domains")) report.domains.push_back(domain_report(d));
  } catch (const json::exception& e) {
    fail<UsageError>("the manifest of the corpus is damaged ({}): build it again with --force", e.what());
  }
  return report;
}

bool same_options(const json& manifest, const CorpusOptions& options, const std::vector<Domain>& domains) {
  return manifest.value("options", json()) == options_json(options, domains);
}

}  // namespace emox
