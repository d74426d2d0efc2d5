// `emox corpus`: real text by domain from small Debian packages. The packages' text is never part of the project; this
// is the list of packages and the rules that turn them into documents.
//
// Written: <output>/<label>/{train,heldout}.npy (uint16 byte-level ids, every document ended by EOS), the document
// index <same name>.docs.npy beside each, and <output>/corpus.json. Everything is built in <output>.partial and renamed
// at the end, corpus.json being its last file, so a directory with a corpus.json is whole.
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
  /// Part of the documents kept for evaluation; at least kMinHeldOut documents a domain (half of them, if it has few).
  double held_out_fraction = 0.05;
  /// Where the packages are downloaded to; empty: <output>.packages. Packages already there are used as they are, so a
  /// directory filled elsewhere serves a machine without a network.
  std::string download_directory;
  std::vector<std::string> domains;  ///< labels to build; empty: all
  bool keep_packages = false;        ///< else a package that this build downloaded is removed at the end
  bool force = false;                ///< rebuild although a corpus is there
};

inline constexpr std::int64_t kMinHeldOut = 20;

struct PackageReport {
  std::string name, version, sha256;  ///< of the .deb file
  std::int64_t bytes = 0;
};

struct DomainReport {
  std::string label;
  std::vector<PackageReport> packages;
  std::int64_t documents = 0, bytes = 0;  ///< training part, without EOS
  std::int64_t held_out_documents = 0, held_out_bytes = 0;
  std::int64_t duplicates = 0;  ///< dropped: the same text was seen before, in this domain or an earlier one
  std::int64_t too_short = 0;   ///< dropped: shorter than kMinDocumentBytes even when joined with their neighbours
  std::int64_t beyond_cap = 0;  ///< left out because of bytes_per_domain
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

/// `label:1:<output>/<label>` of every domain: the lines for `data.source`.
std::vector<std::string> source_lines(const CorpusReport& report);

}  // namespace emox
