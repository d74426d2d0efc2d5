#include "model/interchange/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <limits>

#include "runtime/core/error.h"
#include "tests/support/support.h"

namespace emox {
namespace {

using test::TemporaryDirectory;

class Safetensors : public ::testing::Test {
 protected:
  std::filesystem::path path() const { return directory_.path() / "model.safetensors"; }

  /// A file of this header and so many zero bytes of data; `claimed` overrides the header's length.
  void write_raw(const std::string& header, std::size_t data_bytes, std::int64_t claimed = -1) const {
    const auto length = static_cast<std::uint64_t>(claimed >= 0 ? claimed : static_cast<std::int64_t>(header.size()));
    std::ofstream out(path(), std::ios::binary);
    out.write(reinterpret_cast<const char*>(&length), sizeof length);
    out << header << std::string(data_bytes, '\0');
  }

  void expect_refused(const std::string& reason) const {
    try {
      const SafetensorsFile file(path());
      FAIL() << "accepted; expected: " << reason;
    } catch (const IoError& e) {
      EXPECT_NE(e.message().find(reason), std::string::npos) << e.message();
      EXPECT_NE(e.message().find(path().string()), std::string::npos) << e.message();
    }
  }

  TemporaryDirectory directory_;
};

template <typename T>
SafetensorEntry entry(const std::string& name, const std::string& dtype, std::vector<std::int64_t> shape,
                      const std::vector<T>& values) {
  return {name, dtype, std::move(shape), std::as_bytes(std::span(values))};
}

TEST_F(Safetensors, RoundTrip) {
  const std::vector<float> f = {1.5F, -0.0F, std::numeric_limits<float>::denorm_min(), 3e38F, -2, 1.0F / 3};
  const std::vector<double> d = {1.0 / 3, -1e300};
  const std::vector<std::int64_t> i = {1, std::numeric_limits<std::int64_t>::min()};
  const std::vector<std::uint8_t> u = {7, 255, 0};
  const std::vector<std::uint16_t> bf16 = {0x3F80, 0xC000};
  const std::vector<SafetensorEntry> entries = {
      entry("u", "U8", {3}, u),       f32_entry("a.weight", {2, 3}, f), entry("d", "F64", {2}, d),
      entry("i", "I64", {2, 1}, i),   entry("half", "BF16", {2}, bf16), f32_entry("scalar", {}, std::span(f).first(1)),
      f32_entry("empty", {0, 4}, {}),
  };
  write_safetensors(path(), entries, {{"format", "pt"}});

  const SafetensorsFile file(path());
  EXPECT_EQ(file.names(), (std::vector<std::string>{"a.weight", "d", "empty", "half", "i", "scalar", "u"}));
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.info("a.weight").dtype, "F32");
  EXPECT_EQ(file.info("a.weight").shape, (std::vector<std::int64_t>{2, 3}));
  const std::vector<float> got = file.read_f32("a.weight");
  EXPECT_EQ(std::memcmp(got.data(), f.data(), f.size() * sizeof(float)), 0);
  EXPECT_EQ(file.read_f64("a.weight")[5], static_cast<double>(f[5]));
  EXPECT_EQ(file.read_f64("d"), d);
  EXPECT_EQ(file.read_f32("d")[0], static_cast<float>(d[0]));
  EXPECT_EQ(file.read_f32("half"), (std::vector<float>{1, -2}));
  EXPECT_EQ(file.read_i64("i"), i);
  EXPECT_EQ(file.read_i64("u"), (std::vector<std::int64_t>{7, 255, 0}));
  EXPECT_EQ(file.read_f32("scalar"), std::vector<float>{1.5F});
  EXPECT_TRUE(file.read_f32("empty").empty());
  EXPECT_TRUE(file.contains("i"));
  EXPECT_FALSE(file.contains("j"));
}

TEST_F(Safetensors, NamesWhatIsMissingOrOfAnotherKind) {
  const std::vector<std::int64_t> i = {1};
  write_safetensors(path(), std::vector{entry("i", "I64", {1}, i)});
  const SafetensorsFile file(path());
  EXPECT_THROW(file.read_f32("i"), IoError);
  try {
    file.info("model.norm.weight");
    FAIL();
  } catch (const IoError& e) {
    EXPECT_NE(e.message().find("has no tensor model.norm.weight"), std::string::npos) << e.message();
  }
}

TEST_F(Safetensors, WriterRefusesEntriesThatDoNotFit) {
  const std::vector<float> f(6);
  EXPECT_THROW(write_safetensors(path(), std::vector{f32_entry("a", {2, 2}, f)}), ShapeError);
  EXPECT_THROW(write_safetensors(path(), std::vector{f32_entry("a", {6}, f), f32_entry("a", {6}, f)}), ShapeError);
  EXPECT_THROW(write_safetensors(directory_.path() / "no" / "x", std::vector{f32_entry("a", {6}, f)}), IoError);
  EXPECT_TRUE(std::filesystem::is_empty(directory_.path()));
}

TEST_F(Safetensors, MissingAndShortFiles) {
  EXPECT_THROW(SafetensorsFile{path()}, IoError);
  std::ofstream(path()) << "";
  expect_refused("0 bytes");
  std::ofstream(path()) << "short";
  expect_refused("5 bytes");
  EXPECT_THROW(SafetensorsFile{directory_.path()}, IoError);
}

TEST_F(Safetensors, HeaderLength) {
  write_raw("{}", 0);
  EXPECT_TRUE(SafetensorsFile(path()).names().empty());
  write_raw("{}", 0, 3);
  expect_refused("only 2 follow");
  write_raw("{}", 0, std::numeric_limits<std::int64_t>::max());
  expect_refused("more than the");
  write_raw("", 8, 0);
  expect_refused("not JSON");
}

TEST_F(Safetensors, HeaderContent) {
  write_raw("{\"a\":", 4);
  expect_refused("not JSON");
  write_raw("[1]", 4);
  expect_refused("not a JSON object");
  write_raw(R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4);
  expect_refused("entry a");
  write_raw(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4);
  expect_refused("-1 in its header is not a count");
  write_raw(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4.5]}})", 4);
  expect_refused("4.5 in its header is not a count");
  write_raw(R"({"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}})", 4);
  expect_refused("unknown type \"F33\"");
  write_raw(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4);
  expect_refused("two data_offsets");
  write_raw(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}})", 4);
  expect_refused("more than 2^63 bytes");
}

TEST_F(Safetensors, Offsets) {
  const std::string one = R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  write_raw(one, 4);
  EXPECT_EQ(SafetensorsFile(path()).read_f32("a"), std::vector<float>{0});
  write_raw(one, 3);
  expect_refused("tensor a lies at bytes 0 to 4 of the data, which has 3");
  write_raw(one, 5);
  expect_refused("end at byte 4 of the data, which has 5");
  write_raw(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4);
  expect_refused("lies at bytes 4 to 0");
  write_raw(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4);
  expect_refused("tensor a has 4 bytes, its shape and type F32 need 8");
  write_raw(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8);
  expect_refused("belong to no tensor");
  write_raw(
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
      12);
  expect_refused("tensor b overlaps another");
}

TEST_F(Safetensors, DuplicateNames) {
  write_raw(
      R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
      4);
  expect_refused("\"a\" comes twice");
}

}  // namespace
}  // namespace emox
