// Recordings of pools: what is written is read, and a damaged file is refused or ends early.
#include "parallel/expert/pool_trace.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <numeric>
#include <random>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/files/files.h"
#include "tests/support/messages.h"
#include "tests/support/support.h"

namespace emox {
namespace {

using test::usage_error;

namespace fs = std::filesystem;

using test::TemporaryDirectory;

bool same(const PoolRecord& a, const PoolRecord& b) {
  return a.step == b.step && a.layer == b.layer && a.segments == b.segments && a.pools == b.pools && a.ids == b.ids &&
         a.free_tokens == b.free_tokens;
}

// Documents of the given lengths: pools and picks by chance; `restricted` false: as without pools.
PoolRecord random_record(const PoolTraceHeader& h, std::uint32_t step, std::uint32_t layer,
                         const std::vector<int>& lengths, bool restricted, std::mt19937& gen) {
  PoolRecord r{step, layer, {0}, {}, {}, {}};
  std::vector<std::int32_t> all(h.experts);
  std::iota(all.begin(), all.end(), 0);
  for (const int length : lengths) {
    r.segments.push_back(r.segments.back() + length);
    for (std::uint32_t e = 0; e < h.experts; ++e)
      r.pools.push_back(restricted ? static_cast<std::uint8_t>(gen() % 2) : std::uint8_t{1});
    for (int t = 0; t < length; ++t) {
      std::shuffle(all.begin(), all.end(), gen);
      r.ids.insert(r.ids.end(), all.begin(), all.begin() + h.top_k);
      if (h.free_tokens) r.free_tokens.push_back(restricted ? static_cast<std::uint8_t>(gen() % 2) : std::uint8_t{0});
    }
  }
  return r;
}

void write(PoolTraceWriter& writer, const PoolTraceHeader& h, const PoolRecord& r, bool restricted) {
  Context ctx;
  const auto docs = static_cast<std::int64_t>(r.segments.size()) - 1;
  const Tensor ids = test::tensor_of(r.ids, {r.segments.back(), h.top_k}),
               segments = test::tensor_of(r.segments, {docs + 1}), pool = test::tensor_of(r.pools, {docs, h.experts});
  const Tensor free_tokens = test::tensor_of(r.free_tokens, {static_cast<std::int64_t>(r.free_tokens.size())});
  const bool some = restricted && h.free_tokens;
  writer.write(ctx, r.step, r.layer, ids,
               {restricted ? pool.view() : TensorView{}, segments, some ? free_tokens.view() : TensorView{}});
}

using Lengths = std::vector<std::vector<int>>;  // of documents, by micro-batch
const Lengths kMany{{3, 1, 4}, {}, {5}, {0, 2, 0}, {0}, {1, 1, 1, 1, 1, 1, 1, 1, 1}, {40}};
const Lengths kFew{{2, 1}, {}, {0, 2}};

// Every micro-batch with and without pools.
std::vector<PoolRecord> write_file(const fs::path& file, const PoolTraceHeader& h, const Lengths& micro_batches,
                                   unsigned seed) {
  std::mt19937 gen(seed);
  PoolTraceWriter writer(file, h, PoolTraceFile::Replace);
  std::vector<PoolRecord> records;
  std::uint32_t step = 0;
  for (const std::vector<int>& lengths : micro_batches)
    for (const bool restricted : {true, false}) {
      records.push_back(random_record(h, step, step % h.layers, lengths, restricted, gen));
      write(writer, h, records.back(), restricted);
      ++step;
    }
  writer.flush();
  return records;
}

std::vector<PoolRecord> read_all(PoolTraceReader& reader) {
  std::vector<PoolRecord> records;
  while (auto r = reader.next()) records.push_back(std::move(*r));
  return records;
}

std::string bytes_of(const fs::path& file) { return try_read_text(file).text; }

void write_bytes(const fs::path& file, const std::string& bytes) {
  std::ofstream(file, std::ios::binary | std::ios::trunc)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

std::size_t bytes_of(const PoolTraceHeader& h, const PoolRecord& r) {
  const std::size_t docs = r.segments.size() - 1;
  const std::size_t flags = h.free_tokens ? (r.ids.size() / h.top_k + 7) / 8 : 0;
  return 16 + docs * (4 + (h.experts + 7) / 8) + flags + r.ids.size() * (h.experts <= 256 ? 1 : 2);
}
constexpr std::size_t kHeaderBytes = 24;

TEST(PoolTrace, ReadsWhatWasWritten) {
  const TemporaryDirectory folder;
  for (const std::uint32_t experts : {1U, 8U, 9U, 127U, 256U, 257U, 1000U, 65536U})
    for (const std::uint32_t top_k : {1U, std::min(8U, experts)}) {
      SCOPED_TRACE(testing::Message() << experts << " experts, " << top_k << " picks");
      const PoolTraceHeader h{experts, top_k, 3, experts % 2 == 1};
      const fs::path file = folder.path() / "pools";
      const std::vector<PoolRecord> want = write_file(file, h, kMany, experts + top_k);
      std::size_t size = kHeaderBytes;
      for (const PoolRecord& r : want) size += bytes_of(h, r);
      EXPECT_EQ(fs::file_size(file), size);
      PoolTraceReader reader(file);
      EXPECT_EQ(reader.header(), h);
      const std::vector<PoolRecord> got = read_all(reader);
      ASSERT_EQ(got.size(), want.size());
      for (std::size_t i = 0; i < want.size(); ++i) EXPECT_TRUE(same(got[i], want[i])) << "record " << i;
      EXPECT_FALSE(reader.next().has_value());
    }
}

TEST(PoolTrace, WritesThePromisedBytes) {
  const TemporaryDirectory folder;
  const fs::path file = folder.path() / "pools";
  {
    const PoolTraceHeader h{10, 2, 4};
    PoolTraceWriter writer(file, h, PoolTraceFile::Replace);
    write(writer, h,
          {258, 3, {0, 1, 3}, {1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 1, 1, 0, 0, 0, 0, 0, 1, 0}, {7, 9, 1, 2, 8, 1}}, true);
  }
  const unsigned char want[] = {'E', 'M', 'O', 'X', 'P', 'O', 'O', 'L', 1,    0,    0,    0,    10, 0, 0, 0, 2, 0, 0, 0,
                                4,   0,   0,   0,   2,   1,   0,   0,   3,    0,    0,    0,    2,  0, 0, 0, 3, 0, 0, 0,
                                1,   0,   0,   0,   2,   0,   0,   0,   0x81, 0x02, 0x06, 0x01, 7,  9, 1, 2, 8, 1};
  EXPECT_EQ(bytes_of(file), std::string(std::begin(want), std::end(want)));
}

// Version 2: the last of three tokens is free. Version 1 has no place for that.
TEST(PoolTrace, FreeTokensAreVersionTwo) {
  const TemporaryDirectory folder;
  const fs::path file = folder.path() / "pools";
  const PoolRecord record{258, 3, {0, 3}, {1, 1, 0}, {0, 1, 2}, {0, 0, 1}};
  {
    PoolTraceWriter writer(file, {3, 1, 4, true});
    write(writer, {3, 1, 4, true}, record, true);
    PoolTraceWriter other(folder.path() / "other", {3, 1, 4});
    EXPECT_THROW(write(other, {3, 1, 4, true}, record, true), ShapeError);
  }
  const unsigned char want[] = {'E', 'M', 'O', 'X', 'P', 'O', 'O', 'L', 2, 0, 0, 0, 3, 0, 0, 0, 1,
                                0,   0,   0,   4,   0,   0,   0,   2,   1, 0, 0, 3, 0, 0, 0, 1, 0,
                                0,   0,   3,   0,   0,   0,   3,   0,   0, 0, 3, 4, 0, 1, 2};
  EXPECT_EQ(bytes_of(file), std::string(std::begin(want), std::end(want)));
  PoolTraceReader reader(file);
  EXPECT_TRUE(same(reader.next().value(), record));
}

TEST(PoolTrace, ACutFileGivesItsWholeRecords) {
  const TemporaryDirectory folder;
  for (const std::uint32_t experts : {9U, 300U}) {
    const PoolTraceHeader h{experts, 2, 2, experts == 9};
    const fs::path cut = folder.path() / "cut";
    const std::vector<PoolRecord> want = write_file(cut, h, kFew, 5);
    for (std::size_t length = fs::file_size(cut); length-- > 0;) {
      SCOPED_TRACE(testing::Message() << length << " bytes");
      fs::resize_file(cut, length);
      if (length < kHeaderBytes) {
        EXPECT_NE(usage_error([&] { PoolTraceReader reader(cut); }).find(cut.string()), std::string::npos);
        continue;
      }
      std::size_t records = 0;
      for (std::size_t end = kHeaderBytes; records < want.size(); ++records)
        if ((end += bytes_of(h, want[records])) > length) break;
      PoolTraceReader reader(cut);
      const std::vector<PoolRecord> got = read_all(reader);
      ASSERT_EQ(got.size(), records);
      for (std::size_t i = 0; i < records; ++i) EXPECT_TRUE(same(got[i], want[i])) << "record " << i;
    }
  }
}

// What a record takes in memory, against the file: 8 bits a byte, and a number where the file has at least a byte.
std::size_t elements_of(const PoolRecord& r) { return r.segments.size() + r.pools.size() + r.ids.size(); }

TEST(PoolTrace, AChangedBitIsRefusedOrStaysSmall) {
  const TemporaryDirectory folder;
  std::size_t refused = 0, read = 0;
  for (const std::uint32_t experts : {9U, 300U}) {
    const PoolTraceHeader h{experts, 2, 2};
    const fs::path changed = folder.path() / "changed";
    const std::vector<PoolRecord> want = write_file(changed, h, kFew, 6);
    const std::string bytes = bytes_of(changed);
    std::fstream file(changed, std::ios::in | std::ios::out | std::ios::binary);  // in place: much faster than anew
    const auto put = [&](std::size_t at, char value) {
      file.seekp(static_cast<std::streamoff>(at)).put(value).flush();
      ASSERT_TRUE(file.good());
    };
    std::vector<std::size_t> ends;  // of the records
    for (const PoolRecord& r : want) ends.push_back((ends.empty() ? kHeaderBytes : ends.back()) + bytes_of(h, r));
    for (std::size_t at = 0; at < bytes.size(); ++at)
      for (int bits = 1; bits <= 256; bits *= 2) {  // one of the eight, then all
        SCOPED_TRACE(testing::Message() << "byte " << at << ", bits " << bits);
        put(at, static_cast<char>(bytes[at] ^ (bits == 256 ? 0xFF : bits)));
        std::vector<PoolRecord> got;
        try {
          PoolTraceReader reader(changed);
          while (auto r = reader.next()) {
            got.push_back(std::move(*r));
            ASSERT_LE(elements_of(got.back()), 9 * bytes.size());
            ASSERT_LE(got.size(), bytes.size() / 16);
          }
          EXPECT_GE(at, 12U) << "the magic and the version were changed";
          ++read;
        } catch (const UsageError& e) {
          EXPECT_NE(e.message().find(changed.string()), std::string::npos) << e.message();
          ++refused;
        }
        // Records before the change are what they were.
        for (std::size_t i = 0; at >= kHeaderBytes && i < ends.size() && ends[i] <= at; ++i) {
          ASSERT_GT(got.size(), i);
          ASSERT_TRUE(same(got[i], want[i])) << "record " << i;
        }
        put(at, bytes[at]);
      }
    EXPECT_EQ(bytes_of(changed), bytes);
  }
  EXPECT_GT(refused, 100U);
  EXPECT_GT(read, 100U);
}

TEST(PoolTrace, KeepsTheTokensOfSequences) {
  const TemporaryDirectory folder;
  for (const std::uint32_t vocabulary : {257U, 100'000U})
    for (const bool free_tokens : {false, true}) {
      const fs::path file = folder.path() / fmt::format("pools{}{}", vocabulary, free_tokens);
      const PoolTraceHeader h{9, 2, 2, free_tokens, vocabulary};
      std::mt19937 gen(5);
      std::vector<PoolRecord> want;
      RecordedWords words{3, {}};
      for (int i = 0; i < 6; ++i) words.tokens.push_back(static_cast<std::int32_t>(vocabulary) - 1 - 40 * i);
      Context ctx;
      {
        PoolTraceWriter writer(file, h);
        for (const std::uint32_t layer : {0U, 1U, 0U}) {
          want.push_back(random_record(h, 1, layer, {2, 4}, false, gen));
          const PoolRecord& r = want.back();
          const Tensor ids = test::tensor_of(r.ids, {6, 2}), segments = test::tensor_of(r.segments, {3});
          writer.write(ctx, 1, layer, ids, {{}, segments}, layer == 0 ? words : RecordedWords{});
        }
      }
      {
        PoolTraceWriter writer(folder.path() / fmt::format("bad{}{}", vocabulary, free_tokens), h);
        const Tensor ids = test::tensor_of(want[0].ids, {6, 2}), segments = test::tensor_of(want[0].segments, {3});
        EXPECT_THROW(writer.write(ctx, 1, 0, ids, {{}, segments}, {4, words.tokens}), ShapeError);
        EXPECT_THROW(writer.write(ctx, 1, 0, ids, {{}, segments}), ShapeError);
      }
      {
        PoolTraceReader reader(file);
        EXPECT_EQ(reader.header(), h);
        for (const PoolRecord& r : want) {
          const auto got = reader.next();
          ASSERT_TRUE(got.has_value());
          EXPECT_TRUE(same(*got, r));
          EXPECT_EQ(got->sequence_length, r.layer == 0 ? 3 : 0);
          EXPECT_EQ(got->tokens, r.layer == 0 ? words.tokens : std::vector<std::int32_t>{});
        }
        EXPECT_FALSE(reader.next().has_value());
      }
      // Cut short in the tokens: the record does not count. A word beyond the vocabulary, sequences that do not fit.
      const std::string bytes = bytes_of(file);
      write_bytes(file, bytes.substr(0, bytes.size() - 1));
      PoolTraceReader cut(file);
      EXPECT_TRUE(cut.next() && cut.next());
      EXPECT_FALSE(cut.next().has_value());
      const std::size_t width = vocabulary > 65536 ? 4 : 2;
      const auto last = [&](std::size_t back, char value) {
        std::string other = bytes;
        other[bytes.size() - back] = value;
        write_bytes(file, other);
        PoolTraceReader reader(file);
        return usage_error([&] {
          while (reader.next()) {
          }
        });
      };
      EXPECT_NE(last(width == 2 ? 1 : 2, '\x7F').find("word"), std::string::npos);
      EXPECT_NE(last(6 * width + 4, 4).find("sequences of 4"), std::string::npos);
    }
}

// Numbers that no file of this size can hold.
TEST(PoolTrace, HugeCountsEndTheFile) {
  const TemporaryDirectory folder;
  const fs::path file = folder.path() / "pools";
  const PoolTraceHeader h{64, 8, 1};
  { const PoolTraceWriter writer(file, h); }
  const std::string header = bytes_of(file);
  ASSERT_EQ(header.size(), kHeaderBytes);
  const auto number = [](std::uint32_t v) { return std::string(reinterpret_cast<const char*>(&v), sizeof v); };
  for (const auto& [docs, tokens] : std::vector<std::pair<std::uint32_t, std::uint32_t>>{
           {0xFFFFFFFF, 0}, {0, 0xFFFFFFFF}, {0xFFFFFFFF, 0xFFFFFFFF}, {0x80000000, 1}, {1, 0x40000000}}) {
    write_bytes(file, header + number(0) + number(0) + number(docs) + number(tokens) + std::string(100, '\0'));
    PoolTraceReader reader(file);
    EXPECT_FALSE(reader.next().has_value()) << docs << " documents, " << tokens << " tokens";
  }
}

TEST(PoolTrace, RefusesWhatIsNoRecording) {
  const TemporaryDirectory folder;
  const fs::path file = folder.path() / "pools";
  write_file(file, {9, 2, 2}, kFew, 1);
  const std::string bytes = bytes_of(file);
  const auto refusal = [&](std::size_t at, char value) {
    std::string other = bytes;
    other[at] = value;
    write_bytes(file, other);
    return usage_error([&] { PoolTraceReader reader(file); });
  };
  EXPECT_NE(refusal(0, 'e').find("is not a recording of pools"), std::string::npos);
  EXPECT_NE(refusal(8, 4).find("version 4"), std::string::npos);
  EXPECT_NE(refusal(12, 0).find("0 experts"), std::string::npos);
  EXPECT_NE(refusal(12, 1).find("2 picks"), std::string::npos) << "more picks than experts";
  EXPECT_NE(refusal(16, 0).find("0 picks"), std::string::npos);
  EXPECT_NE(refusal(20, 0).find("0 layers"), std::string::npos);
  EXPECT_NE(usage_error([&] { PoolTraceReader reader(folder.path() / "none"); }).find("none"), std::string::npos);
  EXPECT_NE(usage_error([&] {
              PoolTraceWriter writer(folder.path() / "no" / "folder", {9, 2, 2});
            }).find("folder"),
            std::string::npos);
}

// As a run does that is resumed: records of later steps and a torn one go, the others stay as they are.
TEST(PoolTrace, GoesOnAfterAStep) {
  const TemporaryDirectory folder;
  const fs::path file = folder.path() / "pools", whole = folder.path() / "whole";
  const PoolTraceHeader h{9, 2, 2};
  write_file(file, h, kFew, 1);
  fs::copy(file, whole);
  PoolTraceReader reader(file);
  const std::vector<PoolRecord> records = read_all(reader);
  ASSERT_GT(records.size(), 2U);
  const std::int64_t last = records.back().step;
  ASSERT_GT(last, 1);
  EXPECT_NE(usage_error([&] { PoolTraceWriter writer(file, h); }).find("exists: give --force"), std::string::npos);
  EXPECT_NE(usage_error([&] {
              PoolTraceWriter writer(file, {10, 2, 2}, PoolTraceFile::Continue, 1);
            }).find("of another model"),
            std::string::npos);
  EXPECT_EQ(bytes_of(file), bytes_of(whole));
  std::ofstream(file, std::ios::app) << "torn";
  {
    const PoolTraceWriter writer(file, h, PoolTraceFile::Continue, last);
    EXPECT_EQ(writer.continued_after(), last);
  }
  EXPECT_EQ(bytes_of(file), bytes_of(whole));
  { const PoolTraceWriter writer(file, h, PoolTraceFile::Continue, last - 1); }
  PoolTraceReader shorter(file);
  const std::vector<PoolRecord> kept = read_all(shorter);
  ASSERT_FALSE(kept.empty());
  EXPECT_EQ(static_cast<std::int64_t>(kept.back().step), last - 1);
  EXPECT_EQ(bytes_of(whole).substr(0, bytes_of(file).size()), bytes_of(file));
  { const PoolTraceWriter writer(file, h, PoolTraceFile::Continue, -1); }
  EXPECT_EQ(bytes_of(file).size(), kHeaderBytes);
}

TEST(PoolTrace, FindsAllParts) {
  const TemporaryDirectory folder;
  const fs::path name = folder.path() / "pools";
  EXPECT_EQ(pool_trace_path(name, 0, 1), name);
  EXPECT_EQ(pool_trace_path(name, 1, 4), fs::path(name.string() + ".00001-of-00004"));
  EXPECT_NE(usage_error([&] { pool_trace_files(name); }).find(name.string()), std::string::npos);

  constexpr int kRanks = 12;
  std::vector<fs::path> parts;
  for (int r = 0; r < kRanks; ++r) {
    parts.push_back(pool_trace_path(name, r, kRanks));
    const PoolTraceWriter writer(parts.back(), {9, 2, 2});
  }
  for (const char* beside : {"pools.txt", "pools.00000-of-", "pools.x-of-y", "pools2.00000-of-00002", "other"})
    write_bytes(folder.path() / beside, "");
  EXPECT_EQ(pool_trace_files(name), parts);
  for (int r = 0; r < kRanks; ++r) {
    const fs::path& part = parts[idx(r)];
    fs::rename(part, folder.path() / "away");
    EXPECT_NE(usage_error([&] { pool_trace_files(name); }).find(part.string()), std::string::npos) << r;
    fs::rename(folder.path() / "away", part);
  }
  // Parts of another recording beside them: which one is meant?
  const fs::path stranger = pool_trace_path(name, 1, 2);
  write_bytes(stranger, "");
  EXPECT_NE(usage_error([&] { pool_trace_files(name); }).find(stranger.filename().string()), std::string::npos);
  fs::remove(stranger);

  write_bytes(name, "");
  EXPECT_EQ(pool_trace_files(name), std::vector<fs::path>{name});
}

}  // namespace
}  // namespace emox
