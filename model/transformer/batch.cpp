#include "model/transformer/batch.h"

#include <cstring>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/ops/basic.h"

namespace emox {
namespace {

void append_pools(MicroBatch& out, const SequenceInput& s, std::int32_t eos, EosRule rule, std::int32_t start) {
  const auto n = static_cast<std::int32_t>(s.tokens.size());
  std::int32_t document = 0, begin = 0;
  const auto close = [&](std::int32_t end) {
    out.pool_segments.push_back(start + end);
    out.documents.push_back({s.index, document++, s.domain, begin, end - begin});
    begin = end;
  };
  for (std::int32_t i = 0; i < n; ++i) {
    if (s.tokens[idx(i)] != eos) continue;
    if (rule == EosRule::Owner && i + 1 < n) close(i + 1);  // the EOS ends its document
    if (rule == EosRule::Reference && i > 0) close(i);      // the EOS opens the next one
  }
  if (n > 0) close(n);
}

void append_attention(MicroBatch& out, const SequenceInput& s, std::int32_t eos, bool intra_document,
                      std::int32_t start) {
  const auto n = static_cast<std::int32_t>(s.tokens.size());
  if (intra_document)
    for (std::int32_t i = 0; i + 1 < n; ++i)
      if (s.tokens[idx(i)] == eos) out.attention_segments.push_back(start + i + 1);
  if (n > 0) out.attention_segments.push_back(start + n);
}

// So that the part behind begins as a tensor does.
std::int64_t padded(std::int64_t elements) {
  constexpr auto kAlign = static_cast<std::int64_t>(kTensorAlignment / sizeof(std::int32_t));
  return (elements + kAlign - 1) / kAlign * kAlign;
}

// What ops read as indices is right from here on: a device would have to bring it back to check it.
void check_sequence(const ModelConfig& config, const SequenceInput& s) {
  const std::size_t n = s.tokens.size();
  require<ShapeError>(s.labels.empty() || s.labels.size() == n, "a sequence of {} tokens has {} labels", n,
                      s.labels.size());
  require<UsageError>(static_cast<std::int64_t>(n) <= config.sequence_length,
                      "sequence {} of the batch has {} tokens, but model.sequence_length is {}", s.index, n,
                      config.sequence_length);
  for (std::size_t i = 0; i < n; ++i)
    require<UsageError>(s.tokens[i] >= 0 && s.tokens[i] < config.vocab_size,
                        "token {} of sequence {} of the batch has id {}, but model.vocab_size is {}", i, s.index,
                        s.tokens[i], config.vocab_size);
  for (std::size_t i = 0; i < s.labels.size(); ++i)
    require<UsageError>(s.labels[i] < config.vocab_size,
                        "label {} of sequence {} of the batch is {}, but model.vocab_size is {}", i, s.index,
                        s.labels[i], config.vocab_size);
}

}  // namespace

MicroBatch make_micro_batch(const ModelConfig& config, std::int32_t eos, std::span<const SequenceInput> sequences) {
  MicroBatch b;
  b.attention_segments.push_back(0);
  b.pool_segments.push_back(0);
  for (const SequenceInput& s : sequences) {
    check_sequence(config, s);
    const std::size_t n = s.tokens.size();
    const auto start = static_cast<std::int32_t>(b.ids.size());
    for (std::size_t i = 0; i < n; ++i) {
      b.ids.push_back(s.tokens[i]);
      b.positions.push_back(static_cast<std::int32_t>(i));
      const std::int32_t label = !s.labels.empty() ? s.labels[i] : (i + 1 < n ? s.tokens[i + 1] : -1);
      b.labels.push_back(label);
      b.scored += label >= 0 ? 1 : 0;
    }
    append_attention(b, s, eos, config.intra_document_attention, start);
    append_pools(b, s, eos, config.eos, start);
  }
  b.tokens = static_cast<std::int64_t>(b.ids.size());
  return b;
}

DeviceBatch::DeviceBatch(Device device, std::int64_t max_tokens, const PoolRoom& room) : max_tokens_(max_tokens) {
  // As many documents as tokens, at most; bytes in whole elements.
  const auto bytes = [](std::int64_t n) { return n == 0 ? 0 : padded((n + 3) / 4); };
  std::int64_t elements = 3 * padded(max_tokens) + 2 * padded(max_tokens + 1);
  if (room.mask_experts > 0)
    elements += bytes(max_tokens * room.mask_experts);
  else
    elements += padded(max_tokens * room.layers);
  if (room.free_tokens) elements += bytes(max_tokens * room.layers);
  memory_ = Tensor(device, DType::I32, {elements});
  packed_.reserve(idx(elements));
}

DeviceBatch::Part DeviceBatch::pack(std::span<const std::int32_t> values) {
  const Part part{static_cast<std::int64_t>(packed_.size()), static_cast<std::int64_t>(packed_.size() + values.size())};
  packed_.insert(packed_.end(), values.begin(), values.end());
  packed_.resize(idx(padded(part.end)));
  return part;
}

DeviceBatch::Part DeviceBatch::pack(std::span<const std::uint8_t> values) {
  const auto begin = static_cast<std::int64_t>(packed_.size()), n = static_cast<std::int64_t>(values.size() + 3) / 4;
  packed_.resize(idx(padded(begin + n)));
  if (!values.empty()) std::memcpy(packed_.data() + begin, values.data(), values.size());
  return {begin, begin + n};
}

TensorView DeviceBatch::bytes(const Part& p, std::int64_t begin, std::int64_t end) const {
  const TensorView whole = view(p);
  return {static_cast<std::uint8_t*>(whole.raw()) + begin, DType::U8, {end - begin}, whole.device()};
}

TensorView DeviceBatch::pool_sizes(std::int64_t layer) const {
  if (sizes_.begin == sizes_.end) return {};
  const std::int64_t docs = pool_segments().numel() - 1;
  return view(sizes_).rows(layer * docs, (layer + 1) * docs);
}

TensorView DeviceBatch::free_tokens(std::int64_t layer) const {
  return free_tokens_.begin == free_tokens_.end ? TensorView{}
                                                : bytes(free_tokens_, layer * tokens_, (layer + 1) * tokens_);
}

TensorView DeviceBatch::pool_masks() const {
  if (mask_experts_ == 0) return {};
  const std::int64_t docs = pool_segments().numel() - 1;
  return bytes(masks_, 0, docs * mask_experts_).reshape({docs, mask_experts_});
}

void DeviceBatch::upload(Context& ctx, const MicroBatch& batch, const DrawnPools& pools) {
  require<ShapeError>(batch.tokens <= max_tokens_, "a micro-batch of {} tokens, memory was reserved for {}",
                      batch.tokens, max_tokens_);
  tokens_ = batch.tokens;
  packed_.clear();
  const auto part = [&](const auto& values) { return pack(std::span(values)); };
  ids_ = part(batch.ids);
  labels_ = part(batch.labels);
  positions_ = part(batch.positions);
  attention_segments_ = part(batch.attention_segments);
  pool_segments_ = part(batch.pool_segments);
  sizes_ = part(pools.sizes);
  free_tokens_ = part(pools.free_tokens);
  masks_ = part(pools.masks);
  const auto docs = static_cast<std::int64_t>(batch.documents.size());
  mask_experts_ = docs == 0 ? 0 : static_cast<std::int64_t>(pools.masks.size()) / docs;
  const auto n = static_cast<std::int64_t>(packed_.size());
  if (n > memory_.view().numel()) memory_ = Tensor(memory_.view().device(), DType::I32, {n});  // pools nobody planned
  ops::copy_from_host(ctx, memory_.view().rows(0, n), packed_.data());
}

}  // namespace emox
