#include "data/corpus/assemble.h"

#include <fmt/ranges.h>
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>
#include <tuple>

#include "data/corpus/extract.h"
#include "data/corpus/text.h"
#include "data/format/npy.h"
#include "data/format/token_file.h"
#include "data/loader/heldout.h"
#include "data/tokenize/tokenizer.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/files/atomic_file.h"

namespace emox {
namespace {
namespace fs = std::filesystem;

/// Other hashes than the one that finds duplicates, so that the uses are independent.
constexpr XXH64_hash_t kOrderSeed = 0x656D6F78;
constexpr XXH64_hash_t kPartSeed = 0x70617274;

std::uint64_t hash_of(std::string_view text, XXH64_hash_t seed) {
  return XXH3_64bits_withSeed(text.data(), text.size(), seed);
}

std::vector<fs::path> files_of(const Domain& domain, const fs::path& root) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    // Links would bring the same file twice.
    if (!entry.is_regular_file() || entry.is_symlink()) continue;
    if (matches(domain.files, entry.path().lexically_relative(root).generic_string())) files.push_back(entry.path());
  }
  require<IoError>(!files.empty(),
                   "domain {}: no file in {} matches {}; the packages are laid out otherwise in this release",
                   domain.label, fmt::join(domain.packages, ", "), fmt::join(domain.files, " "));
  std::sort(files.begin(), files.end());
  return files;
}

bool has_entries(Rule rule) { return rule == Rule::Dictd || rule == Rule::Fortune || rule == Rule::Sword; }

double share_of(std::int64_t part, std::int64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

}  // namespace

std::uint64_t part_hash(std::string_view text) { return hash_of(text, kPartSeed); }
std::uint64_t order_hash(std::string_view text) { return hash_of(text, kOrderSeed); }
std::uint64_t text_hash(std::string_view text) { return hash_of(text, 0); }

Part part_of(std::uint64_t hash, int bits) {
  const std::uint64_t first = hash >> (64 - bits);
  return first == 0 ? Part::Report : first + 1 == std::uint64_t{1} << bits ? Part::Tune : Part::Train;
}

void order_documents(std::vector<Document>& documents) {
  std::vector<std::pair<std::uint64_t, Document>> keyed;
  keyed.reserve(documents.size());
  for (Document& d : documents) {
    const std::uint64_t key = order_hash(d.text);
    keyed.emplace_back(key, std::move(d));
  }
  std::sort(keyed.begin(), keyed.end(), [](const auto& a, const auto& b) {
    return std::tie(a.first, a.second.text, a.second.group) < std::tie(b.first, b.second.text, b.second.group);
  });
  for (std::size_t i = 0; i < keyed.size(); ++i) documents[i] = std::move(keyed[i].second);
}

void spread_sources(std::vector<Document>& documents) {
  std::map<std::size_t, std::size_t> seen;
  std::vector<std::pair<std::size_t, Document>> ranked;
  ranked.reserve(documents.size());
  for (Document& d : documents) {
    const std::size_t rank = seen[d.group]++;
    ranked.emplace_back(rank, std::move(d));
  }
  std::stable_sort(ranked.begin(), ranked.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (std::size_t i = 0; i < ranked.size(); ++i) documents[i] = std::move(ranked[i].second);
}

void add_file(Pieces& to, const std::string& name, const std::vector<std::string>& texts, bool entries, SeenTexts& seen,
              DomainReport& report) {
  const std::size_t file = to.files.size();
  to.files.push_back(name);
  if (!entries) to.groups.push_back({file, -1, part_hash(name)});
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const std::string text = clean_text(texts[i]);
    if (entries) to.groups.push_back({file, static_cast<std::int64_t>(i), part_hash(text)});
    for (std::string& piece : split_text(text)) {
      if (seen.insert(text_hash(piece)).second)
        to.pieces.push_back({std::move(piece), to.groups.size() - 1});
      else
        ++report.duplicates;
    }
  }
}

Pieces collect_pieces(const Domain& domain, const fs::path& root, SeenTexts& seen, DomainReport& report) {
  Pieces all;
  for (const fs::path& file : files_of(domain, root))
    add_file(all, file.lexically_relative(root).generic_string(), extract_file(domain.rule, file),
             has_entries(domain.rule), seen, report);
  return all;
}

Parts divide(const Pieces& from, int bits) {
  Parts parts;
  std::vector<Document>* const of_part[] = {&parts.train, &parts.tune, &parts.held_out};
  const auto file_of = [&](const Document& d) { return from.groups[d.group].file; };
  for (const Document& piece : from.pieces) {
    auto& documents = *of_part[idx(part_of(from.groups[piece.group].hash, bits))];
    const bool neighbours = !documents.empty() && file_of(documents.back()) == file_of(piece);
    if (!neighbours || !join_short(documents.back().text, piece.text)) documents.push_back(piece);
  }
  for (std::vector<Document>* documents : of_part) {
    parts.too_short += static_cast<std::int64_t>(
        std::erase_if(*documents, [](const Document& d) { return d.text.size() < kMinDocumentBytes; }));
    order_documents(*documents);
  }
  return parts;
}

