// `emox corpus`: real text by domain from small Debian packages. The packages' text is never part of the project; this
// is the list of packages and the rules that turn them into documents.
//
// Written: <output>/<label>/{train,tune,heldout}.npy (uint16 byte-level ids, every document ended by EOS), beside each
// the document index <same name>.docs.npy and the source of each document <same name>.files.npy, the names of those in
// <output>/<label>/files.txt, and <output>/corpus.json. Everything is built in a new directory <output>.partial-XXXXXX
// and renamed at the end, corpus.json being its last file, so a directory with a corpus.json is whole.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "data/corpus/domains.h"

namespace emox {

class Log;

struct CorpusOptions {
  std::string output = "corpus/quickstart";
  std::int64_t bytes_per_domain = 3'000'000;  ///< at most this many bytes of training text a domain
  /// Each of the two held-out parts has at most so many documents for every one that is trained on, but not less than
  /// kMinHeldOut where the domain has them. Which documents may be held out depends on neither this nor the cap.
  double held_out_fraction = 0.05;
  /// Where the packages are downloaded to; empty: <output>.packages. Packages already there are used as they are, so a
  /// directory filled elsewhere serves a machine without a network.
  std::string download_directory;
  std::vector<std::string> domains;  ///< labels to build; empty: all
  bool keep_packages = false;        ///< else a package that this build downloaded is removed at the end
  bool force = false;                ///< rebuild although a corpus is there
};

/// Documents of each held-out part, and sources that they are from: documents of one file are not independent. A domain
/// with fewer gets a larger share of its sources held out, up to a quarter for each part.
inline constexpr std::int64_t kMinHeldOut = 20;
inline constexpr std::int64_t kMinHeldOutSources = 10;

struct PackageReport {
  std::string name, version, sha256;  ///< of the .deb file
  std::int64_t bytes = 0;
};

/// One of the three files of a domain.
struct PartReport {
  std::int64_t documents = 0, bytes = 0;  ///< without EOS
  std::int64_t sources = 0;               ///< source files, or entries of them, that the documents are from
  /// Part of the bytes that lie in spans of kSpanBytes bytes which also occur in train.npy of any domain; in the text
  /// of any domain that may be trained on, whatever the cap; in the text that results are reported on. Of the training
  /// part not measured: 0.
  double in_training_file = 0, in_training_text = 0, in_reported_text = 0;
};

/// Of the user's own text: what came in, and what did not get into any part, by reason.
struct TextCounts {
  std::int64_t files = 0, bytes = 0;  ///< read; bytes as they are stored, packed or not
  std::int64_t links = 0;             ///< not followed: links, sockets and the like below a directory
  std::int64_t binary_files = 0;      ///< with a zero byte at the beginning: nothing of them is used
  std::int64_t damaged_files = 0;     ///< cannot be unpacked to their end: what came before the damage is used
  std::int64_t binary = 0;            ///< documents with a zero byte
  std::int64_t not_utf8 = 0;          ///< documents
  std::int64_t no_text = 0;           ///< lines that are no JSON object with a string `text`, or are too long
};

struct DomainReport {
  std::string label;
  std::vector<PackageReport> packages;
  PartReport train, tune, held_out;
  double held_out_share = 0;    ///< of the sources, for each of tune and held_out
  std::int64_t repeated = 0;    ///< dropped from tune and held_out: more than kMaxRepeated of it is repeated
  std::int64_t duplicates = 0;  ///< dropped: the same text was seen before, in this domain or an earlier one
  std::int64_t too_short = 0;   ///< dropped: shorter than kMinDocumentBytes even when joined with their neighbours
  TextCounts text;              ///< zero for domains from packages
  std::int64_t left_out = 0;    ///< because of bytes_per_domain and held_out_fraction
};

struct CorpusReport {
  std::string output;
  std::vector<DomainReport> domains;
  bool reused = false;  ///< a corpus with these options was already there
  double seconds = 0;   ///< of the whole call; not part of corpus.json, which is the same for every build
};
nlohmann::json to_json(const CorpusReport& report);

/// Builds the corpus, or returns the report of the one that is there if it was built with the same options.
/// Throws UsageError for an unknown label, an output that is something else or was built with other options, missing
/// tools (apt-get, dpkg-deb), empty package lists or an unknown package; IoError for a download, a package or a disk
/// that fails.
CorpusReport build_corpus(const CorpusOptions& options, Log& log);
/// The same with other domains than standard_domains().
CorpusReport build_corpus(const CorpusOptions& options, const std::vector<Domain>& table, Log& log);

/// "12 duplicates" and the like: what of a domain is in no part, and why. Empty if nothing was dropped.
std::vector<std::string> dropped_lines(const DomainReport& report);

/// `label:1:<output>/<label>` of every domain: the lines for `data.source`.
std::vector<std::string> source_lines(const CorpusReport& report);

}  // namespace emox
