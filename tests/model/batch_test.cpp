// How token rows become attention segments and pool documents, for both rules of the EOS (spec 3.1 and 3.6).
#include <gtest/gtest.h>

#include "model/transformer/batch.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/ops/basic.h"
#include "runtime/telemetry/spans.h"
#include "tests/support/support.h"

namespace emox {
namespace {

constexpr std::int32_t kEos = 9;
using Ids = std::vector<std::int32_t>;

MicroBatch batch_of(const std::vector<Ids>& rows, EosRule rule, bool intra_document = true) {
  ModelConfig config;
  config.eos = rule;
  config.intra_document_attention = intra_document;
  std::vector<SequenceInput> sequences;
  for (std::size_t i = 0; i < rows.size(); ++i)
    sequences.push_back({rows[i], {}, 40 + static_cast<std::int64_t>(i), 7 - static_cast<std::int32_t>(i)});
  return make_micro_batch(config, kEos, sequences);
}

struct Case {
  const char* name;
  Ids tokens, owner, reference;
};
const Case kCases[] = {
    {"none", {1, 2, 3, 4, 5, 6}, {0, 6}, {0, 6}},
    {"middle", {1, 2, 3, 9, 5, 6}, {0, 4, 6}, {0, 3, 6}},
    {"first", {9, 2, 3, 4, 5, 6}, {0, 1, 6}, {0, 6}},
    {"last", {1, 2, 3, 4, 5, 9}, {0, 6}, {0, 5, 6}},
    {"consecutive", {1, 9, 9, 4, 5, 6}, {0, 2, 3, 6}, {0, 1, 2, 6}},
    {"first and last", {9, 2, 3, 4, 5, 9}, {0, 1, 6}, {0, 5, 6}},
    {"all", {9, 9, 9}, {0, 1, 2, 3}, {0, 1, 2, 3}},
    {"one token", {9}, {0, 1}, {0, 1}},
};

TEST(MicroBatch, PoolSegmentsFollowTheEosRule) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    const MicroBatch owner = batch_of({c.tokens}, EosRule::Owner), reference = batch_of({c.tokens}, EosRule::Reference);
    EXPECT_EQ(owner.pool_segments, c.owner);
    EXPECT_EQ(reference.pool_segments, c.reference);
    // Attention always gives an EOS to the document that it ends.
    EXPECT_EQ(owner.attention_segments, c.owner);
    EXPECT_EQ(reference.attention_segments, c.owner);
    for (const MicroBatch* b : {&owner, &reference}) {
      ASSERT_EQ(b->documents.size() + 1, b->pool_segments.size());
      for (std::size_t d = 0; d < b->documents.size(); ++d) EXPECT_EQ(b->documents[d].document, static_cast<int>(d));
    }
  }
}

TEST(MicroBatch, SequencesNeverShareASegment) {
  const MicroBatch b = batch_of({{1, 9, 3, 4}, {9, 6, 9}, {1, 2}}, EosRule::Owner);
  EXPECT_EQ(b.tokens, 9);
  EXPECT_EQ(b.pool_segments, (Ids{0, 2, 4, 5, 7, 9}));
  EXPECT_EQ(b.attention_segments, b.pool_segments);
  EXPECT_EQ(b.positions, (Ids{0, 1, 2, 3, 0, 1, 2, 0, 1}));
  std::vector<std::int64_t> sequences;
  Ids documents, domains;
  for (const PoolDocument& d : b.documents) {
    sequences.push_back(d.sequence);
    documents.push_back(d.document);
    domains.push_back(d.domain);
  }
  EXPECT_EQ(sequences, (std::vector<std::int64_t>{40, 40, 41, 41, 42}));
  EXPECT_EQ(documents, (Ids{0, 1, 0, 1, 0}));
  EXPECT_EQ(domains, (Ids{7, 7, 6, 6, 5}));
}

// Where each document lies in its sequence, by both rules: keys of the draws for single tokens.
TEST(MicroBatch, DocumentsKnowTheirPlaces) {
  for (const EosRule rule : {EosRule::Owner, EosRule::Reference}) {
    const MicroBatch b = batch_of({{1, 9, 3, 4}, {9, 6, 9}, {1, 2}}, rule);
    std::int32_t begin = 0;
    for (std::size_t d = 0; d < b.documents.size(); ++d) {
      EXPECT_EQ(b.documents[d].position, b.positions[idx(begin)]);
      EXPECT_EQ(b.documents[d].tokens, b.pool_segments[d + 1] - begin);
      begin = b.pool_segments[d + 1];
    }
    EXPECT_EQ(begin, 9);
  }
}

