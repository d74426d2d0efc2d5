#include "data/corpus/manifest.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "data/format/atomic_file.h"
#include "runtime/core/error.h"

namespace emox {
namespace {
using nlohmann::json;

/// Raised when a rule changes what it writes: older corpora then no longer pass for the same.
constexpr int kRulesVersion = 2;

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

json part_json(const PartReport& p) {
  return {{"documents", p.documents},
          {"bytes", p.bytes},
          {"tokens", p.bytes + p.documents},  // one EOS a document
          {"sources", p.sources},
          {"in_training_file", p.in_training_file},
          {"in_training_text", p.in_training_text},
          {"in_reported_text", p.in_reported_text}};
}

PartReport part_report(const json& j) {
  return {j.at("documents"),        j.at("bytes"),           j.at("sources"), j.at("in_training_file"),
          j.at("in_training_text"), j.at("in_reported_text")};
}

json domain_json(const DomainReport& d) {
  json packages = json::array();
  for (const PackageReport& p : d.packages) {
    packages.push_back({{"name", p.name}, {"version", p.version}, {"sha256", p.sha256}, {"bytes", p.bytes}});
  }
  return {{"label", d.label},
          {"packages", packages},
          {"train", part_json(d.train)},
          {"tune", part_json(d.tune)},
          {"heldout", part_json(d.held_out)},
          {"held_out_sixteenths", d.held_out_sixteenths},
          {"duplicates_dropped", d.duplicates},
          {"too_short_dropped", d.too_short},
          {"repeated_dropped", d.repeated},
          {"left_out", d.left_out}};
}

DomainReport domain_report(const json& j) {
  DomainReport d;
  d.label = j.at("label");
  for (const json& p : j.at("packages"))
    d.packages.push_back({p.at("name"), p.at("version"), p.at("sha256"), p.at("bytes")});
  d.train = part_report(j.at("train"));
  d.tune = part_report(j.at("tune"));
  d.held_out = part_report(j.at("heldout"));
  d.held_out_sixteenths = j.at("held_out_sixteenths");
  d.duplicates = j.at("duplicates_dropped");
  d.too_short = j.at("too_short_dropped");
  d.repeated = j.at("repeated_dropped");
  d.left_out = j.at("left_out");
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
