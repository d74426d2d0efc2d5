#include "data/corpus/text_corpus.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "data/corpus/assemble.h"
#include "data/corpus/manifest.h"
#include "data/corpus/place.h"
#include "data/corpus/text.h"
#include "data/corpus/text_files.h"
#include "data/corpus/text_parts.h"
#include "data/format/token_file.h"
#include "data/loader/heldout.h"
#include "data/tokenize/tokenizer.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/core/quoted.h"
#include "runtime/telemetry/log.h"

namespace emox {
namespace {
namespace fs = std::filesystem;

/// Below this much text the whole is read again with a larger share when too little was held out.
constexpr std::int64_t kSmallText = 64 << 20;
/// The share held out is halved until a part is expected to have no more than this.
constexpr std::int64_t kEnoughHeldOut = 8 << 20;

/// A label while its text is read.
struct Reading {
  std::string label;
  std::vector<InputFile> files;
  TextCounts listed;
  int bits = kHeldOutBits;  ///< of the share held out
  DomainReport report;
  Parts parts;  ///< without the training part
};

/// Why a document is in no part; nothing if it is in one.
enum class Drop { None, Binary, NotUtf8, TooShort, Duplicate };
Drop judge(const std::string& text, HashSet& seen) {
  if (text.find('\0') != std::string::npos) return Drop::Binary;
  if (!is_utf8(text)) return Drop::NotUtf8;
  if (text.size() < kMinDocumentBytes) return Drop::TooShort;
  return seen.insert(text_hash(text)) ? Drop::None : Drop::Duplicate;
}

void count(Drop drop, DomainReport& report) {
  if (drop == Drop::Binary) ++report.text.binary;
  if (drop == Drop::NotUtf8) ++report.text.not_utf8;
  if (drop == Drop::TooShort) ++report.too_short;
  if (drop == Drop::Duplicate) ++report.duplicates;
}

/// Reads a label's files: training documents to the disk, the others into `parts`.
class LabelReader {
 public:
  LabelReader(Reading& reading, const fs::path& directory, HashSet& seen)
      : r_(reading), by_file_(reading.files.size() >= kManyFiles), train_(directory), seen_(seen) {
    r_.report = {};
    r_.report.label = r_.label;
    r_.report.text = r_.listed;
    r_.report.held_out_share = std::ldexp(1.0, -r_.bits);
  }

  void read(const InputFile& file, std::int64_t done, Progress& progress) {
    TextReader reader(file, r_.report.text);
    // Of a file as a whole; else each document has its own.
    const bool whole = by_file_ && !reader.is_json_lines();
    const std::uint64_t hash_of_file = part_hash(file.name);
    std::size_t group = 0;
    bool named = false;
    std::string text;
    for (std::int64_t number = 0; reader.next(text); ++number) {
      progress.at(done + reader.position());
      const Drop drop = judge(text, seen_);
      if (drop == Drop::Binary && number == 0 && !reader.is_json_lines()) {
        ++r_.report.text.binary_files;
        return;
      }
      count(drop, r_.report);
      if (drop != Drop::None) continue;
      if (!whole || !named) group = train_.name(whole ? file.name : fmt::format("{}#{}", file.name, number));
      named = true;
      const std::uint64_t hash = whole ? hash_of_file : part_hash(text);
      add({std::move(text), group}, hash);
    }
  }

  void finish() {
    train_.finish();
    r_.parts = {{}, tune_.take(), held_out_.take(), 0};
  }

 private:
  void add(Document document, std::uint64_t hash) {
    const Part part = part_of(hash, r_.bits);
    if (part != Part::Train) {
      r_.report.left_out += (part == Part::Tune ? tune_ : held_out_).add(std::move(document));
      return;
    }
    PartReport& train = r_.report.train;
    if (train.documents == 0 || document.group != last_group_) ++train.sources;
    last_group_ = document.group;
    ++train.documents;
    train.bytes += static_cast<std::int64_t>(document.text.size());
    train_.add(document);
  }

