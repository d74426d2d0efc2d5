#include "data/corpus/assemble.h"

#include <fmt/ranges.h>
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "data/corpus/extract.h"
#include "data/corpus/text.h"
#include "data/format/npy.h"
#include "data/format/token_file.h"
#include "data/tokenize/tokenizer.h"
#include "runtime/core/error.h"

namespace emox {
namespace {
namespace fs = std::filesystem;

/// Another hash than the one that finds duplicates, so that the two uses are independent.
constexpr XXH64_hash_t kOrderSeed = 0x656D6F78;

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

}  // namespace

std::vector<std::string> documents_of_file(const std::vector<std::string>& texts, SeenTexts& seen,
                                           DomainReport& report) {
  std::vector<std::string> pieces;
  for (const std::string& text : texts) {
    for (std::string& piece : split_text(clean_text(text))) {
      if (seen.insert(XXH3_64bits(piece.data(), piece.size())).second)
        pieces.push_back(std::move(piece));
      else
        ++report.duplicates;
    }
  }
  std::vector<std::string> documents = join_short(std::move(pieces));
  report.too_short += static_cast<std::int64_t>(
      std::erase_if(documents, [](const std::string& d) { return d.size() < kMinDocumentBytes; }));
  return documents;
}

std::vector<std::string> collect_documents(const Domain& domain, const fs::path& root, SeenTexts& seen,
                                           DomainReport& report) {
  std::vector<std::string> all;
  for (const fs::path& file : files_of(domain, root)) {
    std::vector<std::string> documents = documents_of_file(extract_file(domain.rule, file), seen, report);
    std::move(documents.begin(), documents.end(), std::back_inserter(all));
  }
  return all;
}

Split split_documents(std::vector<std::string> documents, std::int64_t bytes_per_domain, double held_out_fraction) {
  std::vector<std::pair<XXH64_hash_t, std::string>> ordered;
  ordered.reserve(documents.size());
  for (std::string& d : documents)
    ordered.emplace_back(XXH3_64bits_withSeed(d.data(), d.size(), kOrderSeed), std::move(d));
  std::sort(ordered.begin(), ordered.end());

  // The fraction is of what the cap leaves, else a large domain would hold out far more than it trains on.
  std::int64_t within = 0;
  std::int64_t bytes = 0;
  for (const auto& [hash, text] : ordered) {
    bytes += static_cast<std::int64_t>(text.size());
    if (bytes > bytes_per_domain) break;
    ++within;
  }
  const auto total = static_cast<std::int64_t>(ordered.size());
  const auto wanted = static_cast<std::int64_t>(std::ceil(held_out_fraction * static_cast<double>(within)));
  const std::int64_t held = std::min(std::max(wanted, kMinHeldOut), total / 2);

  Split split;
  bytes = 0;
  for (std::int64_t i = 0; i < total; ++i) {
    std::string& text = ordered[static_cast<std::size_t>(i)].second;
    if (i < held) {
      split.held_out.push_back(std::move(text));
      continue;
    }
    bytes += static_cast<std::int64_t>(text.size());
    if (bytes > bytes_per_domain) break;
    split.train.push_back(std::move(text));
  }
  return split;
}

void write_documents(const fs::path& directory, const std::string& name, const std::vector<std::string>& documents) {
  const auto tokenizer = make_tokenizer("byte");
  std::vector<std::uint16_t> tokens;
  std::vector<std::int64_t> offsets = {0};
  for (const std::string& document : documents) {
    for (const std::int32_t id : tokenizer->encode(document)) tokens.push_back(static_cast<std::uint16_t>(id));
    tokens.push_back(static_cast<std::uint16_t>(tokenizer->eos()));
    offsets.push_back(static_cast<std::int64_t>(tokens.size()));
  }
  const fs::path file = directory / (name + ".npy");
  write_npy(file, std::span<const std::uint16_t>(tokens));
  write_npy(document_index_path(file), std::span<const std::int64_t>(offsets));
}

}  // namespace emox
