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

/// What the host draws for the pools of a micro-batch (draw_pools in model/moe/pools.h), all layers together.
struct DrawnPools {
  std::int64_t layers = 0;                ///< 0: no pools
  std::vector<std::int32_t> sizes;        ///< [layers, docs] routed experts in a document's pool; empty with masks
  std::vector<std::uint8_t> free_tokens;  ///< [layers, T] 1: without the limit of its document; empty: no token is
  std::vector<std::uint8_t> masks;        ///< [docs, n_r] the pools themselves, of all layers
};

/// The integers of a micro-batch where the ops can read them. One copy brings them there, packed, each part aligned as
/// a tensor. Reserved for `max_tokens` tokens, and for the pools of so many layers (and masks of so many experts).
class DeviceBatch {
 public:
  struct PoolRoom {
    std::int64_t layers = 0, mask_experts = 0;
    bool free_tokens = false;
  };
  DeviceBatch(Device device, std::int64_t max_tokens) : DeviceBatch(device, max_tokens, PoolRoom{}) {}
  DeviceBatch(Device device, std::int64_t max_tokens, const PoolRoom& room);
  void upload(Context& ctx, const MicroBatch& batch, const DrawnPools& pools = {});

  std::int64_t tokens() const { return tokens_; }
  TensorView ids() const { return view(ids_); }
  TensorView labels() const { return view(labels_); }
  TensorView positions() const { return view(positions_); }
  TensorView attention_segments() const { return view(attention_segments_); }
  TensorView pool_segments() const { return view(pool_segments_); }
  // Null where the micro-batch came without.
  TensorView pool_sizes(std::int64_t layer) const;   ///< i32 [docs]
  TensorView free_tokens(std::int64_t layer) const;  ///< u8 [T]
  TensorView pool_masks() const;                     ///< u8 [docs, n_r]

 private:
  struct Part {
    std::int64_t begin = 0, end = 0;
  };
  Part pack(std::span<const std::int32_t> values);
  Part pack(std::span<const std::uint8_t> values);
  TensorView view(const Part& p) const { return memory_.view().rows(p.begin, p.end); }
  /// Bytes [begin, end) of a part of bytes.
  TensorView bytes(const Part& p, std::int64_t begin, std::int64_t end) const;
  std::int64_t max_tokens_, tokens_ = 0;
  std::int64_t mask_experts_ = 0;
  Part ids_, labels_, positions_, attention_segments_{0, 1}, pool_segments_{0, 1}, sizes_, free_tokens_, masks_;
  std::vector<std::int32_t> packed_;  ///< on the host
  Tensor memory_;                     ///< i32
};

}  // namespace emox
