#include "data/tokenize/tokenizer.h"

#include "runtime/core/idx.h"
#include "tests/data/data_support.h"

namespace emox::test {
namespace {

TEST(ByteTokenizer, EveryByteIsItsOwnId) {
  const auto tokenizer = make_tokenizer("byte");
  std::string all;
  for (int b = 0; b < 256; ++b) all += static_cast<char>(b);
  const std::vector<std::int32_t> ids = tokenizer->encode(all);
  ASSERT_EQ(ids.size(), 256u);
  for (int b = 0; b < 256; ++b) EXPECT_EQ(ids[idx(b)], b);
  EXPECT_EQ(tokenizer->decode(ids), all);
  EXPECT_EQ(tokenizer->vocab_size(), 257);
  EXPECT_EQ(tokenizer->eos(), 256);
  EXPECT_EQ(tokenizer->name(), "byte");
}

TEST(ByteTokenizer, EosDecodesToNothingAndOtherIdsAreNamed) {
  const auto tokenizer = make_tokenizer("byte");
  EXPECT_EQ(tokenizer->decode(std::vector<std::int32_t>{'a', 256, 'b'}), "ab");
  EXPECT_TRUE(throws_with<UsageError>(
      [&] {
        tokenizer->decode(std::vector<std::int32_t>{0, 257});
      },
      {"257", "position 1"}));
  EXPECT_TRUE(throws_with<UsageError>([&] { tokenizer->decode(std::vector<std::int32_t>{-1}); }, {"-1", "position 0"}));
}

TEST(ByteTokenizer, UnknownNameIsAUsageError) {
  EXPECT_TRUE(throws_with<UsageError>([] { make_tokenizer("bpe"); }, {"'bpe'", "byte"}));
}

TEST(Dolma2Ids, NumberTokenFilesAndKnowNoText) {
  const auto tokenizer = make_tokenizer("dolma2");
  EXPECT_EQ(tokenizer->vocab_size(), 100278);
  EXPECT_EQ(tokenizer->eos(), 100257);
  EXPECT_FALSE(tokenizer->knows_text());
  EXPECT_TRUE(make_tokenizer("byte")->knows_text());
  EXPECT_TRUE(throws_with<UsageError>([&] { tokenizer->encode("a"); }, {"token file"}));
  EXPECT_TRUE(throws_with<UsageError>([&] { tokenizer->decode(std::vector<std::int32_t>{1}); }, {"dolma2"}));
}

}  // namespace
}  // namespace emox::test
