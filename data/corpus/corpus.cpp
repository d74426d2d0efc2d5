#include "data/corpus/corpus.h"

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>
#include <utility>

#include "data/corpus/assemble.h"
#include "data/corpus/manifest.h"
#include "data/corpus/packages.h"
#include "data/corpus/place.h"
#include "runtime/core/error.h"
#include "runtime/telemetry/log.h"

namespace emox {
namespace {
namespace fs = std::filesystem;

std::vector<Domain> chosen_domains(const CorpusOptions& options, const std::vector<Domain>& table) {
  std::vector<std::string> known;
  for (const Domain& d : table) known.push_back(d.label);
  for (const std::string& label : options.domains) {
    require<UsageError>(std::find(known.begin(), known.end(), label) != known.end(),
                        "unknown domain '{}'; the domains are {}", label, fmt::join(known, ", "));
  }
  std::vector<Domain> chosen;
  for (const Domain& d : table) {
    const auto& wanted = options.domains;
    if (wanted.empty() || std::find(wanted.begin(), wanted.end(), d.label) != wanted.end()) chosen.push_back(d);
  }
  return chosen;
}

void check(const CorpusOptions& options) {
  require<UsageError>(!options.output.empty(), "the corpus needs an output directory");
  require<UsageError>(options.bytes_per_domain >= 10'000, "{} bytes a domain are too few; give at least 10000",
                      options.bytes_per_domain);
  require<UsageError>(options.held_out_fraction > 0 && options.held_out_fraction <= 0.5,
                      "a held-out fraction of {} is not in (0, 0.5]", options.held_out_fraction);
}

/// A domain on its way from packages to files.
struct Work {
  DomainReport report;
  Pieces pieces;
};

Work read_domain(const Domain& domain, const std::vector<Package>& packages, const fs::path& directory,
                 SeenTexts& seen) {
  Work work;
  work.report.label = domain.label;
  const fs::path root = directory / "unpacked";
  for (const Package& p : packages) {
    unpack_package(p, root);
    work.report.packages.push_back({p.name, p.version, p.sha256, static_cast<std::int64_t>(fs::file_size(p.file))});
  }
  work.pieces = collect_pieces(domain, root, seen, work.report);
  fs::remove_all(root);
  return work;
}

/// Divides all domains at once, since what one trains on is not held out in another. A domain that would hold out too
/// few documents, or from too few sources, gets a larger share.
std::vector<Parts> divide_all(std::vector<Work>& domains, SpanMarks& spans) {
  std::vector<int> bits(domains.size(), kHeldOutBits);
  for (;;) {
    std::vector<Parts> parts;
    for (std::size_t i = 0; i < domains.size(); ++i) parts.push_back(divide(domains[i].pieces, bits[i]));
    spans = mark_spans(parts);
    bool enough = true;
    for (std::size_t i = 0; i < domains.size(); ++i) {
      DomainReport& report = domains[i].report;
      report.too_short = parts[i].too_short;
      report.repeated = drop_repeated(parts[i], spans);
      report.held_out_share = std::ldexp(1.0, -bits[i]);
      if (enough_held_out(parts[i]) || bits[i] == kFewestHeldOutBits) continue;
      --bits[i];
      enough = false;
    }
    if (enough) return parts;
  }
}

/// From the texts to the files below `directory`.
void write_domains(std::vector<Work>& domains, const CorpusOptions& options, const fs::path& directory) {
  SpanMarks spans(0);
  std::vector<Parts> parts = divide_all(domains, spans);
  for (std::size_t i = 0; i < domains.size(); ++i) {
    domains[i].report.left_out = cap(parts[i], options.bytes_per_domain, options.held_out_fraction);
    for (const Document& d : parts[i].train) spans.mark(d.text, kInTrainingFile);
  }
  for (std::size_t i = 0; i < domains.size(); ++i) {
    DomainReport& report = domains[i].report;
    report.train = describe(parts[i].train, nullptr);
    report.tune = describe(parts[i].tune, &spans);
    report.held_out = describe(parts[i].held_out, &spans);
    // A part that results are reported on is not what it is called while its files are empty.
    for (const auto& [name, part] : {std::pair("training", &report.train), std::pair("tuning", &report.tune),
                                     std::pair("reported", &report.held_out)}) {
      require<IoError>(part->documents > 0,
                       "domain {}: no document is left for the {} part ({} duplicates, {} too short, {} that repeat "
                       "training text were dropped); the packages are laid out otherwise in this release",
                       report.label, name, report.duplicates, report.too_short, report.repeated);
    }
    fs::create_directories(directory / report.label);
    write_parts(directory / report.label, domains[i].pieces, parts[i]);
  }
}

/// `made`: the directory too is of this build.
void remove_downloads(const std::vector<std::vector<Package>>& packages, const fs::path& directory, bool made) {
  // The corpus is built: what cannot be removed stays.
  std::error_code ignored;
  for (const auto& of_domain : packages) {
    for (const Package& p : of_domain) {
      if (p.downloaded) fs::remove(p.file, ignored);
    }
  }
  if (made) fs::remove(directory, ignored);  // only an empty one
}

std::vector<std::vector<Package>> fetch_all(const std::vector<Domain>& domains, const fs::path& directory, Log& log) {
  std::vector<std::string> names;
  for (const Domain& d : domains) names.insert(names.end(), d.packages.begin(), d.packages.end());
  const std::vector<Package> packages = fetch_packages(names, directory, log);
  std::vector<std::vector<Package>> grouped;
  std::size_t next = 0;
  for (const Domain& d : domains) {
    grouped.emplace_back(packages.begin() + static_cast<std::ptrdiff_t>(next),
                         packages.begin() + static_cast<std::ptrdiff_t>(next + d.packages.size()));
    next += d.packages.size();
  }
  return grouped;
}

/// The packages, by domain; those that this call downloaded go again unless they are to stay.
std::vector<std::vector<Package>> build(const CorpusOptions& options, const std::vector<Domain>& domains,
                                        const fs::path& downloads, const fs::path& work, CorpusReport& report,
                                        Log& log) {
  auto packages = fetch_all(domains, downloads, log);
  SeenTexts seen;
  std::vector<Work> read;
  for (std::size_t i = 0; i < domains.size(); ++i) {
    read.push_back(read_domain(domains[i], packages[i], work, seen));
    const Work& w = read.back();
    log.info("[{}/{}] {:<22} {:>5} files, {:>6} pieces of text, {} duplicates dropped", i + 1, domains.size(),
             w.report.label, w.pieces.files.size(), w.pieces.pieces.size(), w.report.duplicates);
  }
  log.info("dividing into training, tuning and reported text, and dropping what repeats training text");
  write_domains(read, options, work);
  for (Work& w : read) report.domains.push_back(std::move(w.report));
  return packages;
}

}  // namespace

CorpusReport build_corpus(const CorpusOptions& options, Log& log) {
  return build_corpus(options, standard_domains(), log);
}

CorpusReport build_corpus(const CorpusOptions& options, const std::vector<Domain>& table, Log& log) {
  check(options);
  const std::vector<Domain> domains = chosen_domains(options, table);
  std::vector<std::vector<Package>> packages;
  const fs::path downloads =
      options.download_directory.empty() ? beside(options.output, ".packages") : fs::path(options.download_directory);
  std::error_code unknown;
  const bool made = !fs::exists(downloads, unknown) && !unknown;
  CorpusReport report = build_in_place(
      options.output, options.force, options_json(options, domains),
      [&](const fs::path& work, CorpusReport& r) { packages = build(options, domains, downloads, work, r, log); }, log);
  if (!options.keep_packages && !packages.empty()) remove_downloads(packages, downloads, made);
  return report;
}

std::vector<std::string> dropped_lines(const DomainReport& report) {
  const std::pair<std::int64_t, const char*> reasons[] = {
      {report.text.links, "links or special files"},
      {report.text.binary_files, "binary files"},
      {report.text.damaged_files, "damaged files (from the damage on)"},
      {report.text.binary, "documents with a zero byte"},
      {report.text.not_utf8, "documents that are not UTF-8"},
      {report.text.no_text, "lines without a JSON object with a string `text`"},
      {report.too_short, "documents that are too short"},
      {report.duplicates, "duplicates"},
      {report.repeated, "held-out documents that repeat other text"},
      {report.left_out, "documents for which there was no room"},
  };
  std::vector<std::string> lines;
  for (const auto& [number, reason] : reasons)
    if (number > 0) lines.push_back(fmt::format("{} {}", number, reason));
  return lines;
}

std::vector<std::string> source_lines(const CorpusReport& report) {
  std::vector<std::string> lines;
  for (const DomainReport& d : report.domains)
    lines.push_back(fmt::format("{}:1:{}/{}", d.label, report.output, d.label));
  return lines;
}

}  // namespace emox
