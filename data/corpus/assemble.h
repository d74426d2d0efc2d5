// From the documents of a domain to its files: dropping duplicates, parts, joining, ordering, capping, writing.
//
// A group is what never comes into two parts: a source file, or an entry of a file that consists of entries. A hash of
// its name (a file) or of its text (an entry) decides its part, and nothing else does: neither the cap nor how much is
// held out. So no two corpora of the same domains, whatever their sizes, hold out what the other trains on.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "data/corpus/corpus.h"
#include "data/corpus/domains.h"
#include "data/corpus/overlap.h"

namespace emox {

/// Hashes of all texts seen so far, over all domains.
using SeenTexts = std::unordered_set<std::uint64_t>;

/// The hashes that decide the part of a group, the order of documents, and what is a duplicate: independent ones.
std::uint64_t part_hash(std::string_view name_or_text);
std::uint64_t order_hash(std::string_view text);
std::uint64_t text_hash(std::string_view text);

/// What a document is for.
enum class Part : std::uint8_t { Train, Tune, Report };

/// Each held part gets 1 of 2^bits of the sources, by the first bits of their hashes: all 0 or all 1. Fewer bits hold
/// out all that more bits do.
inline constexpr int kHeldOutBits = 4, kFewestHeldOutBits = 2;
Part part_of(std::uint64_t hash, int bits);

struct Group {
  std::size_t file = 0;     ///< index in Pieces::files
  std::int64_t entry = -1;  ///< number in the file, from 0; -1: the group is the whole file
  std::uint64_t hash = 0;   ///< decides the part
};

struct Document {
  std::string text;
  std::size_t group = 0;  ///< index in Pieces::groups; of its first piece where several entries were joined
};

/// A domain after cleaning, cutting and dropping duplicates, in the order of the files' names.
struct Pieces {
  std::vector<std::string> files;  ///< names, relative to the root
  std::vector<Group> groups;
  std::vector<Document> pieces;
};

/// `root` holds the unpacked packages. Pieces seen before, here or in an earlier domain, are dropped and counted.
/// Throws IoError if no file matches the domain's patterns (the package has changed).
Pieces collect_pieces(const Domain& domain, const std::filesystem::path& root, SeenTexts& seen, DomainReport& report);
/// The middle of it: adds the texts of one file. `entries`: each is a group of its own.
void add_file(Pieces& to, const std::string& name, const std::vector<std::string>& texts, bool entries, SeenTexts& seen,
              DomainReport& report);

/// The documents of a domain, each part in a pseudo-random order that depends on the set of documents only.
struct Parts {
  std::vector<Document> train, tune, held_out;
  std::int64_t too_short = 0;  ///< dropped
};
/// The pseudo-random order.
void order_documents(std::vector<Document>& documents);
/// One document of every source comes before the second of any, so that the first ones are of as many sources as there
/// are. Keeps the order otherwise.
void spread_sources(std::vector<Document>& documents);
/// Short neighbours are joined within a file and part.
Parts divide(const Pieces& from, int bits);

/// What SpanMarks says about where a span of held-out text occurs.
inline constexpr std::uint8_t kInTraining = 1, kInReport = 2, kInTune = 4, kInTrainingFile = 8;
/// Held-out documents with a larger part of their bytes in repeated spans are dropped.
inline constexpr double kMaxRepeated = 0.03;

/// The spans of all held-out documents, marked by all documents of all domains.
SpanMarks mark_spans(const std::vector<Parts>& domains);
/// Drops documents of the report part that repeat training text of any domain, and of the tune part that repeat that or
/// the report part. Returns how many.
std::int64_t drop_repeated(Parts& parts, const SpanMarks& spans);

/// At least kMinHeldOut documents of kMinHeldOutSources sources in both held-out parts.
bool enough_held_out(const Parts& parts);

/// Cuts the training part at the cap (bytes) and the others to a fraction of the number of documents that are left, at
/// least kMinHeldOut, from as many sources as there are. Returns how many documents were left out.
std::int64_t cap(Parts& parts, std::int64_t bytes_per_domain, double held_out_fraction);

std::int64_t bytes_of(const std::vector<Document>& documents);
/// The repeated part of the bytes of some documents.
double repeated_share(const std::vector<Document>& documents, const SpanMarks& spans, std::uint8_t marks);

/// `spans`: null for the training part.
PartReport describe(const std::vector<Document>& documents, const SpanMarks* spans);

/// Writes `<part>.npy` (uint16), `<part>.docs.npy` and `<part>.files.npy` (int64, the group of each document) of the
/// three parts, and `files.txt`, whose line g (from 0) names group g. Throws IoError.
void write_parts(const std::filesystem::path& directory, const Pieces& pieces, const Parts& parts);
/// The three .npy files of one part.
void write_documents(const std::filesystem::path& directory, const std::string& name,
                     const std::vector<Document>& documents,
                     const std::function<std::int64_t(std::size_t)>& number_of_group);

}  // namespace emox
