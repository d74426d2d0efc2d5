// `emox corpus --text`: the user's own text, in the same files as the standard domains.
//
// Text is read once, as a stream: training documents go to the disk in the order of the files, held-out ones are kept
// in memory, at most kMaxHeldOutBytes a part. The written training text is then read again to find what held-out
// documents repeat of it. Memory does not grow with the text but for the duplicates: up to 35 bytes a document.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/corpus/corpus.h"

namespace emox {

class Log;

struct LabelledText {
  std::string label;
  std::vector<std::string> paths;  ///< text files, files of JSON lines, directories of such
  /// "LABEL=PATH". Throws UsageError, also for a label that cannot name a directory and a source.
  static LabelledText parse(const std::string& text);
};

struct TextCorpusOptions {
  std::string output;
  std::vector<LabelledText> texts;  ///< a label that comes twice is one
  bool force = false;
};

/// A label with at least so many files holds out whole files; with fewer, documents: the lines of JSON lines (always),
/// the sections of long text files.
inline constexpr std::size_t kManyFiles = 64;
/// Of each held-out part of a label, and of a document in one; what is beyond is in no part.
inline constexpr std::int64_t kMaxHeldOutBytes = 4 << 20, kMaxHeldOutDocument = 128 << 10;

/// Builds the corpus, or returns the report of the one that is there if it was built from the same files. The documents
/// are kept as they are; dropped are those with a zero byte, those that are not UTF-8, those below kMinDocumentBytes,
/// duplicates over all labels, and held-out ones that repeat training text. Throws UsageError for labels, paths and
/// outputs that cannot be used, and for a label with too little text to hold any out; IoError for a disk that fails.
CorpusReport build_text_corpus(const TextCorpusOptions& options, Log& log);

}  // namespace emox
