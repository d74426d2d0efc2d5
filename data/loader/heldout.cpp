#include "data/loader/heldout.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "data/format/npy.h"
#include "data/format/token_file.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

/// Empty if there is no such file: other programs write none.
std::vector<std::int64_t> read_document_files(const std::filesystem::path& token_file, std::int64_t documents) {
  const std::filesystem::path path = document_files_path(token_file);
  if (!std::filesystem::exists(path)) return {};
  std::vector<std::int64_t> files = read_npy_integers(path);
  require<UsageError>(static_cast<std::int64_t>(files.size()) == documents,
                      "{} names the sources of {} documents, {} has {}; build both files again", path.string(),
                      files.size(), token_file.string(), documents);
  return files;
}

HeldOut read_source(const std::string& label, const std::filesystem::path& path, std::int64_t limit,
                    const Tokenizer& tokenizer, TokenWidth width) {
  const TokenFile file(path, tokenizer.vocab_size(), width);
  const std::vector<std::int64_t> offsets = read_document_index(path, file.size());
  const std::int64_t count = std::min(limit, static_cast<std::int64_t>(offsets.size()) - 1);
  const std::vector<std::int64_t> files = read_document_files(path, static_cast<std::int64_t>(offsets.size()) - 1);
  HeldOut held{label, {}, 0, {}};
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t begin = offsets[idx(i)];
    const std::int64_t length = offsets[idx(i) + 1] - begin;
    std::vector<std::int32_t> document(idx(length));
    file.read(begin, length, document.data());
    if (document.back() == tokenizer.eos()) document.pop_back();
    if (document.empty()) continue;
    if (tokenizer.knows_text()) held.bytes += static_cast<std::int64_t>(tokenizer.decode(document).size());
    held.documents.push_back(std::move(document));
    if (!files.empty()) held.files.push_back(files[idx(i)]);
  }
  return held;
}

std::filesystem::path report_file(const SourceSpec& spec) {
  return std::filesystem::path(spec.path) / fmt::format("{}.npy", kReportPart);
}

}  // namespace

std::filesystem::path document_files_path(const std::filesystem::path& token_file) {
  std::filesystem::path files = token_file;
  return files.replace_extension(".files.npy");
}

HeldOutSet read_held_out(const std::vector<SourceSpec>& sources, std::int64_t eval_documents,
                         const Tokenizer& tokenizer, const std::string& part, TokenWidth width) {
  require<UsageError>(eval_documents >= 1, "data.eval_documents = {} must be at least 1", eval_documents);
  HeldOutSet set;
  for (const SourceSpec& spec : sources) {
    const std::string name = part + ".npy";
    const std::filesystem::path path = std::filesystem::path(spec.path) / name;
    if (!std::filesystem::exists(spec.path)) {
      set.skipped.push_back(fmt::format("{}: nothing at {}, seen from {}", spec.label, spec.path,
                                        std::filesystem::current_path().string()));
    } else if (!std::filesystem::is_directory(spec.path)) {
      set.skipped.push_back(fmt::format("{}: {} is one file, without a held-out part", spec.label, spec.path));
    } else if (!std::filesystem::exists(path)) {
      // Not left out: to go on with the other domains would choose settings by those that happen to be there.
      require<UsageError>(part == kReportPart || !std::filesystem::exists(report_file(spec)),
                          "{} has a {} but no {}, which data.eval_part = tune needs: the corpus was built by older "
                          "rules or by another program; build it again with `emox corpus --force`",
                          spec.path, report_file(spec).filename().string(), name);
      set.skipped.push_back(fmt::format("{}: {} has no {}", spec.label, spec.path, name));
    } else {
      set.sources.push_back(read_source(spec.label, path, eval_documents, tokenizer, width));
    }
  }
  return set;
}

}  // namespace emox
