// Bytes of every kind in JSON.
#include "runtime/telemetry/json_text.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "runtime/telemetry/metrics.h"

namespace emox {
namespace {

// Text that the JSON library takes is what it is, for every pair of bytes and what may follow; other bytes are escaped.
TEST(JsonText, ChangesOnlyWhatIsNoText) {
  const auto dumped = [](const std::string& text) -> std::string {
    try {
      return nlohmann::json(text).dump();
    } catch (const nlohmann::json::exception&) {
      return "";
    }
  };
  for (int a = 0; a < 256; ++a)
    for (int b = 0; b < 256; ++b)
      for (const std::string& rest : {std::string(), std::string("\x80"), std::string("\xbf\xbf")}) {
        const std::string text = std::string{static_cast<char>(a), static_cast<char>(b)} + rest;
        const std::string want = dumped(text), got = json_text(nlohmann::json(text));
        ASSERT_EQ(got == want, !want.empty()) << got;
        ASSERT_TRUE(nlohmann::json::accept(got)) << got;
        if (want.empty()) {
          ASSERT_NE(got.find("\\\\x"), std::string::npos) << got;
        }
      }
}

TEST(JsonText, HoldsEveryByte) {
  const nlohmann::ordered_json value = {{"la\xff"
                                         "bel",
                                         {{"path", "\xc3"}, {"list", {"ok", "\x80\x80", 3}}}},
                                        {"n", 1.5}};
  const std::string text = json_text(value);
  EXPECT_EQ(text, R"({"la\\xffbel":{"path":"\\xc3","list":["ok","\\x80\\x80",3]},"n":1.5})");
  EXPECT_EQ(nlohmann::json::parse(text).begin().key(), "la\\xffbel");
  const nlohmann::json plain = {{"a", {1, 2, "\xc3\xbc"}}, {"b", nullptr}};
  EXPECT_EQ(json_text(plain), plain.dump());
  EXPECT_EQ(json_text(plain, 2), plain.dump(2));
  EXPECT_EQ(to_line({{"k\xff", "v\xfe"}, {"x", 0.1}}), R"({"k\\xff": "v\\xfe", "x": 0.1})");
}

}  // namespace
}  // namespace emox
