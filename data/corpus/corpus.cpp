#include "data/corpus/corpus.h"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <set>
#include <utility>

#include "data/corpus/assemble.h"
#include "data/corpus/manifest.h"
#include "data/corpus/packages.h"
#include "data/format/atomic_file.h"
#include "runtime/core/error.h"
#include "runtime/telemetry/log.h"

namespace emox {
namespace {
namespace fs = std::filesystem;

/// Held while a build runs, so that two builds never write into one another. The kernel lets go of it when the process
/// ends.
class BuildLock {
 public:
  explicit BuildLock(const fs::path& path)
      : path_(path), fd_(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
    require<IoError>(fd_ >= 0, "cannot create {}; check that the directory is writable", path.string());
    // A file system without locks (another errno) is used without; a name that no longer leads to the locked file means
    // that its holder has just ended and a third build may have begun.
    const bool taken = ::flock(fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    struct stat mine {
    }, named{};
    const bool same = ::fstat(fd_, &mine) == 0 && ::stat(path.c_str(), &named) == 0 && mine.st_ino == named.st_ino;
    if (!taken && same) return;
    ::close(fd_);
    fail<UsageError>("another `emox corpus` is building here ({} is locked): wait for it", path.string());
  }
  ~BuildLock() {
    ::unlink(path_.c_str());
    ::close(fd_);
  }
  BuildLock(const BuildLock&) = delete;
  BuildLock& operator=(const BuildLock&) = delete;

 private:
  fs::path path_;
  int fd_;
};

fs::path with_suffix(const fs::path& path, const char* suffix) { return path.string() + suffix; }

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

/// True if a whole corpus with the same options is at the output. Throws if what is there must not be replaced.
bool already_built(const CorpusOptions& options, const std::vector<Domain>& domains) {
  const fs::path output = options.output;
  if (!fs::exists(output) || (fs::is_directory(output) && fs::is_empty(output))) return false;
  require<UsageError>(fs::exists(output / kManifestName),
                      "{} exists and is no corpus (it has no {}): remove it or choose another output", options.output,
                      kManifestName);
  if (options.force) return false;
  require<UsageError>(
      same_options(read_corpus_manifest(output), options, domains),
      "{} holds a corpus that was built with other options: choose another output, or rebuild it with --force",
      options.output);
  return true;
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

std::int64_t sources_of(const std::vector<Document>& documents) {
  std::set<std::size_t> groups;
  for (const Document& d : documents) groups.insert(d.group);
  return static_cast<std::int64_t>(groups.size());
}

bool enough_held_out(const Parts& parts) {
  const auto enough = [](const std::vector<Document>& part) {
    return static_cast<std::int64_t>(part.size()) >= kMinHeldOut && sources_of(part) >= kMinHeldOutSources;
  };
  return enough(parts.tune) && enough(parts.held_out);
}

/// Divides all domains at once, since what one trains on is not held out in another. A domain that would hold out too
/// few documents, or from too few sources, gets a larger share.
std::vector<Parts> divide_all(std::vector<Work>& domains, SpanMarks& spans) {
  for (Work& w : domains) w.report.held_out_sixteenths = kSmallestShare;
  for (;;) {
    std::vector<Parts> parts;
    for (const Work& w : domains) parts.push_back(divide(w.pieces, static_cast<int>(w.report.held_out_sixteenths)));
    spans = mark_spans(parts);
    bool enough = true;
    for (std::size_t i = 0; i < domains.size(); ++i) {
      DomainReport& report = domains[i].report;
      report.too_short = parts[i].too_short;
      report.repeated = drop_repeated(parts[i], spans);
      if (enough_held_out(parts[i]) || report.held_out_sixteenths == kLargestShare) continue;
      report.held_out_sixteenths *= 2;
      enough = false;
    }
    if (enough) return parts;
  }
}

PartReport describe(const std::vector<Document>& documents, const SpanMarks& spans, bool held_out) {
  PartReport report;
  report.documents = static_cast<std::int64_t>(documents.size());
  report.bytes = bytes_of(documents);
  report.sources = sources_of(documents);
  if (!held_out) return report;
  report.in_training_file = repeated_share(documents, spans, kInTrainingFile);
  report.in_training_text = repeated_share(documents, spans, kInTraining);
  report.in_reported_text = repeated_share(documents, spans, kInReport);
  return report;
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
    report.train = describe(parts[i].train, spans, false);
    report.tune = describe(parts[i].tune, spans, true);
    report.held_out = describe(parts[i].held_out, spans, true);
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

/// Puts the finished directory in the place of what is there. A crash in between leaves no corpus, never a mixture of
/// two.
void move_into_place(const fs::path& work, const fs::path& output) {
  const fs::path old = with_suffix(output, ".old");
  fs::remove_all(old);
  if (fs::exists(output)) fs::rename(output, old);
  fs::rename(work, output);
  const fs::path parent = output.parent_path();
  flush_directory(parent.empty() ? fs::path(".") : parent);
  fs::remove_all(old);
}

void remove_downloads(const std::vector<std::vector<Package>>& packages, const fs::path& directory) {
  for (const auto& of_domain : packages) {
    for (const Package& p : of_domain) {
      if (p.downloaded) fs::remove(p.file);
    }
  }
  if (fs::is_empty(directory)) fs::remove(directory);
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

void build(const CorpusOptions& options, const std::vector<Domain>& domains, CorpusReport& report, Log& log) {
  const fs::path output = options.output;
  const fs::path work = with_suffix(output, ".partial");
  const fs::path downloads =
      options.download_directory.empty() ? with_suffix(output, ".packages") : fs::path(options.download_directory);
  const auto packages = fetch_all(domains, downloads, log);
  fs::remove_all(work);
  fs::create_directories(work);
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
  write_manifest(work, options, domains, report);
  move_into_place(work, output);
  if (!options.keep_packages) remove_downloads(packages, downloads);
}

}  // namespace

CorpusReport build_corpus(const CorpusOptions& options, Log& log) {
  return build_corpus(options, standard_domains(), log);
}

CorpusReport build_corpus(const CorpusOptions& given, const std::vector<Domain>& table, Log& log) {
  const auto start = std::chrono::steady_clock::now();
  CorpusOptions options = given;
  while (options.output.size() > 1 && options.output.ends_with('/')) options.output.pop_back();
  check(options);
  const std::vector<Domain> domains = chosen_domains(options, table);
  CorpusReport report;
  try {
    const fs::path parent = fs::path(options.output).parent_path();
    if (!parent.empty()) fs::create_directories(parent);
    if (already_built(options, domains)) {
      report = report_of(read_corpus_manifest(options.output));
      report.reused = true;
      log.info("{} is already built with these options ({} domains); use --force to build it again", options.output,
               report.domains.size());
    } else {
      const BuildLock lock(with_suffix(options.output, ".lock"));
      build(options, domains, report, log);
    }
  } catch (const fs::filesystem_error& e) {
    fail<IoError>("building {} failed: {}; check permissions and free space, and run again", options.output, e.what());
  }
  report.output = options.output;
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

std::vector<std::string> source_lines(const CorpusReport& report) {
  std::vector<std::string> lines;
  for (const DomainReport& d : report.domains)
    lines.push_back(fmt::format("{}:1:{}/{}", d.label, report.output, d.label));
  return lines;
}

}  // namespace emox
