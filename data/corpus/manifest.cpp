#include "data/corpus/manifest.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/core/error.h"
#include "runtime/files/atomic_file.h"

namespace emox {
namespace {
using nlohmann::json;

/// Raised when a rule changes what it writes: older corpora then no longer pass for the same.
constexpr int kRulesVersion = 2;
constexpr const char* kFormat = "emox-corpus-1";

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

json text_json(const TextCounts& t) {
  return {{"files", t.files},
          {"bytes", t.bytes},
          {"links_dropped", t.links},
          {"binary_files_dropped", t.binary_files},
          {"damaged_files", t.damaged_files},
          {"binary_dropped", t.binary},
          {"not_utf8_dropped", t.not_utf8},
          {"no_text_dropped", t.no_text}};
}

TextCounts text_counts(const json& j) {
  return {j.at("files"),         j.at("bytes"),          j.at("links_dropped"),    j.at("binary_files_dropped"),
          j.at("damaged_files"), j.at("binary_dropped"), j.at("not_utf8_dropped"), j.at("no_text_dropped")};
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
          {"held_out_share", d.held_out_share},
          {"duplicates_dropped", d.duplicates},
          {"too_short_dropped", d.too_short},
          {"repeated_dropped", d.repeated},
          {"left_out", d.left_out},
          {"text", text_json(d.text)}};
}

DomainReport domain_report(const json& j) {
  DomainReport d;
  d.label = j.at("label");
  for (const json& p : j.at("packages"))
    d.packages.push_back({p.at("name"), p.at("version"), p.at("sha256"), p.at("bytes")});
  d.train = part_report(j.at("train"));
  d.tune = part_report(j.at("tune"));
  d.held_out = part_report(j.at("heldout"));
  d.held_out_share = j.at("held_out_share");
  d.duplicates = j.at("duplicates_dropped");
  d.too_short = j.at("too_short_dropped");
  d.repeated = j.at("repeated_dropped");
  d.left_out = j.at("left_out");
  d.text = text_counts(j.at("text"));
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

json rules_json() { return {{"rules_version", kRulesVersion}}; }

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

void write_manifest(const std::filesystem::path& directory, const json& options, const CorpusReport& report) {
  const json manifest = {
      {"format", kFormat}, {"tokenizer", "byte"}, {"options", options}, {"domains", domains_json(report)}};
  write_file_atomically(directory / kManifestName, manifest.dump(1) + "\n");
}

json read_corpus_manifest(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / kManifestName;
  std::ifstream file(path);
  json manifest = json::parse(file, nullptr, false);
  const auto format = manifest.is_object() ? manifest.find("format") : manifest.end();
  require<UsageError>(manifest.is_object() && format != manifest.end() && *format == kFormat,
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

void check_same_options(const json& manifest, const json& options, const std::string& output) {
  const auto built = manifest.find("options");
  if (built != manifest.end() && *built == options) return;
  const auto rules = built != manifest.end() && built->is_object() ? built->find("rules_version") : manifest.end();
  const bool known = built != manifest.end() && built->is_object() && rules != built->end();
  require<UsageError>(known && *rules == kRulesVersion,
                      "{} holds a corpus that was built by version {} of the rules; this emox has version {}, by which "
                      "nothing is held out that repeats training text: rebuild it with --force, or choose another "
                      "output to keep it for the runs that were trained on it",
                      output, known ? rules->dump() : "?", kRulesVersion);
  fail<UsageError>(
      "{} holds a corpus that was built with other options or from other files: choose another output, or "
      "rebuild it with --force",
      output);
}

}  // namespace emox
