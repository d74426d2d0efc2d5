// Held-out documents, kept out of training by `emox corpus`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "data/loader/loader.h"
#include "data/tokenize/tokenizer.h"

namespace emox {

/// The held-out parts of a source directory: results are reported on one, settings chosen on the other.
inline constexpr const char* kReportPart = "heldout";
inline constexpr const char* kTunePart = "tune";
/// In the order of the values of `data.eval_part`.
inline constexpr const char* kHeldOutParts[] = {kReportPart, kTunePart};

/// `heldout.npy` -> `heldout.files.npy`: int64 [documents], the number of the source file (or entry of one) that a
/// document is from. Line n (from 0) of `files.txt` in the same directory names number n.
std::filesystem::path document_files_path(const std::filesystem::path& token_file);
inline constexpr const char* kFileNames = "files.txt";

/// Whole documents of one source that training never sees.
struct HeldOut {
  std::string label;
  std::vector<std::vector<std::int32_t>> documents;  ///< token ids, without the EOS that ends each
  std::int64_t bytes = 0;  ///< of their text, for bits per byte; 0 if the tokenizer does not know it
  /// The number of the source of each document: documents with the same one are not independent. Empty: unknown.
  std::vector<std::int64_t> files;
};

struct HeldOutSet {
  std::vector<HeldOut> sources;      ///< in the order of the recipe
  std::vector<std::string> skipped;  ///< "label: why" of every source without a held-out part
};

/// The first `eval_documents` documents of `<part>.npy` of each source (all of them if there are fewer); their order
/// there is pseudo-random and fixed. `part` is kReportPart or kTunePart. A source that is one plain file has no
/// held-out part; it is named in `skipped`, as is one that is missing; that may be all of them. Throws UsageError if
/// eval_documents < 1, if a file or one of its indices is damaged, if a source has a reported part but none for
/// choosing settings, which was asked for; IoError if an id is not in the tokenizer's vocabulary.
HeldOutSet read_held_out(const std::vector<SourceSpec>& sources, std::int64_t eval_documents,
                         const Tokenizer& tokenizer, const std::string& part = kReportPart,
                         TokenWidth width = TokenWidth::Auto);

}  // namespace emox
