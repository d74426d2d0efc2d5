// Held-out documents, kept out of training by `emox corpus`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/loader/loader.h"
#include "data/tokenize/tokenizer.h"

namespace emox {

/// Whole documents of one source that training never sees.
struct HeldOut {
  std::string label;
  std::vector<std::vector<std::int32_t>> documents;  ///< token ids, without the EOS that ends each
  std::int64_t bytes = 0;  ///< of their text, for bits per byte; 0 if the tokenizer does not know it
};

struct HeldOutSet {
  std::vector<HeldOut> sources;      ///< in the order of the recipe
  std::vector<std::string> skipped;  ///< "label: why" of every source without a held-out part
};

/// The first `eval_documents` documents of `heldout.npy` of each source (all of them if there are fewer); their order
/// there is pseudo-random and fixed. A source that is one plain file has no held-out part; it is named in `skipped`, as
/// is one that is missing; that may be all of them.
/// Throws UsageError if eval_documents < 1, if a heldout.npy or its index is damaged; IoError if an id is not in the
/// tokenizer's vocabulary.
HeldOutSet read_held_out(const std::vector<SourceSpec>& sources, std::int64_t eval_documents,
                         const Tokenizer& tokenizer);

}  // namespace emox
