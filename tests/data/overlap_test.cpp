#include "data/corpus/overlap.h"

#include <set>

#include "tests/data/data_support.h"

namespace emox::test {
namespace {

using Texts = std::vector<std::string>;

/// The definition, without any hash: every span of every text, as it is.
std::int64_t repeated_naively(const std::string& text, const Texts& others) {
  std::set<std::string> spans;
  for (const std::string& other : others)
    for (std::size_t i = 0; i + kSpanBytes <= other.size(); ++i) spans.insert(other.substr(i, kSpanBytes));
  std::vector<bool> repeated(text.size());
  for (std::size_t i = 0; i + kSpanBytes <= text.size(); ++i) {
    if (spans.contains(text.substr(i, kSpanBytes)))
      std::fill_n(repeated.begin() + static_cast<std::ptrdiff_t>(i), kSpanBytes, true);
  }
  return std::count(repeated.begin(), repeated.end(), true);
}

/// Letters from a small alphabet with long runs, and pieces of what is already there: spans that differ by little.
std::string repetitive_text(std::uint32_t& state, std::size_t bytes, const std::string& from) {
  const auto next = [&](std::uint32_t below) {
    state = state * 1664525 + 1013904223;
    return (state >> 8) % below;
  };
  std::string text;
  while (text.size() < bytes) {
    if (!from.empty() && next(3) == 0)
      text += from.substr(next(static_cast<std::uint32_t>(from.size())), 40 + next(200));
    else if (next(8) == 0)
      text.append(60 + next(60), static_cast<char>(next(2) == 0 ? 0 : 0xFF));
    else
      for (int i = 0; i < 30; ++i) text += static_cast<char>('a' + next(3));
  }
  return text.substr(0, bytes);
}

TEST(Overlap, IsTheDefinition) {
  std::uint32_t state = 7;
  Texts train, held;
  for (std::size_t i = 0; i < 12; ++i) train.push_back(repetitive_text(state, 60 + 90 * i, i == 0 ? "" : train.back()));
  for (std::size_t i = 0; i < 24; ++i) held.push_back(repetitive_text(state, 40 + 50 * i, train[i / 2]));
  SpanMarks spans(20'000);
  for (const std::string& t : held) spans.add(t);
  std::int64_t total = 0;
  for (const std::string& t : train) spans.mark(t, 1);
  for (const std::string& t : held) {
    const std::int64_t expected = repeated_naively(t, train);
    EXPECT_EQ(spans.repeated_bytes(t, 1), expected);
    EXPECT_EQ(spans.repeated_bytes(t, 2), 0);
    total += expected;
  }
  EXPECT_GT(total, 2'000) << "the texts repeat nothing: nothing was tested";
  EXPECT_LT(total, 14'000);
}

TEST(Overlap, CountsWholeSpansAtAnyPlaceAndOnce) {
  std::uint32_t state = 1;
  const std::string common = repetitive_text(state, kSpanBytes, "");
  const std::string text = "before:" + common + "+between-" + common + ".";
  SpanMarks spans(1000);
  spans.add(text);
  spans.mark("x" + common.substr(1), 1);  // 79 bytes
  EXPECT_EQ(spans.repeated_bytes(text, 1), 0);
  spans.mark("another place;" + common, 1);
  EXPECT_EQ(spans.repeated_bytes(text, 1), 160);
  EXPECT_EQ(spans.repeated_bytes(text, 2), 0);
  spans.mark(text.substr(0, 100), 2);
  EXPECT_EQ(spans.repeated_bytes(text, 2), 176);  // [0, 100) and, as it begins, [96, 176)
  EXPECT_EQ(spans.repeated_bytes(text, 1 | 2), 176);
  EXPECT_EQ(spans.repeated_bytes("a text that was not added;" + common, 1), 80);
  EXPECT_EQ(spans.repeated_bytes(common.substr(0, 79), 3), 0);
}

TEST(Overlap, RefusesMoreThanItHasRoomFor) {
  std::uint32_t state = 1;
  SpanMarks spans(100);
  EXPECT_THROW(spans.add(repetitive_text(state, 1000, "")), ShapeError);
}

}  // namespace
}  // namespace emox::test