TEST(MicroBatch, WholeSequencesAttendWhenAsked) {
  const MicroBatch b = batch_of({{1, 9, 3, 4}, {9, 6, 9}}, EosRule::Owner, false);
  EXPECT_EQ(b.attention_segments, (Ids{0, 4, 7}));
  EXPECT_EQ(b.pool_segments, (Ids{0, 2, 4, 5, 7}));  // pools are documents all the same
}

TEST(MicroBatch, LabelsAreTheNextTokens) {
  const MicroBatch b = batch_of({{1, 9, 3}, {4, 5}}, EosRule::Owner);
  EXPECT_EQ(b.labels, (Ids{9, 3, -1, 5, -1}));
  EXPECT_EQ(b.scored, 3);
  const Ids tokens{1, 2, 3}, labels{2, -1, 9};
  const SequenceInput given{tokens, labels, 0, 0};
  const MicroBatch scored = make_micro_batch({}, kEos, std::span(&given, 1));
  EXPECT_EQ(scored.labels, labels);
  EXPECT_EQ(scored.scored, 2);
  const SequenceInput wrong{tokens, std::span(labels).first(2), 0, 0};
  EXPECT_THROW(make_micro_batch({}, kEos, std::span(&wrong, 1)), ShapeError);
}

// Nothing below looks at them again, so what is wrong must end here, by name.
TEST(MicroBatch, IndicesAreCheckedHere) {
  ModelConfig config;
  config.vocab_size = 10;
  config.sequence_length = 4;
  const auto message = [&](const Ids& tokens, const Ids& labels) -> std::string {
    const SequenceInput input{tokens, labels, 12, 0};
    try {
      (void)make_micro_batch(config, kEos, std::span(&input, 1));
    } catch (const UsageError& e) {
      return e.message();
    }
    return "";
  };
  EXPECT_EQ(message({0, 9, 0, 9}, {-1, 9, 0, 9}), "");
  EXPECT_EQ(message({0, 10}, {}), "token 1 of sequence 12 of the batch has id 10, but model.vocab_size is 10");
  EXPECT_EQ(message({0, 1, -1}, {}), "token 2 of sequence 12 of the batch has id -1, but model.vocab_size is 10");
  EXPECT_EQ(message({0, 1}, {10, 1}), "label 0 of sequence 12 of the batch is 10, but model.vocab_size is 10");
  EXPECT_EQ(message({0, 1, 2, 3, 4}, {}), "sequence 12 of the batch has 5 tokens, but model.sequence_length is 4");
}

TEST(MicroBatch, NothingIsABatchToo) {
  const MicroBatch b = make_micro_batch({}, kEos, {});
  EXPECT_EQ(b.tokens, 0);
  EXPECT_EQ(b.pool_segments, Ids{0});
  EXPECT_TRUE(b.documents.empty());
}

// Whatever the number of tokens, one copy, and every part begins where a tensor may.
TEST(DeviceBatch, IsUploadedInOneCopy) {
  for (const int tokens : {0, 1, 63, 64, 65, 200}) {
    Context ctx;
    Telemetry telemetry;
    ctx.telemetry = &telemetry;
    DeviceBatch device({}, tokens);
    const MicroBatch host = batch_of({Ids(idx(tokens), kEos)}, EosRule::Owner);  // segments are longest
    device.upload(ctx, host);
    EXPECT_EQ(telemetry.totals().at("copy_from_host").calls, 1);
    for (const auto& [part, want] : {std::pair(device.ids(), host.ids),
                                     {device.labels(), host.labels},
                                     {device.positions(), host.positions},
                                     {device.attention_segments(), host.attention_segments},
                                     {device.pool_segments(), host.pool_segments}}) {
      EXPECT_EQ(test::values_of<std::int32_t>(part), want);
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(part.raw()) % kTensorAlignment, 0U);
    }
  }
}

TEST(DeviceBatch, HoldsWhatWasUploadedLast) {
  Context ctx;
  DeviceBatch device({}, 6);
  const MicroBatch large = batch_of({{1, 9, 3, 9, 5, 6}}, EosRule::Reference),
                   small = batch_of({{7, 8}}, EosRule::Reference);
  device.upload(ctx, large);
  device.upload(ctx, small);
  EXPECT_EQ(device.tokens(), 2);
  EXPECT_EQ(test::values_of<std::int32_t>(device.ids()), (Ids{7, 8}));
  EXPECT_EQ(test::values_of<std::int32_t>(device.labels()), (Ids{8, -1}));
  EXPECT_EQ(test::values_of<std::int32_t>(device.pool_segments()), (Ids{0, 2}));
  EXPECT_THROW(device.upload(ctx, batch_of({Ids(7, 1)}, EosRule::Owner)), ShapeError);
}

}  // namespace
}  // namespace emox
