// Text by which experts are chosen: never the held-out documents.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "data/loader/loader.h"
#include "data/tokenize/tokenizer.h"

namespace emox {

using Documents = std::vector<std::vector<std::int32_t>>;  ///< token ids, without the EOS that ends each

/// `count` documents of the source's training part (all, if it has fewer) in a pseudo-random order keyed by `seed`: the
/// first of them are those of a smaller count. Throws UsageError when the token file or its document index is missing
/// or damaged; IoError if an id is not in the tokenizer's vocabulary.
Documents read_calibration(const SourceSpec& source, std::int64_t count, std::uint64_t seed, const Tokenizer& tokenizer,
                           TokenWidth width = TokenWidth::Auto);

/// FILE.npy: a token file, a document ends with its EOS. FILE.jsonl: {"text": ...} a line. Any other: one text.
/// UsageError when it cannot be read so, or holds no document.
Documents read_documents(const std::filesystem::path& file, const Tokenizer& tokenizer,
                         TokenWidth width = TokenWidth::Auto);

/// What a model reads of each document on its own: EOS and the document, cut into windows of `length` tokens.
Documents calibration_windows(const Documents& documents, std::int32_t eos, std::int64_t length);

}  // namespace emox
