#include "data/format/token_file.h"

#include "runtime/core/idx.h"
#include "tests/data/data_support.h"

namespace emox::test {
namespace {

using Ids = std::vector<std::int32_t>;

class TokenFileTest : public ::testing::Test {
 protected:
  std::filesystem::path file(const std::string& bytes) {
    write_bytes(path_, bytes);
    return path_;
  }
  static Ids read_all(const TokenFile& tokens) {
    Ids ids(idx(tokens.size()));
    tokens.read(0, tokens.size(), ids.data());
    return ids;
  }
  /// Opening the bytes as a token file of 1000 ids fails with these words.
  void rejects(const std::string& bytes, std::initializer_list<std::string_view> parts) {
    file(bytes);
    EXPECT_TRUE(throws_with<UsageError>([&] { TokenFile(path_, 1000); }, parts));
  }

  TemporaryDirectory directory_;
  std::filesystem::path path_ = directory_.path() / "t.npy";
};

TEST_F(TokenFileTest, NpyRoundTripOfEveryWrittenType) {
  write_npy(path_, std::span<const std::uint16_t>(std::vector<std::uint16_t>{0, 1, 65535}));
  EXPECT_EQ(read_all(TokenFile(path_, 65536)), (Ids{0, 1, 65535}));
  write_npy(path_, std::span<const std::uint32_t>(std::vector<std::uint32_t>{7, 70000}));
  EXPECT_EQ(read_all(TokenFile(path_, 100000)), (Ids{7, 70000}));
  write_npy(path_, std::span<const std::int64_t>(std::vector<std::int64_t>{5, 6}));
  EXPECT_EQ(read_all(TokenFile(path_, 10)), (Ids{5, 6}));
  EXPECT_EQ(read_npy_integers(path_), (std::vector<std::int64_t>{5, 6}));
}

TEST_F(TokenFileTest, WriterMakesNumPysLayout) {
  write_npy(path_, std::span<const std::uint16_t>(std::vector<std::uint16_t>{258}));
  const std::string bytes = read_bytes(path_);
  EXPECT_EQ(bytes.size(), 128u + 2u);  // data begin at a multiple of 64
  EXPECT_EQ(bytes.substr(0, 8), std::string("\x93NUMPY\x01\x00", 8));
  EXPECT_EQ(bytes.substr(10, 59), "{'descr': '<u2', 'fortran_order': False, 'shape': (1,), }  ");
  EXPECT_EQ(bytes.substr(127), "\n\x02\x01");
  EXPECT_FALSE(std::filesystem::exists(path_.string() + ".tmp"));
}

TEST_F(TokenFileTest, ReadsVersion2AndI4) {
  file(npy_bytes(2, header("<i4", "(3,)"), raw<std::int32_t>({3, 2, 1})));
  EXPECT_EQ(read_all(TokenFile(path_, 10)), (Ids{3, 2, 1}));
}

TEST_F(TokenFileTest, HeaderlessWidthFollowsTheVocabulary) {
  file(raw<std::uint16_t>({1, 2, 3, 4}));
  EXPECT_EQ(read_all(TokenFile(path_, 65536)), (Ids{1, 2, 3, 4}));
  file(raw<std::uint32_t>({1, 65536}));
  EXPECT_EQ(read_all(TokenFile(path_, 65537)), (Ids{1, 65536}));
}

TEST_F(TokenFileTest, ReadsASlice) {
  const TokenFile tokens(file(raw<std::uint16_t>({10, 11, 12, 13, 14})), 1000);
  Ids slice(2, -1);
  tokens.read(3, 2, slice.data());
  EXPECT_EQ(slice, (Ids{13, 14}));
  EXPECT_TRUE(throws_with<ShapeError>([&] { tokens.read(4, 2, slice.data()); }, {"[4, 6) of 5"}));
}

TEST_F(TokenFileTest, RejectsMissingEmptyAndTruncated) {
  EXPECT_TRUE(throws_with<UsageError>([&] { TokenFile(directory_.path() / "none", 10); }, {"cannot open", "none"}));
  EXPECT_TRUE(throws_with<UsageError>([&] { TokenFile(directory_.path(), 10); }, {"not a regular file"}));
  rejects("", {"t.npy", "empty"});
  rejects("abc", {"3 bytes is no multiple of 2", "uint16"});
  rejects(npy_bytes(1, header("<u2", "(4,)"), raw<std::uint16_t>({1, 2, 3})), {"truncated", "4 elements", "6 bytes"});
  rejects(npy_bytes(1, header("<u2", "(4,)"), "abcdefg"), {"truncated", "4 elements", "7 bytes"});
  rejects(npy_bytes(1, header("<u2", "(1,)"), raw<std::uint16_t>({1, 2})), {"promises 1 elements", "4 bytes follow"});
  rejects(npy_bytes(1, header("<u2", "(0,)"), ""), {"no token"});
  rejects(npy_bytes(1, header("<u2", "(4,)"), "").substr(0, 20), {"truncated .npy header"});
  rejects(std::string("\x93NUMPY\x01", 7), {"truncated .npy header"});
  // A count whose size in bytes overflows 64 bits.
  rejects(npy_bytes(1, header("<i8", "(2305843009213693953,)"), raw<std::int64_t>({1})), {"truncated"});
}

TEST_F(TokenFileTest, RejectsOtherArrays) {
  const std::string two = raw<std::uint16_t>({1, 2});
  rejects(npy_bytes(1, header(">u2", "(2,)"), two), {"'>u2'", "<u2, <u4, <i4 or <i8"});
  rejects(npy_bytes(1, header("<f4", "(1,)"), two), {"'<f4'"});
  rejects(npy_bytes(1, header("|u1", "(4,)"), two), {"'|u1'"});
  rejects(npy_bytes(1, header("<u2", "(1, 2)"), two), {"(1, 2)", "one-dimensional"});
  rejects(npy_bytes(1, header("<u2", "()"), two), {"one-dimensional"});
  rejects(npy_bytes(1, header("<u2", "(2,)", "True"), two), {"C order"});
  rejects(npy_bytes(3, header("<u2", "(2,)"), two), {"version 3"});
  rejects(npy_bytes(1, "{}", two), {"fortran_order"});
}

TEST_F(TokenFileTest, NamesAnIdBeyondTheVocabulary) {
  const TokenFile tokens(file(raw<std::uint16_t>({1, 2, 99, 100})), 100);
  Ids ids(4);
  EXPECT_NO_THROW(tokens.read(0, 3, ids.data()));
  EXPECT_TRUE(throws_with<IoError>([&] { tokens.read(2, 2, ids.data()); },
                                   {"t.npy", "token id 100", "position 3", "[0, 100)"}));
  const TokenFile negative(file(npy_bytes(1, header("<i4", "(1,)"), raw<std::int32_t>({-1}))), 100);
  EXPECT_TRUE(throws_with<IoError>([&] { negative.read(0, 1, ids.data()); }, {"token id -1", "position 0"}));
  // An id that would look valid if its upper half were cut off.
  const TokenFile wide(file(npy_bytes(1, header("<i8", "(1,)"), raw<std::int64_t>({(std::int64_t{1} << 32) + 5}))),
                       100);
  EXPECT_TRUE(throws_with<IoError>([&] { wide.read(0, 1, ids.data()); }, {"token id 4294967301"}));
}

TEST_F(TokenFileTest, DocumentIndexMustCoverTheFile) {
  const auto index = directory_.path() / "t.docs.npy";
  EXPECT_EQ(document_index_path(path_), index);
  const auto set = [&](const std::vector<std::int64_t>& offsets) { write_npy(index, std::span(offsets)); };
  set({0, 3, 5});
  EXPECT_EQ(read_document_index(path_, 5), (std::vector<std::int64_t>{0, 3, 5}));
  EXPECT_TRUE(throws_with<UsageError>([&] { read_document_index(path_, 6); }, {"t.docs.npy", "0 to 5", "6 tokens"}));
  set({1, 5});
  EXPECT_TRUE(throws_with<UsageError>([&] { read_document_index(path_, 5); }, {"1 to 5"}));
  set({0, 3, 3, 5});
  EXPECT_TRUE(throws_with<UsageError>([&] { read_document_index(path_, 5); }, {"offset 2 is 3", "(3)"}));
  set({0});
  EXPECT_TRUE(throws_with<UsageError>([&] { read_document_index(path_, 0); }, {"1 offsets"}));
}

}  // namespace
}  // namespace emox::test