SpanMarks mark_spans(const std::vector<Parts>& domains) {
  std::size_t bytes = 0;
  for (const Parts& p : domains) bytes += idx(bytes_of(p.tune) + bytes_of(p.held_out));
  SpanMarks spans(bytes);
  const auto all = [&](std::vector<Document> Parts::*part, auto&& visit) {
    for (const Parts& p : domains)
      for (const Document& d : p.*part) visit(d.text);
  };
  all(&Parts::held_out, [&](const std::string& text) { spans.add(text); });
  all(&Parts::tune, [&](const std::string& text) { spans.add(text); });
  all(&Parts::held_out, [&](const std::string& text) { spans.mark(text, kInReport); });
  all(&Parts::train, [&](const std::string& text) { spans.mark(text, kInTraining); });
  return spans;
}

std::int64_t drop_repeated(Parts& parts, const SpanMarks& spans) {
  const auto drop = [&](std::vector<Document>& documents, std::uint8_t marks) {
    return std::erase_if(documents, [&](const Document& d) {
      return share_of(spans.repeated_bytes(d.text, marks), static_cast<std::int64_t>(d.text.size())) > kMaxRepeated;
    });
  };
  return static_cast<std::int64_t>(drop(parts.held_out, kInTraining) + drop(parts.tune, kInTraining | kInReport));
}

std::int64_t cap(Parts& parts, std::int64_t bytes_per_domain, double held_out_fraction) {
  std::int64_t bytes = 0;
  std::size_t within = 0;
  while (within < parts.train.size()) {
    bytes += static_cast<std::int64_t>(parts.train[within].text.size());
    if (bytes > bytes_per_domain) break;
    ++within;
  }
  // The fraction is of what the cap leaves, else a large domain would hold out far more than it trains on.
  const auto wanted = static_cast<std::size_t>(std::ceil(held_out_fraction * static_cast<double>(within)));
  const std::size_t held = std::max(wanted, idx(kMinHeldOut));
  spread_sources(parts.tune);
  spread_sources(parts.held_out);
  std::size_t left_out = 0;
  const auto cut = [&](std::vector<Document>& documents, std::size_t count) {
    if (documents.size() <= count) return;
    left_out += documents.size() - count;
    documents.resize(count);
  };
  cut(parts.train, within);
  cut(parts.tune, held);
  cut(parts.held_out, held);
  return static_cast<std::int64_t>(left_out);
}

std::int64_t bytes_of(const std::vector<Document>& documents) {
  return std::accumulate(documents.begin(), documents.end(), std::int64_t{0}, [](std::int64_t n, const Document& d) {
    return n + static_cast<std::int64_t>(d.text.size());
  });
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

PartReport describe(const std::vector<Document>& documents, const SpanMarks* spans) {
  PartReport report;
  report.documents = static_cast<std::int64_t>(documents.size());
  report.bytes = bytes_of(documents);
  report.sources = sources_of(documents);
  if (spans == nullptr) return report;
  report.in_training_file = repeated_share(documents, *spans, kInTrainingFile);
  report.in_training_text = repeated_share(documents, *spans, kInTraining);
  report.in_reported_text = repeated_share(documents, *spans, kInReport);
  return report;
}

double repeated_share(const std::vector<Document>& documents, const SpanMarks& spans, std::uint8_t marks) {
  std::int64_t repeated = 0;
  for (const Document& d : documents) repeated += spans.repeated_bytes(d.text, marks);
  return share_of(repeated, bytes_of(documents));
}

void write_parts(const fs::path& directory, const Pieces& pieces, const Parts& parts) {
  // Only groups that are there get a number, in the order of the files.
  std::map<std::size_t, std::int64_t> numbers;
  for (const auto* documents : {&parts.train, &parts.tune, &parts.held_out})
    for (const Document& d : *documents) numbers.emplace(d.group, 0);
  std::string names;
  std::int64_t next = 0;
  for (auto& [group, number] : numbers) {
    number = next++;
    const Group& g = pieces.groups[group];
    names += printable(pieces.files[g.file]);
    if (g.entry >= 0) names += fmt::format("#{}", g.entry);
    names += '\n';
  }
  write_file_atomically(directory / kFileNames, names);

  const auto write = [&](const std::string& name, const std::vector<Document>& documents) {
    write_documents(directory, name, documents, [&](std::size_t group) { return numbers.at(group); });
  };
  write("train", parts.train);
  write(kTunePart, parts.tune);
  write(kReportPart, parts.held_out);
}

void write_documents(const fs::path& directory, const std::string& name, const std::vector<Document>& documents,
                     const std::function<std::int64_t(std::size_t)>& number_of_group) {
  const auto tokenizer = make_tokenizer("byte");
  std::vector<std::uint16_t> tokens;
  std::vector<std::int64_t> offsets = {0};
  std::vector<std::int64_t> groups;
  for (const Document& document : documents) {
    for (const std::int32_t id : tokenizer->encode(document.text)) tokens.push_back(static_cast<std::uint16_t>(id));
    tokens.push_back(static_cast<std::uint16_t>(tokenizer->eos()));
    offsets.push_back(static_cast<std::int64_t>(tokens.size()));
    groups.push_back(number_of_group(document.group));
  }
  const fs::path file = directory / (name + ".npy");
  write_npy(file, std::span<const std::uint16_t>(tokens));
  write_npy(document_index_path(file), std::span<const std::int64_t>(offsets));
  write_npy(document_files_path(file), std::span<const std::int64_t>(groups));
}

}  // namespace emox
