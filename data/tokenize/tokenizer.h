// Text to token ids and back.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace emox {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  /// The name used in recipes (`data.tokenizer`).
  virtual std::string name() const = 0;
  /// Ids are in [0, vocab_size()).
  virtual std::int64_t vocab_size() const = 0;
  /// The id that ends a document. encode() never produces it.
  virtual std::int32_t eos() const = 0;
  /// False: it numbers the ids of token files only; encode() and decode() throw UsageError.
  virtual bool knows_text() const = 0;
  virtual std::vector<std::int32_t> encode(std::string_view text) const = 0;
  /// The text of the ids; EOS gives nothing. Throws UsageError naming position and id if an id is not in the
  /// vocabulary.
  virtual std::string decode(std::span<const std::int32_t> ids) const = 0;
};

/// Ids 0..255 are the bytes of the text, 256 is EOS.
inline constexpr std::int32_t kByteEos = 256;
inline constexpr std::int64_t kByteVocabSize = 257;

/// The published models': token files made with it can be read, text cannot be encoded.
inline constexpr std::int32_t kDolma2Eos = 100257;
inline constexpr std::int64_t kDolma2VocabSize = 100278;

/// "byte" or "dolma2". Throws UsageError for another name.
std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name);

}  // namespace emox
