#include "data/corpus/assemble.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "runtime/core/idx.h"
#include "tests/data/data_support.h"

namespace emox::test {
namespace {

using Texts = std::vector<std::string>;

Texts texts_of(const std::vector<Document>& documents) {
  Texts texts;
  for (const Document& d : documents) texts.push_back(d.text);
  return texts;
}

TEST(Documents, DuplicatesAreDroppedAcrossFilesAndDomains) {
  SeenTexts seen;
  DomainReport first, second;
  Pieces x, y;
  const std::string a(300, 'a'), b(300, 'b'), c(300, 'c');
  add_file(x, "1", {a, b, a}, false, seen, first);
  EXPECT_EQ(texts_of(x.pieces), (Texts{a, b}));
  add_file(y, "2", {b, c + "\r\n"}, true, seen, second);
  add_file(y, "3", {c}, false, seen, second);
  EXPECT_EQ(texts_of(y.pieces), (Texts{c}));
  EXPECT_EQ(first.duplicates, 1);
  EXPECT_EQ(second.duplicates, 2);
}

TEST(Documents, ShortOnesAreJoinedWithinAFileAndPartOrDropped) {
  SeenTexts seen;
  DomainReport report;
  Pieces files, entries;
  const std::string a(150, 'a'), b(150, 'b'), c(150, 'c');
  add_file(files, "x", {a, b, "tiny"}, false, seen, report);
  add_file(files, "y", {c}, false, seen, report);
  const Parts parts = divide(files, 4);
  Texts all = texts_of(parts.train);
  for (const auto* part : {&parts.tune, &parts.held_out})
    for (const Document& d : *part) all.push_back(d.text);
  std::sort(all.begin(), all.end());
  EXPECT_EQ(all, (Texts{a + "\n\n" + b, c})) << "never across files";
  EXPECT_EQ(parts.too_short, 1);

  for (int i = 0; i < 400; ++i) add_file(entries, "z", {made_text(i, 100)}, true, seen, report);
  for (const Document& d : divide(entries, 2).held_out) {
    for (std::size_t at = 0; at < d.text.size(); at += 102) {
      Pieces alone;
      SeenTexts fresh;
      add_file(alone, "z", {d.text.substr(at, 100)}, true, fresh, report);
      EXPECT_EQ(part_of(alone.groups[0].hash, 2), Part::Report) << "joined with an entry of another part";
    }
  }
}

TEST(Division, IsOfWholeSourcesAndLargerSharesHoldSmallerOnes) {
  SeenTexts seen;
  DomainReport report;
  Pieces pieces;
  for (int f = 0; f < 300; ++f)
    add_file(pieces, fmt::format("file {}", f), {made_text(2 * f, 300), made_text(2 * f + 1, 300)}, false, seen,
             report);
  std::set<std::size_t> tune, held;
  for (int bits = 5; bits >= 2; --bits) {
    const double share = std::ldexp(1.0, -bits);
    const Parts parts = divide(pieces, bits);
    std::map<std::size_t, std::set<Part>> of_group;
    std::set<std::size_t> tune_now, held_now;
    for (const Document& d : parts.train) of_group[d.group].insert(Part::Train);
    for (const Document& d : parts.tune) of_group[d.group].insert(Part::Tune), tune_now.insert(d.group);
    for (const Document& d : parts.held_out) of_group[d.group].insert(Part::Report), held_now.insert(d.group);
    EXPECT_EQ(of_group.size(), 300u);
    for (const auto& [group, parts_of] : of_group) EXPECT_EQ(parts_of.size(), 1u) << pieces.files[group];
    for (const auto& [now, before] : {std::pair(&tune_now, &tune), std::pair(&held_now, &held)}) {
      EXPECT_NEAR(static_cast<double>(now->size()), 300 * share, 5 * std::sqrt(300 * share));
      EXPECT_TRUE(std::includes(now->begin(), now->end(), before->begin(), before->end()));
      *before = *now;
    }
    EXPECT_EQ(parts.train.size() + parts.tune.size() + parts.held_out.size(), 600u);
    const Texts order = texts_of(parts.train);
    EXPECT_FALSE(std::is_sorted(order.begin(), order.end())) << "pseudo-random order";
  }
}

TEST(Division, DoesNotDependOnTheOrderOfTheFiles) {
  SeenTexts seen, again;
  DomainReport report;
  Pieces forwards, backwards;
  for (int f = 0; f < 100; ++f) {
    add_file(forwards, fmt::format("file {}", f), {made_text(f, 300)}, false, seen, report);
    add_file(backwards, fmt::format("file {}", 99 - f), {made_text(99 - f, 300)}, false, again, report);
  }
  const Parts a = divide(forwards, 3), b = divide(backwards, 3);
  EXPECT_EQ(texts_of(a.train), texts_of(b.train));
  EXPECT_EQ(texts_of(a.tune), texts_of(b.tune));
  EXPECT_EQ(texts_of(a.held_out), texts_of(b.held_out));
}

TEST(Division, CapsTheBytesAndTheHeldOutDocuments) {
  SeenTexts seen;
  DomainReport report;
  Pieces pieces;
  for (int i = 0; i < 4000; ++i) add_file(pieces, "x", {made_text(i, 250)}, true, seen, report);
  Parts few = divide(pieces, 4), many = divide(pieces, 4);
  const auto total = static_cast<std::int64_t>(few.train.size() + few.tune.size() + few.held_out.size());
  EXPECT_EQ(cap(few, 25'100, 0.05), total - 140);
  EXPECT_EQ(few.train.size(), 100u);
  EXPECT_EQ(few.held_out.size(), 20u);  // the minimum, above 5 % of 100
  EXPECT_EQ(few.tune.size(), 20u);
  cap(many, 250'000, 0.05);
  EXPECT_EQ(many.train.size(), 1000u);
  EXPECT_EQ(many.held_out.size(), 50u);
  const auto begins_with = [](const std::vector<Document>& all, const std::vector<Document>& first) {
    const Texts a = texts_of(all), b = texts_of(first);
    return std::equal(b.begin(), b.end(), a.begin());
  };
  EXPECT_TRUE(begins_with(many.held_out, few.held_out));
  EXPECT_TRUE(begins_with(many.tune, few.tune));
}

TEST(Division, HoldsOutDocumentsOfAsManySourcesAsThereAre) {
  Parts parts;
  parts.train.push_back({made_text(0, 300), 99});
  for (int i = 0; i < 60; ++i) parts.tune.push_back({made_text(i, 300), i < 40 ? 0u : idx(i) / 2});
  cap(parts, 1000, 0.5);
  std::map<std::size_t, int> of_source;
  for (const Document& d : parts.tune) ++of_source[d.group];
  EXPECT_EQ(parts.tune.size(), 20u);
  EXPECT_EQ(of_source.size(), 11u);
  EXPECT_EQ(of_source[0], 2) << "a second one of a source only after the first of every one";
}

TEST(Division, WhatRepeatsTrainingTextIsNotHeldOut) {
  std::vector<Parts> domains(2);
  const std::string common = made_text(1, 100), secret = made_text(2, 100);
  const auto document = [](const std::string& text) { return Document{text, 0}; };
  domains[0].train = {document(made_text(3, 400) + common)};
  domains[1].train = {document(made_text(4, 400) + secret.substr(0, 79))};
  domains[0].held_out = {document(made_text(5, 400)), document(made_text(6, 400) + common),
                         document(made_text(7, 5000) + common), document(made_text(8, 400) + secret)};
  domains[1].held_out = {document(common + made_text(9, 400))};  // repeats what another domain trains on
  domains[1].tune = {document(made_text(10, 400) + secret), document(made_text(11, 400)), document(made_text(12, 70))};
  const SpanMarks spans = mark_spans(domains);
  EXPECT_EQ(drop_repeated(domains[0], spans), 1);
  EXPECT_EQ(domains[0].held_out.size(), 3u) << "2 % of the third is repeated, which is too little";
  EXPECT_NEAR(repeated_share(domains[0].held_out, spans, kInTraining), 100 / 6000.0, 1e-3);
  EXPECT_EQ(drop_repeated(domains[1], spans), 2);
  EXPECT_TRUE(domains[1].held_out.empty());
  EXPECT_EQ(texts_of(domains[1].tune), (Texts{made_text(11, 400), made_text(12, 70)})) << "it repeats reported text";
}

}  // namespace
}  // namespace emox::test
