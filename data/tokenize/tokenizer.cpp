#include "data/tokenize/tokenizer.h"

#include "runtime/core/error.h"

namespace emox {
namespace {

class ByteTokenizer final : public Tokenizer {
 public:
  std::string name() const override { return "byte"; }
  std::int64_t vocab_size() const override { return kByteVocabSize; }
  std::int32_t eos() const override { return kByteEos; }
  bool knows_text() const override { return true; }

  std::vector<std::int32_t> encode(std::string_view text) const override {
    std::vector<std::int32_t> ids;
    ids.reserve(text.size());
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }

  std::string decode(std::span<const std::int32_t> ids) const override {
    std::string text;
    text.reserve(ids.size());
    for (std::size_t i = 0; i < ids.size(); ++i) {
      require<UsageError>(ids[i] >= 0 && ids[i] < kByteVocabSize, "token id {} at position {} is not in [0, {})",
                          ids[i], i, kByteVocabSize);
      if (ids[i] != kByteEos) text += static_cast<char>(ids[i]);
    }
    return text;
  }
};

class Dolma2Ids final : public Tokenizer {
 public:
  std::string name() const override { return "dolma2"; }
  std::int64_t vocab_size() const override { return kDolma2VocabSize; }
  std::int32_t eos() const override { return kDolma2Eos; }
  bool knows_text() const override { return false; }
  std::vector<std::int32_t> encode(std::string_view) const override {
    fail<UsageError>("emox cannot turn text into dolma2 tokens: give a token file (.npy) made with that tokenizer");
  }
  std::string decode(std::span<const std::int32_t>) const override {
    fail<UsageError>("emox cannot turn dolma2 tokens into text");
  }
};

}  // namespace

std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name) {
  if (name == "byte") return std::make_unique<ByteTokenizer>();
  require<UsageError>(name == "dolma2", "unknown tokenizer '{}': data.tokenizer must be byte or dolma2", name);
  return std::make_unique<Dolma2Ids>();
}

}  // namespace emox