  Reading& r_;
  bool by_file_;
  TrainingFile train_;
  HashSet& seen_;
  HeldOutPart tune_, held_out_;
  std::size_t last_group_ = 0;
};

std::int64_t bytes_of(const std::vector<Reading>& labels) {
  std::int64_t bytes = 0;
  for (const Reading& r : labels) bytes += r.listed.bytes;
  return bytes;
}

void read_all(std::vector<Reading>& labels, const fs::path& directory, Log& log) {
  HashSet seen;
  Progress progress("reading", bytes_of(labels), log);
  std::int64_t done = 0;
  for (Reading& r : labels) {
    fs::create_directories(directory / r.label);
    LabelReader reader(r, directory / r.label, seen);
    for (const InputFile& file : r.files) {
      reader.read(file, done, progress);
      done += file.bytes;
      progress.at(done);
    }
    reader.finish();
    require<UsageError>(r.report.train.documents > 0, "{}: no text is left to train on: {}", r.label,
                        fmt::join(dropped_lines(r.report), ", "));
  }
}

/// Marks what the written training files have.
void mark_training(const std::vector<Reading>& labels, const fs::path& directory, SpanMarks& spans, Log& log) {
  std::int64_t total = 0, done = 0;
  for (const Reading& r : labels) total += r.report.train.bytes;
  Progress progress("comparing held-out with training text", total, log);
  std::vector<std::int32_t> ids;
  std::string text;
  for (const Reading& r : labels) {
    const TokenFile file(directory / r.label / "train.npy", kByteVocabSize);
    // Read in blocks, and no span lies across two documents: the end of one, like that of the file, marks what is
    // there.
    for (std::int64_t at = 0; at < file.size();) {
      ids.resize(idx(std::min<std::int64_t>(1 << 20, file.size() - at)));
      file.read(at, static_cast<std::int64_t>(ids.size()), ids.data());
      at += static_cast<std::int64_t>(ids.size());
      for (const std::int32_t id : ids) {
        if (id != kByteEos) {
          text += static_cast<char>(id);
          continue;
        }
        spans.mark(text, kInTraining | kInTrainingFile);
        done += static_cast<std::int64_t>(text.size());
        text.clear();
      }
      progress.at(done);
    }
  }
}

/// Divides and measures; which labels hold out too little.
std::vector<Reading*> drop_what_repeats(std::vector<Reading>& labels, const fs::path& directory, Log& log) {
  std::size_t held = 0;
  for (const Reading& r : labels) held += idx(bytes_of(r.parts.tune) + bytes_of(r.parts.held_out));
  SpanMarks spans(held);
  for (const Reading& r : labels) {
    for (const Document& d : r.parts.held_out) spans.add(d.text);
    for (const Document& d : r.parts.tune) spans.add(d.text);
  }
  for (const Reading& r : labels)
    for (const Document& d : r.parts.held_out) spans.mark(d.text, kInReport);
  mark_training(labels, directory, spans, log);
  std::vector<Reading*> few;
  for (Reading& r : labels) {
    r.report.repeated = drop_repeated(r.parts, spans);
    spread_sources(r.parts.tune);
    spread_sources(r.parts.held_out);
    r.report.tune = describe(r.parts.tune, &spans);
    r.report.held_out = describe(r.parts.held_out, &spans);
    if (!enough_held_out(r.parts)) few.push_back(&r);
  }
  return few;
}

void build(std::vector<Reading>& labels, const fs::path& directory, CorpusReport& report, Log& log) {
  for (;;) {
    read_all(labels, directory, log);
    bool again = false;
    for (Reading* r : drop_what_repeats(labels, directory, log)) {
      if (bytes_of(labels) <= kSmallText && r->bits > kFewestHeldOutBits) {
        --r->bits;
        again = true;
      } else {
        log.warn(
            "{}: only {} documents from {} sources are held out to choose settings, {} from {} to report on; "
            "losses on so few mean little",
            r->label, r->report.tune.documents, r->report.tune.sources, r->report.held_out.documents,
            r->report.held_out.sources);
      }
    }
    if (!again) break;
  }
  for (Reading& r : labels) {
    require<UsageError>(
        !r.parts.tune.empty() && !r.parts.held_out.empty(),
        "{}: {} documents ({} bytes) of text are too few to hold any out that do not repeat the others; "
        "give more text, or train on the .npy files of another program as one plain source",
        r.label, r.report.train.documents, r.report.train.bytes);
    const auto same = [](std::size_t group) { return static_cast<std::int64_t>(group); };
    write_documents(directory / r.label, kTunePart, r.parts.tune, same);
    write_documents(directory / r.label, kReportPart, r.parts.held_out, same);
    report.domains.push_back(r.report);
  }
}

/// What two builds have in common when they give the same files.
nlohmann::json options_of(const std::vector<Reading>& labels) {
  nlohmann::json options = rules_json();
  for (const Reading& r : labels) {
    std::string list;
    for (const InputFile& f : r.files) list += fmt::format("{}/{} {}/", f.name, f.bytes, f.changed);
    options["text"].push_back({{"label", r.label},
                               {"files", r.listed.files},
                               {"bytes", r.listed.bytes},
                               {"names_sizes_and_times", fmt::format("{:016x}", text_hash(list))}});
  }
  return options;
}

}  // namespace

LabelledText LabelledText::parse(const std::string& text) {
  const auto equals = text.find('=');
  require<UsageError>(equals != std::string::npos && equals > 0 && equals + 1 < text.size(),
                      "--text '{}': expected LABEL=PATH, e.g. --text notes=my/notes", text);
  const std::string label = text.substr(0, equals);
  // It names a directory, and stands in label:weight:path.
  const bool usable = printable(label) == label && label.find_first_of("/: \"'") == std::string::npos &&
                      !label.starts_with('.') && !label.starts_with('-') && label.size() <= 100 &&
                      !label.starts_with(kManifestName);
  require<UsageError>(usable,
                      "--text: the label '{}' cannot be used: at most 100 bytes of UTF-8, without blanks, quotes, "
                      "colons and slashes, and no dot, hyphen or {} at its beginning",
                      printable(label), kManifestName);
  return {label, {text.substr(equals + 1)}};
}

CorpusReport build_text_corpus(const TextCorpusOptions& options, Log& log) {
  require<UsageError>(!options.output.empty(), "the corpus needs an output directory: add --output=DIR");
  require<UsageError>(!options.texts.empty(), "no text: add --text LABEL=PATH");
  std::vector<LabelledText> merged;
  for (const LabelledText& t : options.texts) {
    const auto same = std::find_if(merged.begin(), merged.end(), [&](const auto& m) { return m.label == t.label; });
    if (same == merged.end())
      merged.push_back(t);
    else
      same->paths.insert(same->paths.end(), t.paths.begin(), t.paths.end());
  }
  std::vector<Reading> labels;
  for (const LabelledText& t : merged) {
    Reading r;
    r.label = t.label;
    r.files = list_files(t.paths, r.listed);
    while (r.listed.bytes >> r.bits > kEnoughHeldOut) ++r.bits;
    log.info("{}: {} files, {:.1f} MB", r.label, r.listed.files, 1e-6 * static_cast<double>(r.listed.bytes));
    labels.push_back(std::move(r));
  }
  return build_in_place(
      options.output, options.force, options_of(labels),
      [&](const fs::path& work, CorpusReport& report) { build(labels, work, report, log); }, log);
}

}  // namespace emox
