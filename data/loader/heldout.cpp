#include "data/loader/heldout.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "data/format/token_file.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

HeldOut read_source(const std::string& label, const std::filesystem::path& path, std::int64_t limit,
                    const Tokenizer& tokenizer) {
  const TokenFile file(path, tokenizer.vocab_size());
  const std::vector<std::int64_t> offsets = read_document_index(path, file.size());
  const std::int64_t count = std::min(limit, static_cast<std::int64_t>(offsets.size()) - 1);
  HeldOut held{label, {}, 0};
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t begin = offsets[static_cast<std::size_t>(i)];
    const std::int64_t length = offsets[static_cast<std::size_t>(i) + 1] - begin;
    std::vector<std::int32_t> document(static_cast<std::size_t>(length));
    file.read(begin, length, document.data());
    if (document.back() == tokenizer.eos()) document.pop_back();
    if (document.empty()) continue;
    if (tokenizer.knows_text()) held.bytes += static_cast<std::int64_t>(tokenizer.decode(document).size());
    held.documents.push_back(std::move(document));
  }
  return held;
}

}  // namespace

HeldOutSet read_held_out(const std::vector<SourceSpec>& sources, std::int64_t eval_documents,
                         const Tokenizer& tokenizer) {
  require<UsageError>(eval_documents >= 1, "data.eval_documents = {} must be at least 1", eval_documents);
  HeldOutSet set;
  for (const SourceSpec& spec : sources) {
    const std::filesystem::path path = std::filesystem::path(spec.path) / "heldout.npy";
    if (!std::filesystem::exists(spec.path)) {
      set.skipped.push_back(fmt::format("{}: nothing at {}, seen from {}", spec.label, spec.path,
                                        std::filesystem::current_path().string()));
    } else if (!std::filesystem::is_directory(spec.path)) {
      set.skipped.push_back(fmt::format("{}: {} is one file, without a held-out part", spec.label, spec.path));
    } else if (!std::filesystem::exists(path)) {
      set.skipped.push_back(fmt::format("{}: {} has no heldout.npy", spec.label, spec.path));
    } else {
      set.sources.push_back(read_source(spec.label, path, eval_documents, tokenizer));
    }
  }
  return set;
}

}  // namespace emox
