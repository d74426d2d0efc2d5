// A micro-batch as the model reads it: token rows laid end to end, with the boundaries that attention and pools
// respect.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/transformer/config.h"
#include "runtime/core/context.h"
#include "runtime/core/tensor.h"

namespace emox {

/// One sequence to be trained on or scored.
struct SequenceInput {
  std::span<const std::int32_t> tokens;
  std::span<const std::int32_t> labels;  ///< empty: tokens shifted left by one, the last not scored (spec 5)
  std::int64_t index = 0;                ///< in the global batch of the step: keys the random draws
  std::int32_t domain = 0;               ///< index of the data source: read by label pools only
};

/// A pool segment's identity (design 4.6).
struct PoolDocument {
  std::int64_t sequence = 0;
  std::int32_t document = 0;  ///< in its sequence
  std::int32_t domain = 0;
  std::int32_t position = 0;  ///< of its first token in the sequence
  std::int32_t tokens = 0;
};

struct MicroBatch {
  std::int64_t tokens = 0;
  std::int64_t scored = 0;  ///< labels that count
  std::vector<std::int32_t> ids, labels, positions;
  std::vector<std::int32_t> attention_segments;  ///< [n+1]
  std::vector<std::int32_t> pool_segments;       ///< [docs+1]
  std::vector<PoolDocument> documents;           ///< [docs]
};

/// Lays sequences end to end. Attention segments: documents, an EOS belonging to the document it ends, or whole
/// sequences when intra_document_attention is off (spec 3.6). Pool segments: by moe.eos (spec 3.1, golden README
/// "Segments"). Everything that ops read as an index is checked here and nowhere below: UsageError for a token or label
/// beyond the vocabulary and a sequence that is too long.
MicroBatch make_micro_batch(const ModelConfig& config, std::int32_t eos, std::span<const SequenceInput> sequences);

/// The integers of a micro-batch where the ops can read them. Reserved once for the largest micro-batch; one copy
/// brings them there, packed, each part aligned as a tensor.
class DeviceBatch {
 public:
  DeviceBatch(Device device, std::int64_t max_tokens);
  void upload(Context& ctx, const MicroBatch& batch);

  std::int64_t tokens() const { return tokens_; }
  TensorView ids() const { return view(ids_); }
  TensorView labels() const { return view(labels_); }
  TensorView positions() const { return view(positions_); }
  TensorView attention_segments() const { return view(attention_segments_); }
  TensorView pool_segments() const { return view(pool_segments_); }

 private:
  struct Part {
    std::int64_t begin = 0, end = 0;
  };
  Part pack(const std::vector<std::int32_t>& values);
  TensorView view(const Part& p) const { return memory_.view().rows(p.begin, p.end); }
  std::int64_t max_tokens_, tokens_ = 0;
  Part ids_, labels_, positions_, attention_segments_{0, 1}, pool_segments_{0, 1};
  std::vector<std::int32_t> packed_;  ///< on the host
  Tensor memory_;                     ///< i32
};

}  // namespace emox
