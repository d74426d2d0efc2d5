#include "data/loader/calibration.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "data/format/token_file.h"
#include "data/loader/identity.h"
#include "data/loader/permutation.h"
#include "data/loader/source_files.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/files/file_error.h"
#include "runtime/files/files.h"

namespace emox {
namespace {

Documents read_token_file(const std::filesystem::path& path, const Tokenizer& tokenizer, TokenWidth width) {
  (void)identify_file(path, "", tokenizer.vocab_size(), width);  // refuses text and ids of another width
  const TokenFile file(path, tokenizer.vocab_size(), width);
  std::vector<std::int32_t> ids(idx(file.size()));
  file.read(0, file.size(), ids.data());
  Documents documents(1);
  for (const std::int32_t id : ids) {
    if (id != tokenizer.eos())
      documents.back().push_back(id);
    else
      documents.emplace_back();
  }
  return documents;
}

Documents read_lines(std::ifstream& in, const std::string& name, const Tokenizer& tokenizer) {
  Documents documents;
  std::string line;
  for (std::int64_t number = 1; std::getline(in, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
    require<UsageError>(json.is_object() && json.contains("text") && json["text"].is_string(),
                        "{}: line {} is not a JSON object with a \"text\"", name, number);
    documents.push_back(tokenizer.encode(json["text"].get<std::string>()));
  }
  return documents;
}

}  // namespace

Documents read_calibration(const SourceSpec& source, std::int64_t count, std::uint64_t seed, const Tokenizer& tokenizer,
                           TokenWidth width) {
  require<UsageError>(count >= 1, "{} calibration documents are too few: at least 1", count);
  // Only the offsets of files that a document is taken from are read.
  const std::vector<std::filesystem::path> files = training_files(source);
  std::vector<std::int64_t> begins{0};  // of each file's documents among all
  for (const auto& path : files) {
    const StoredFile index(document_index_path(path));
    const auto header = read_npy_header(index);
    require<UsageError>(header && header->count >= 2, "{} is no document index: build it again", index.path().string());
    begins.push_back(begins.back() + header->count - 1);
  }
  const Philox family(seed, RngPurpose::Calibration);
  const Permutation order(family, 0, 0, begins.back());
  Documents documents;
  std::map<std::size_t, std::pair<TokenFile, std::vector<std::int64_t>>> open;
  for (std::int64_t i = 0; i < begins.back() && static_cast<std::int64_t>(documents.size()) < count; ++i) {
    const std::int64_t number = order(i);
    const auto f = idx(std::upper_bound(begins.begin(), begins.end(), number) - begins.begin()) - 1;
    auto found = open.find(f);
    if (found == open.end()) {
      TokenFile file(files[f], tokenizer.vocab_size(), width);
      std::vector<std::int64_t> offsets = read_document_index(files[f], file.size());
      found = open.emplace(f, std::pair(std::move(file), std::move(offsets))).first;
    }
    const auto& [file, offsets] = found->second;
    const auto d = idx(number - begins[f]);
    std::vector<std::int32_t> document(idx(offsets[d + 1] - offsets[d]));
    file.read(offsets[d], offsets[d + 1] - offsets[d], document.data());
    if (document.back() == tokenizer.eos()) document.pop_back();
    if (!document.empty()) documents.push_back(std::move(document));
  }
  return documents;
}

Documents read_documents(const std::filesystem::path& file, const Tokenizer& tokenizer, TokenWidth width) {
  Documents documents;
  if (file.extension() == ".npy" || file.extension() == ".bin") {
    documents = read_token_file(file, tokenizer, width);
  } else if (file.extension() == ".jsonl") {
    std::ifstream in(file, std::ios::binary);
    require<UsageError>(in.good() && !std::filesystem::is_directory(file), "{} cannot be read", file.string());
    documents = read_lines(in, file.string(), tokenizer);
  } else {
    const auto [text, error] = try_read_text(file);
    require<UsageError>(error == 0, "{} cannot be read: {}", file.string(), system_reason(error));
    documents.push_back(tokenizer.encode(text));
  }
  std::erase_if(documents, [](const auto& d) { return d.empty(); });
  require<UsageError>(!documents.empty(), "{} holds no document", file.string());
  return documents;
}

Documents calibration_windows(const Documents& documents, std::int32_t eos, std::int64_t length) {
  Documents windows;
  for (const auto& document : documents) {
    std::vector<std::int32_t> text{eos};
    text.insert(text.end(), document.begin(), document.end());
    const auto step = idx(length);
    for (std::size_t begin = 0; begin < text.size(); begin += step)
      windows.emplace_back(text.begin() + static_cast<std::ptrdiff_t>(begin),
                           text.begin() + static_cast<std::ptrdiff_t>(std::min(begin + step, text.size())));
  }
  return windows;
}

}  // namespace emox
