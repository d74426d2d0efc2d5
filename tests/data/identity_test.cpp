#include "data/loader/identity.h"

#include <nlohmann/json.hpp>

#include "data/format/fingerprint.h"
#include "data/format/npy.h"
#include "tests/data/data_support.h"

namespace emox::test {
namespace {

namespace fs = std::filesystem;

class IdentityTest : public ::testing::Test {
 protected:
  static std::vector<std::uint16_t> tokens(int count, int first = 0) {
    std::vector<std::uint16_t> ids;
    for (int i = 0; i < count; ++i) ids.push_back(static_cast<std::uint16_t>((first + i * 7) % 250));
    return ids;
  }
  fs::path npy(const std::string& name, const std::vector<std::uint16_t>& ids) const {
    write_npy(directory_.path() / name, std::span(ids));
    return directory_.path() / name;
  }
  fs::path plain(const std::string& name, const std::string& bytes) const {
    write_bytes(directory_.path() / name, bytes);
    return directory_.path() / name;
  }
  static FileIdentity identify(const fs::path& path, TokenWidth width = TokenWidth::Auto, std::int64_t vocab = 257) {
    return identify_file(path, "a", vocab, width);
  }
  static std::string difference(const fs::path& a, const fs::path& b) {
    return file_difference(identify(a), identify(b)).value_or("");
  }
  TemporaryDirectory directory_;
};

TEST_F(IdentityTest, SaysWhatAFileHolds) {
  const auto path = npy("a.npy", tokens(100));
  write_npy(directory_.path() / "a.docs.npy", std::span<const std::int64_t>(std::vector<std::int64_t>{0, 60, 100}));
  const FileIdentity a = identify(path);
  EXPECT_EQ(a.layout.type, NpyType::U2);
  EXPECT_EQ(a.layout.tokens, 100);
  EXPECT_EQ(a.layout.bytes, static_cast<std::int64_t>(fs::file_size(path)));
  EXPECT_EQ(a.documents, 2);
  EXPECT_TRUE(is_whole_fingerprint(a.fingerprint));
  // XXH3-128 of the 200 bytes themselves: a header makes no difference.
  const FileIdentity b = identify(plain("b.bin", raw(tokens(100))));
  EXPECT_EQ(b.fingerprint, a.fingerprint);
  EXPECT_EQ(b.documents, -1);
  EXPECT_EQ(difference(path, directory_.path() / "b.bin"), "");
}

TEST_F(IdentityTest, NamesEveryKindOfDifference) {
  const auto a = npy("a.npy", tokens(100));
  EXPECT_EQ(difference(a, npy("grown.npy", tokens(101))), "has 101 tokens, not 100");
  EXPECT_EQ(difference(a, npy("cut.npy", tokens(1))), "has 1 token, not 100");
  EXPECT_NE(difference(a, npy("other.npy", tokens(100, 1))).find("has other tokens"), std::string::npos);
  std::vector<std::uint32_t> wide;
  for (const auto id : tokens(100)) wide.push_back(id);
  write_npy(directory_.path() / "wide.npy", std::span<const std::uint32_t>(wide));
  EXPECT_EQ(difference(a, directory_.path() / "wide.npy"), "holds ids of type <u4, not <u2");
  const auto indexed = [&](const std::string& name, const std::vector<std::int64_t>& offsets) {
    npy(name + ".npy", tokens(100));
    write_npy(directory_.path() / (name + ".docs.npy"), std::span(offsets));
    return directory_.path() / (name + ".npy");
  };
  const auto two = indexed("two", {0, 60, 100});
  EXPECT_EQ(difference(two, indexed("three", {0, 60, 70, 100})), "has 3 documents by its index, not 2");
  EXPECT_EQ(difference(two, indexed("elsewhere", {0, 50, 100})), "has another document index");
  EXPECT_EQ(difference(two, a), "");  // the tokens are the same
}

// Documents of one source file are not independent: the intervals of an evaluation depend on that list.
TEST_F(IdentityTest, HeldOutTextIsAlsoWhichSourceFileADocumentIsFrom) {
  const auto held_out = [&](const std::string& folder, const std::string& part,
                            const std::vector<std::int64_t>& files) {
    fs::create_directory(directory_.path() / folder);
    fs::path path = npy(folder + "/" + part + ".npy", tokens(100));
    write_npy(directory_.path() / folder / (part + ".docs.npy"),
              std::span<const std::int64_t>(std::vector<std::int64_t>{0, 30, 60, 100}));
    if (!files.empty()) write_npy(directory_.path() / folder / (part + ".files.npy"), std::span(files));
    return path;
  };
  const auto a = held_out("a", "heldout", {0, 0, 1});
  EXPECT_EQ(difference(a, held_out("same", "heldout", {0, 0, 1})), "");
  const auto b = held_out("b", "heldout", {0, 1, 2});
  EXPECT_EQ(difference(a, b), "has other source files of its documents (" +
                                  (directory_.path() / "b" / "heldout.files.npy").string() + ")");
  EXPECT_NE(difference(held_out("a", "tune", {0, 0, 1}), held_out("b", "tune", {0, 1, 2})), "");
  EXPECT_EQ(difference(held_out("a", "train", {0, 0, 1}), held_out("b", "train", {0, 1, 2})), "");
  EXPECT_EQ(difference(a, held_out("none", "heldout", {})), "");  // an older corpus does not know
  EXPECT_EQ(file_identity_from(to_json(identify(a))).files, identify(a).files);
  EXPECT_THROW((void)identify(held_out("short", "heldout", {0, 1})), UsageError);
}

// A large file is sampled: its ends, and what lies between, in a fixed and small number of places.
TEST_F(IdentityTest, ALargeFileIsSampledFromItsFirstToItsLastByte) {
  const auto path = directory_.path() / "large.bin";
  const std::int64_t bytes = kWholeFingerprintBytes + 4096;
  std::ofstream(path).close();
  fs::resize_file(path, static_cast<std::uintmax_t>(bytes));
  const auto set = [&](std::int64_t at, char value) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(at);
    file.put(value);
  };
  std::vector<std::int64_t> begins;
  std::int64_t read = 0;
  const std::string before = fingerprint_of(StoredFile(path), 0, [&](std::int64_t at, auto stretch) {
    begins.push_back(at);
    read += static_cast<std::int64_t>(stretch.size());
  });
  EXPECT_FALSE(is_whole_fingerprint(before));
  EXPECT_LE(read, 4 << 20);
  EXPECT_EQ(begins.front(), 0);
  EXPECT_EQ(begins.back(), bytes - (1 << 16));
  for (const std::int64_t at : {std::int64_t{0}, bytes - 1, begins[15], begins[15] + 65535}) {
    set(at, 1);
    EXPECT_NE(fingerprint_of(StoredFile(path), 0), before) << at;
    set(at, 0);
    EXPECT_EQ(fingerprint_of(StoredFile(path), 0), before) << at;
  }
  const std::string whole = whole_fingerprint_of(StoredFile(path), 0);
  set(begins[15] - 1, 1);
  EXPECT_EQ(fingerprint_of(StoredFile(path), 0), before) << "between samples";
  EXPECT_NE(whole_fingerprint_of(StoredFile(path), 0), whole);
}

TEST_F(IdentityTest, ComesBackFromJson) {
  const std::string name = "odd\xFF\"\n#";
  SourceIdentity source{"l\xC3\xA4\xFE", 0.25, name, "/x y", {identify(npy("a.npy", tokens(9)))}, {}, {}};
  source.held_out = source.train;
  const DataIdentity data{{source}};
  const nlohmann::json json = nlohmann::json::parse(to_json(data).dump());
  const DataIdentity back = data_identity_from(json);
  ASSERT_EQ(back.sources.size(), 1u);
  EXPECT_EQ(back.sources[0].label, source.label);
  EXPECT_EQ(back.sources[0].path, name);
  EXPECT_EQ(back.sources[0].weight, 0.25);
  EXPECT_TRUE(content_differences(data, back).empty());
  EXPECT_EQ(back.sources[0].held_out.size(), 1u);
  EXPECT_THROW(data_identity_from(nlohmann::json(3)), IoError);
  EXPECT_THROW(data_identity_from({{"sources", {{{"label", 1}}}}}), IoError);
}

TEST_F(IdentityTest, SourcesAreComparedByLabelAndFileByFile) {
  const FileIdentity a = identify(npy("a.npy", tokens(9))), b = identify(npy("b.npy", tokens(10)));
  const auto data = [](std::vector<FileIdentity> x, std::vector<FileIdentity> y) {
    return DataIdentity{{{"x", 1, "", "", std::move(x), {}, {}}, {"y", 1, "", "", std::move(y), {}, {}}}};
  };
  EXPECT_TRUE(content_differences(data({a}, {b}), data({a}, {b})).empty());
  const auto swapped = content_differences(data({a}, {b}), data({b}, {a}));
  ASSERT_EQ(swapped.size(), 2u);
  EXPECT_EQ(swapped[0].text, "source x: " + b.path + " has 10 tokens, not 9");
  EXPECT_TRUE(swapped[0].training);
  EXPECT_EQ(swapped[1].label, "y");
  const auto more = content_differences(data({a}, {b}), data({a}, {b, a}));
  ASSERT_EQ(more.size(), 1u);
  EXPECT_EQ(more[0].text, "source y: training text in 2 files, not 1: " + a.path + " is new");
  const auto fewer = content_differences(data({a}, {b, a}), data({a}, {b}));
  ASSERT_EQ(fewer.size(), 1u);
  EXPECT_EQ(fewer[0].text, "source y: training text in 1 file, not 2: " + a.path + " is missing");
}

// One job that does not find held-out text does not make a later one accept any other.
TEST_F(IdentityTest, PartsThatAreNotFoundAreKept) {
  const FileIdentity a = identify(npy("a.npy", tokens(9))), b = identify(npy("b.npy", tokens(10)));
  const DataIdentity before{{{"x", 1, "", "", {a}, {a}, {b}}, {"y", 1, "", "", {a}, {a}, {}}}};
  DataIdentity now{{{"y", 1, "", "", {a}, {b}, {b}}, {"x", 1, "", "", {b}, {}, {}}, {"z", 1, "", "", {a}, {}, {}}}};
  keep_parts_not_found(now, before);
  ASSERT_EQ(now.sources[0].held_out.size(), 1u);
  EXPECT_EQ(now.sources[0].held_out[0].fingerprint, b.fingerprint) << "what was found counts";
  ASSERT_EQ(now.sources[1].held_out.size(), 1u);
  EXPECT_EQ(now.sources[1].held_out[0].fingerprint, a.fingerprint);
  ASSERT_EQ(now.sources[1].tune.size(), 1u);
  EXPECT_EQ(now.sources[1].train[0].fingerprint, b.fingerprint);
  EXPECT_TRUE(now.sources[2].held_out.empty());
  DataIdentity other = now;
  other.sources[1].held_out = {b};
  ASSERT_EQ(content_differences(now, other).size(), 1u);
  EXPECT_FALSE(content_differences(now, other)[0].training);
}

// Headerless files are taken for what they are, or refused with the key that says it.
TEST_F(IdentityTest, RefusesIdsOfAnotherWidth) {
  std::vector<std::uint32_t> wide;
  for (const auto id : tokens(1000)) wide.push_back(id);
  const auto u32 = plain("wide.bin", raw(wide)), u16 = plain("narrow.bin", raw(tokens(1000)));
  const auto refuses = [&](const fs::path& path, TokenWidth width, std::int64_t vocab,
                           std::initializer_list<std::string_view> parts) {
    EXPECT_TRUE(throws_with<UsageError>([&] { identify(path, width, vocab); }, parts)) << path;
  };
  refuses(u32, TokenWidth::Auto, 257, {"wide.bin", "every second", "data.token_type = uint32"});
  refuses(u32, TokenWidth::Uint16, 257, {"every second", "data.token_type = uint32"});
  EXPECT_EQ(identify(u32, TokenWidth::Uint32).layout.tokens, 1000);
  refuses(u16, TokenWidth::Auto, 100278, {"narrow.bin", "uint32 (by model.vocab_size)", "data.token_type = uint16"});
  EXPECT_EQ(identify(u16, TokenWidth::Uint16, 100278).layout.tokens, 1000);
  refuses(plain("odd.bin", raw(tokens(1000)) + "x"), TokenWidth::Auto, 257, {"2001 bytes", "data.token_type"});
  refuses(plain("other.bin", raw(std::vector<std::uint16_t>(64, 300))), TokenWidth::Auto, 257,
          {"other.bin", "64 of 64 ids", "300", "position 0"});
  // Zeros alone are ids like others.
  EXPECT_EQ(identify(plain("zeros.bin", std::string(1000, '\0'))).layout.tokens, 500);
}

TEST_F(IdentityTest, RefusesText) {
  for (const std::string& text : {std::string("A page of English, long enough to be told from numbers. And again.\n"),
                                  std::string("Gr\xC3\xB6\xC3\x9F"
                                              "e und \xC3\x9C"
                                              "bung, gen\xC3\xBCgend lang f\xC3\xBCr eine Aussage. Odd!"),
                                  std::string("\x1F\x8B\x08") + std::string(41, '\x01')}) {
    EXPECT_TRUE(throws_with<UsageError>([&] { identify(plain("book.txt", text)); },
                                        {"book.txt", "emox corpus --text a=", "not a file of token ids"}));
  }
}

// A file that is cut while it is read ends in an error that names it, not in a signal.
TEST_F(IdentityTest, ACutFileIsAnError) {
  const auto path = plain("a.bin", raw(tokens(5000)));
  const TokenFile opened(path, 257);
  const TokenFile later(path, opened.layout(), 257);
  std::vector<std::int32_t> ids(100);
  opened.read(4900, 100, ids.data());
  fs::resize_file(path, 1000);
  EXPECT_TRUE(throws_with<IoError>([&] { opened.read(4900, 100, ids.data()); }, {"a.bin", "cut while it is in use"}));
  EXPECT_TRUE(throws_with<IoError>([&] { later.read(0, 10, ids.data()); },
                                   {"a.bin", "has 1000 bytes, but had 10000", "changed while it is in use"}));
  opened.read(0, 100, ids.data());
}

// As many bytes under the name, in another file or in the same one: told when it is opened again.
TEST_F(IdentityTest, AFileReplacedWhileItIsInUseIsAnError) {
  const auto path = plain("a.bin", raw(tokens(500))), other = plain("b.bin", raw(tokens(500, 1)));
  std::vector<std::int32_t> ids(10);
  const TokenFile opened(path, 257);
  const TokenFile known(path, opened.layout(), 257);
  known.read(0, 10, ids.data());
  // Files read meanwhile close those that were read longest ago.
  const auto read_others = [&] {
    std::vector<TokenFile> others;
    for (int i = 0; i < 70; ++i) others.emplace_back(other, 257);
  };
  read_others();
  opened.read(490, 10, ids.data());
  known.read(490, 10, ids.data());
  read_others();
  fs::rename(other, path);
  for (const TokenFile* file : {&opened, &known})
    EXPECT_TRUE(throws_with<IoError>([&] { file->read(0, 10, ids.data()); }, {"a.bin", "replaced while it is in use"}));
  TokenFile(path, 257).read(0, 10, ids.data());
}

}  // namespace
}  // namespace emox::test
