// retention.csv and the report of a study.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <set>
#include <sstream>
#include <string>

#include "launch/analysis/report/curves.h"
#include "launch/analysis/report/figures.h"
#include "launch/analysis/report/html.h"
#include "launch/analysis/report/paper.h"
#include "launch/analysis/report/plot.h"
#include "launch/analysis/study/cells.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

/// Two domains, EMO and standard with 32 experts, the given seeds: full, 8 and 4 kept.
std::vector<RetentionRow> study_rows(const std::vector<std::int64_t>& seeds) {
  std::vector<RetentionRow> rows;
  for (const std::string model : {"standard", "emo"})
    for (const std::int64_t seed : seeds)
      for (const std::string domain : {"scripture", "code & prose"})
        for (const auto& [selection, kept] :
             {std::pair<std::string, std::int64_t>{"full", 32}, {"layerwise", 8}, {"layerwise", 4}}) {
          const double rise = selection == "full" ? 0 : (model == "emo" ? 0.1 : 1.0) * (kept == 8 ? 1 : 2);
          const double base = (domain == "scripture" ? 1.5 : 1.7) + (model == "emo" ? 0.1 : 0.0);
          rows.push_back(
              {model, seed, domain, selection, kept, 32, base + rise * (1 + 0.1 * static_cast<double>(seed))});
        }
  return rows;
}

std::string error_of(const std::string& text) {
  try {
    (void)read_retention(text, "r.csv");
  } catch (const UsageError& e) {
    return e.message();
  }
  return "(read)";
}

constexpr const char* kHeader = "model,seed,domain,selection,experts_kept,experts_total,loss\n";

TEST(RetentionFile, ReadsWhatItWrites) {
  std::vector<RetentionRow> rows = study_rows({0, 3});
  rows[0].loss = 1.0 / 3;
  const std::string text = write_retention(rows);
  EXPECT_TRUE(text.starts_with(kHeader));
  EXPECT_NE(text.find("\nstandard,0,scripture,layerwise,8,32,2.5\n"), std::string::npos) << text;
  const auto read = read_retention(text, "r.csv");
  ASSERT_EQ(read.size(), rows.size());
  EXPECT_EQ(read[0].loss, rows[0].loss);
  EXPECT_EQ(write_retention(read), text);
  EXPECT_TRUE(read_retention(kHeader, "r.csv").empty());
}

TEST(RetentionFile, MistakesAreNamedWithTheirLine) {
  const auto line = [](const std::string& text) { return error_of(kHeader + text + "\n"); };
  EXPECT_EQ(error_of(""), "r.csv: the file is empty");
  EXPECT_TRUE(error_of("model,seed\n").starts_with("r.csv:1: the header is"));
  EXPECT_TRUE(error_of(std::string(kHeader) + "emo,0,a,full,8,8,1.5").starts_with("r.csv:2: the last line has no end"));
  EXPECT_TRUE(line("emo,0,a,full,8,8").starts_with("r.csv:2: 6 fields instead of 7"));
  EXPECT_EQ(line("emo,x,a,full,8,8,1.5"), "r.csv:2: seed is 'x', not a number");
  EXPECT_EQ(line("emo,0,a,full,8 ,8,1.5"), "r.csv:2: experts_kept is '8 ', not a number");
  EXPECT_EQ(line("emo,0,a,full,8,8,nan"), "r.csv:2: the loss is nan");
  EXPECT_TRUE(line("emo,0,a,best,4,8,1.5").starts_with("r.csv:2: selection is 'best'; known are full, layerwise"));
  EXPECT_TRUE(line("emo,0,a,full,4,8,1.5").starts_with("r.csv:2: selection full with 4 of 8 experts"));
  EXPECT_TRUE(line("emo,0,a,random,8,8,1.5").starts_with("r.csv:2: selection random with 8 of 8 experts"));
  EXPECT_TRUE(line("emo,0,a,random,0,8,1.5").starts_with("r.csv:2: seed 0, 0 of 8 experts"));
  EXPECT_EQ(line("emo,0,,full,8,8,1.5"), "r.csv:2: '' is no name of a domain");
  EXPECT_EQ(line("emo,0,\"a,full,8,8,1.5"), "r.csv:2: the last line has no end: the file is cut short");
  EXPECT_EQ(line("emo,0,a\"b,full,8,8,1.5"), "r.csv:2: a quote inside the field a\"b");
  EXPECT_EQ(line("emo,0,\"a\"b,full,8,8,1.5"), "r.csv:2: 'b' behind the quoted field a");
  EXPECT_EQ(line("emo,0,a,full,8,8,1.5\nemo,0,a,full,8,8,1.6"), "r.csv:3: a second line for emo,0,a,full,8");
  std::vector<RetentionRow> rows = study_rows({0});
  rows[1].loss = std::nan("");
  EXPECT_THROW((void)write_retention(rows), UsageError);
}

// A domain may be called anything: what comes back is what was written, and later lines keep their numbers.
TEST(RetentionFile, LabelsMayHoldAnyBytes) {
  std::vector<RetentionRow> rows;
  for (const std::string domain : {"a,b", "say \"x\"", "two\nlines", "\"", "\xff\xfe", "tab\tand\rreturn", " "})
    rows.push_back({"emo", 0, domain, "full", 8, 8, 1.5});
  const std::string text = write_retention(rows);
  const auto read = read_retention(text, "r.csv");
  ASSERT_EQ(read.size(), rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(read[i].domain, rows[i].domain);
  EXPECT_NE(text.find("emo,0,\"say \"\"x\"\"\",full,"), std::string::npos) << text;
  EXPECT_TRUE(error_of(text + "emo,0\n").starts_with("r.csv:10: 2 fields")) << error_of(text + "emo,0\n");
}

TEST(ChanceFile, ReadsWhatItWritesAndNamesMistakes) {
  const std::vector<ChanceRow> rows{{"emo", 0, "a", 4, 32, 0, 1.5}, {"emo", 0, "a", 4, 32, 1, 2.0 / 3}};
  const std::string text = write_chance(rows);
  const auto read = read_chance(text, "c.csv");
  ASSERT_EQ(read.size(), 2U);
  EXPECT_EQ(read[1].draw, 1);
  EXPECT_EQ(read[1].loss, 2.0 / 3);
  EXPECT_THROW((void)write_chance({rows[0], rows[0]}), UsageError);
  EXPECT_THROW((void)read_chance(text + "emo,0,a,32,32,2,1.5\n", "c.csv"), UsageError);  // all experts: no draw
  EXPECT_THROW((void)read_chance(kHeader, "c.csv"), UsageError);
}

// Pooled over domains and seeds: the domains' own levels do not count.
TEST(ChanceSpread, IsBetweenTheDrawsOfOneDomain) {
  std::vector<ChanceRow> rows;
  for (const auto& [domain, level] : {std::pair{"a", 1.0}, std::pair{"b", 5.0}})
    for (std::int64_t draw = 0; draw < 3; ++draw)
      rows.push_back({"emo", 0, domain, 4, 32, draw, level + 0.1 * static_cast<double>(draw)});
  const auto spreads = chance_spreads(rows);
  ASSERT_EQ(spreads.size(), 1U);
  EXPECT_NEAR(spreads[0].deviation, 0.1, 1e-12);
  EXPECT_EQ(spreads[0].draws, 3);
  EXPECT_EQ(spreads[0].share, 0.125);
}

TEST(RetentionCurves, MeanAndSpreadOverSeeds) {
  const Curves c(study_rows({0, 1, 2}));
  EXPECT_EQ(c.models(), (std::vector<std::string>{"emo", "standard"}));
  EXPECT_EQ(c.domains(), (std::vector<std::string>{"scripture", "code & prose"}));
  EXPECT_EQ(c.shares("layerwise"), (std::vector<double>{1, .25, .125}));
  const auto rise = c.rise("emo", "layerwise", .125);
  ASSERT_TRUE(rise);
  EXPECT_NEAR(rise->mean, 0.22, 1e-12);
  EXPECT_NEAR(rise->low, 0.2, 1e-12);
  EXPECT_NEAR(rise->high, 0.24, 1e-12);
  EXPECT_EQ(rise->seeds, 3);
  EXPECT_NEAR(rise->half, 4.302653 * 0.02 / std::sqrt(3.0), 1e-6);  // t of 2 degrees of freedom
  EXPECT_TRUE(std::isinf(over_seeds({{1, 0.5}})->half));            // one seed says nothing about others
  EXPECT_FALSE(over_seeds({}));
  EXPECT_EQ(c.rise("emo", "layerwise", 1)->high, 0);
  EXPECT_NEAR(c.full_loss("emo")->mean, 1.7, 1e-12);
  EXPECT_NEAR(c.full_loss("standard", "scripture")->mean, 1.5, 1e-12);
}

// A seed without one domain has no mean over domains; a mean of what is left would be another figure.
TEST(RetentionCurves, WhatIsMissingIsMissing) {
  std::vector<RetentionRow> rows = study_rows({0, 1});
  std::erase_if(rows, [](const RetentionRow& r) {
    return r.model == "emo" && r.seed == 1 && r.domain == "scripture" && r.experts_kept == 4;
  });
  std::erase_if(rows, [](const RetentionRow& r) { return r.model == "standard" && r.experts_kept == 8; });
  const Curves c(rows);
  const auto rise = c.rise("emo", "layerwise", .125);
  EXPECT_NEAR(rise->mean, 0.2, 1e-12);
  EXPECT_EQ(rise->seeds, 1);
  EXPECT_EQ(rise->missing, 1);
  EXPECT_FALSE(c.rise("standard", "layerwise", .25));
  const std::string html = report_html(rows, "study");
  EXPECT_NE(html.find("<td class=\"missing\">missing</td>"), std::string::npos);
  EXPECT_NE(html.find("+0.2000 (1 of 2 seeds)"), std::string::npos);
  EXPECT_EQ(report_summary(rows).find(" 25 % kept  standard"), std::string::npos) << report_summary(rows);
}

/// Empty when every tag is closed in order, attributes are quoted and no bare & stands in the text; else what is wrong.
std::string ill_formed(const std::string& html) {
  std::vector<std::string> open;
  std::size_t at = html.find("<html");
  while (at < html.size()) {
    const std::size_t begin = html.find('<', at);
    const std::string between = html.substr(at, begin - at);
    for (std::size_t amp = between.find('&'); amp != std::string::npos; amp = between.find('&', amp + 1)) {
      const std::string entity = between.substr(amp, between.find(';', amp) - amp);
      if (entity != "&amp" && entity != "&lt" && entity != "&gt" && entity != "&quot") return "bare & in " + between;
    }
    if (begin == std::string::npos) break;
    const std::size_t end = html.find('>', begin);
    const std::string tag = html.substr(begin + 1, end - begin - 1);
    if (tag.find('<') != std::string::npos || std::count(tag.begin(), tag.end(), '"') % 2 != 0) return "tag " + tag;
    for (std::size_t eq = tag.find('='); eq != std::string::npos; eq = tag.find('=', tag.find('"', eq + 2)))
      if (tag[eq + 1] != '"') return "unquoted attribute in " + tag;
    const std::string name = tag.substr(0, tag.find_first_of(" \n/", 1));
    if (tag[0] == '/') {
      if (open.empty() || "/" + open.back() != name) return "unexpected <" + tag + ">";
      open.pop_back();
    } else if (tag.back() != '/') {
      open.push_back(name);
    }
    at = end + 1;
  }
  return open.empty() ? "" : "not closed: " + open.back();
}

TEST(StudyReport, IsWellFormedOfflineAndTheSameEveryTime) {
  const auto rows = study_rows({0, 1, 2});
  const std::string html = report_html(rows, "a < b & \"c\"");
  EXPECT_EQ(ill_formed(html), "");
  EXPECT_EQ(ill_formed("<html><p>a & b</p></html>"), "bare & in a & b");
  EXPECT_EQ(ill_formed("<html><p>a</html>"), "unexpected </html>");
  EXPECT_EQ(ill_formed("<html><p class=a>b</p></html>"), "unquoted attribute in p class=a");
  EXPECT_EQ(report_html(rows, "a < b & \"c\""), html);
  EXPECT_NE(html.find("<h1>a &lt; b &amp; &quot;c&quot;</h1>"), std::string::npos);
  EXPECT_NE(html.find("code &amp; prose"), std::string::npos);
  for (const char* outside : {"src=", "href=", "@import", "url(", "<script"})
    EXPECT_EQ(html.find(outside), std::string::npos) << outside;
  EXPECT_NE(html.find("prefers-color-scheme:dark"), std::string::npos);
  // The first plot as a file of its own: the same lines, with the style that the page has.
  const std::string svg = retention_svg(rows), lines = svg.substr(svg.find("<title>"));
  EXPECT_EQ(ill_formed(svg), "");
  EXPECT_TRUE(svg.starts_with("<svg xmlns=")) << svg.substr(0, 80);
  EXPECT_NE(svg.find("<style>"), std::string::npos);
  EXPECT_NE(html.find(lines), std::string::npos);
  EXPECT_EQ(retention_svg({rows.begin(), std::find_if(rows.begin(), rows.end(),
                                                      [](const RetentionRow& r) { return r.selection != "full"; })}),
            "");
  // Seeds in another order are the same study.
  EXPECT_EQ(report_html(study_rows({2, 0, 1}), "a < b & \"c\""), html);
}

TEST(StudyReport, ShowsTheNumbersUnderThePlotsAndThePapers) {
  const std::string html = report_html(study_rows({0, 1, 2}), "study");
  EXPECT_NE(html.find("+0.2200 ± 0.0497 (3 seeds)"), std::string::npos);  // mean over domains
  EXPECT_NE(html.find("+2.2000 ± 0.4968 (3 seeds)"), std::string::npos);
  EXPECT_NE(html.find("<th>scripture</th><td>1.6000 ± 0.0000 (3 seeds)</td>"), std::string::npos);
  EXPECT_NE(html.find("+12.9 %"), std::string::npos);  // 0.22 of 1.7
  EXPECT_NE(html.find("36.1"), std::string::npos);
  EXPECT_NE(html.find("2605.06663"), std::string::npos);
  std::size_t plots = 0, labels = 0;
  for (std::size_t at = html.find("<svg"); at != std::string::npos; at = html.find("<svg", at + 1)) ++plots;
  for (std::size_t at = html.find("class=\"name"); at != std::string::npos; at = html.find("class=\"name", at + 1))
    ++labels;
  EXPECT_EQ(plots, 3U);   // the mean and two domains
  EXPECT_EQ(labels, 6U);  // two models in each
  EXPECT_NE(html.find(">share of the experts kept</text>"), std::string::npos);
  EXPECT_NE(html.find(">rise of the loss, nats a token</text>"), std::string::npos);
  EXPECT_NE(html.find("class=\"whisker\""), std::string::npos);
}

TEST(StudyReport, OneSeedHasNoSpreadAndFullModelsNoCurves) {
  const std::string html = report_html(study_rows({0}), "study");
  EXPECT_NE(html.find("<td>+0.2000</td>"), std::string::npos);
  EXPECT_EQ(html.find("class=\"whisker\""), std::string::npos);
  EXPECT_EQ(html.find("seeds)"), std::string::npos);
  EXPECT_EQ(html.find("±"), std::string::npos);
  std::vector<RetentionRow> rows = study_rows({0});
  std::erase_if(rows, [](const RetentionRow& r) { return r.selection != "full"; });
  const std::string full = report_html(rows, "study");
  EXPECT_EQ(ill_formed(full), "");
  EXPECT_EQ(full.find("<svg"), std::string::npos);
  EXPECT_NE(full.find("No experts were left out"), std::string::npos);
  EXPECT_NE(full.find("full model: +0.1000 nats, +6.2 %\n"), std::string::npos);
  EXPECT_THROW((void)report_html({}, "study"), UsageError);
}

TEST(StudyReport, ASummaryForATerminal) {
  std::vector<RetentionRow> rows = study_rows({0, 1, 2});
  const std::string text = report_summary(rows);
  EXPECT_NE(text.find("12.5 % kept  emo       +0.2200 +- 0.0497 (3 seeds)"), std::string::npos) << text;
  EXPECT_NE(text.find("  full model: +0.1000 +- 0.0000 nats, +6.2 % (3 seeds)\n"), std::string::npos) << text;
  EXPECT_NE(text.find("  rise with 12.5 % kept: 10.0 +- 0.0 % (3 seeds) of the other's\n"), std::string::npos) << text;
  std::erase_if(rows, [](const RetentionRow& r) { return r.model == "standard" && r.seed == 1; });
  for (const std::string& summary : {text, report_summary(rows)}) {
    std::istringstream in(summary);
    for (std::string line; std::getline(in, line);) EXPECT_LE(line.size(), 80U) << line;
  }
}

// A study that is not finished has a seed more of one model; models of different seeds are not compared.
TEST(StudyReport, ComparesTheSeedsThatBothHave) {
  std::vector<RetentionRow> rows = study_rows({0, 1});
  for (RetentionRow& r : rows)
    if (r.model == "emo" && r.seed == 1) r.loss += 7;
  std::erase_if(rows, [](const RetentionRow& r) { return r.model == "standard" && r.seed == 1; });
  const std::string text = report_summary(rows);
  EXPECT_NE(text.find("  full model: +0.1000 nats, +6.2 %\n"), std::string::npos) << text;
  EXPECT_NE(text.find("  standard  1.6000 (1 of 2 seeds)\n"), std::string::npos) << text;
  std::erase_if(rows, [](const RetentionRow& r) { return r.model == "emo" && r.seed == 0; });
  EXPECT_EQ(report_summary(rows).find("full model:"), std::string::npos);
}

// The interval is that of the differences: seeds that raise both models alike cancel.
TEST(StudyReport, ThePairedDifferenceIsSeedBySeed) {
  std::vector<RetentionRow> rows = study_rows({0, 1, 2});
  for (RetentionRow& r : rows)
    r.loss += 0.5 * static_cast<double>(r.seed) + (r.model == "emo" && r.seed == 2 ? 0.03 : 0);
  const Compared both = compare(Curves(rows), "emo", "standard");
  ASSERT_EQ(both.nats.size(), 3U);
  EXPECT_NEAR(both.nats.at(0), 0.1, 1e-12);
  EXPECT_NEAR(both.nats.at(2), 0.13, 1e-12);
  const auto difference = over_seeds(both.nats);
  EXPECT_NEAR(difference->mean, 0.11, 1e-12);
  EXPECT_NEAR(difference->half, 4.302653 * 0.01, 1e-6);  // deviation 0.01 sqrt 3
  EXPECT_NEAR(both.relative.at(1), 0.1 / 2.1, 1e-12);
  ASSERT_EQ(both.rises.size(), 2U);
  EXPECT_NEAR(both.rises[1].ratio.at(1), 0.1, 1e-12);
  const std::string html = report_html(rows, "study");
  EXPECT_NE(html.find("<th>seed 2</th><th>mean</th>"), std::string::npos);
  EXPECT_NE(html.find("<td>+0.1000</td><td>+0.1000</td><td>+0.1300</td><td>+0.1100 ± 0.0430 (3 seeds)</td>"),
            std::string::npos);
  EXPECT_NE(html.find("was not measured (--repeat-rounding)"), std::string::npos);
}

// What a model is called, what differs in it, and how sure its figures are stand in every table.
TEST(StudyReport, NamesModelsByWhatTheyAre) {
  std::vector<RetentionRow> rows = study_rows({0, 1});
  for (RetentionRow r : study_rows({0, 1}))
    if (r.model == "standard" && r.selection == "full") {
      r.model = "eighth-experts", r.experts_kept = r.experts_total = 4, r.loss += 0.25;
      rows.push_back(r);
    }
  StudyNotes notes;
  notes.models = {{"emo", "EMO, 75 % of documents free", 1000, 100, ""},
                  {"standard", "standard MoE", 1000, 100, "train.learning_rate: 0.008 -> 0.016"},
                  {"eighth-experts", "standard MoE of 4 experts", 200, 100, ""}};
  notes.remarks = {"standard MoE, beyond [moe]: train.learning_rate: 0.008 -> 0.016."};
  for (RetentionRow r : study_rows({1}))
    if (r.model == "emo" && r.selection == "full") r.loss -= 0.02, notes.repeats.push_back(r);
  const std::string html = report_html(rows, "study", notes), text = report_summary(rows, notes);
  EXPECT_EQ(ill_formed(html), "");
  for (const std::string part :
       {"<th>EMO, 75 % of documents free</th><td>emo</td><td>1000</td><td>100</td>",
        "train.learning_rate: 0.008 -&gt; 0.016", "<th>4</th><td>1.9100", "<td>1.8500 ± 0.0000 (2 seeds)</td>",
        "<th>EMO, 75 % of documents free</th><td>1</td><td>-0.0200</td>", "loss here: EMO, 75 % of documents free"})
    EXPECT_NE(html.find(part), std::string::npos) << part;
  EXPECT_EQ(html.find("<th>emo</th>"), std::string::npos);
  EXPECT_NE(text.find("EMO, 75 % of documents free, less standard MoE, of the same seeds:\n"), std::string::npos)
      << text;
  EXPECT_NE(text.find("rounding only: up to 0.0200 nats apart"), std::string::npos) << text;
  EXPECT_NE(text.find("beyond [moe]: train.learning_rate"), std::string::npos) << text;
}

// XML cannot hold every byte that a label can.
TEST(StudyReport, OddBytesAreShownAsReplaced) {
  const std::string replaced = "\xEF\xBF\xBD";
  EXPECT_EQ(escape_markup(std::string("a\x01") + "b\xff\xc3\xa4"), "a" + replaced + "b" + replaced + "\xc3\xa4");
  EXPECT_EQ(escape_markup("\xed\xa0\x80"), replaced + replaced + replaced);  // half of a surrogate pair
  EXPECT_EQ(escape_markup("\xc0\x80\xf0\x9f\x99\x82\xe2\x82"),
            replaced + replaced + "\xf0\x9f\x99\x82" + replaced + replaced);
}

// Points are where the axes say, whatever the other lines are: a rise of 0 at the left end on the line of the tick 0.
TEST(StudyPlot, PutsPointsWhereTheAxesSay) {
  Plot plot{"t", "x", "y", {1, .5, .25}, {{"a", {PlotPoint{1, 0, 0, 0}, std::nullopt, PlotPoint{.25, 1, 1, 1}}}}};
  const std::string svg = to_svg(plot);
  EXPECT_NE(svg.find("d=\"M62.0 334.0M592.0 30.0\""), std::string::npos) << svg;  // corners; the gap is not bridged
  EXPECT_NE(svg.find("x=\"56.0\" y=\"338.0\">0.0</text>"), std::string::npos) << svg;
  EXPECT_NE(svg.find("text-anchor=\"middle\" x=\"327.0\" y=\"351.0\">50 %</text>"), std::string::npos) << svg;
  EXPECT_EQ(ill_formed("<html>" + svg + "</html>"), "");
}

// A point a little below 0 makes room for itself, not for a tick far below; one far below has its ticks.
TEST(StudyPlot, TheAxisReachesAsLowAsThePoints) {
  const auto svg_of = [](double low) {
    return to_svg({"t", "x", "y", {1, .5}, {{"a", {PlotPoint{1, low, low, low}, PlotPoint{.5, 2, 2, 2}}}}});
  };
  EXPECT_EQ(svg_of(-0.02).find(">-"), std::string::npos) << svg_of(-0.02);
  EXPECT_NE(svg_of(-0.02).find(">0.0</text>"), std::string::npos) << svg_of(-0.02);
  EXPECT_NE(svg_of(-1.2).find(">-1</text>"), std::string::npos) << svg_of(-1.2);
}

TEST(StudyPlot, EveryModelOfAStudyLooksDifferent) {
  Plot plot{"t", "x", "y", {1, .5}, {}};
  for (const char* name : kCellModels) plot.lines.push_back({name, {PlotPoint{1, 0, 0, 0}, PlotPoint{.5, 1, 1, 1}}});
  const std::string svg = to_svg(plot), style = plot_style();
  std::set<std::string> dashes;
  for (std::size_t i = 0; i < std::size(kCellModels); ++i) {
    EXPECT_NE(svg.find("<g class=\"s" + std::to_string(i) + "\">"), std::string::npos) << i;
    const std::string rule = ".s" + std::to_string(i) + " .line{stroke-dasharray:";
    const std::size_t at = style.find(rule);
    ASSERT_NE(at, std::string::npos) << rule;
    dashes.insert(style.substr(at + rule.size(), style.find('}', at) - at - rule.size()));
  }
  EXPECT_EQ(dashes.size(), std::size(kCellModels));
}

TEST(StudyPlot, LabelsDoNotOverlap) {
  Plot plot{"t", "x", "y", {1, .5}, {}};
  for (const char* name : {"a", "b", "c"})
    plot.lines.push_back({name, {PlotPoint{1, 0, 0, 0}, PlotPoint{.5, 1, 1, 1}}});
  const std::string svg = to_svg(plot);
  std::vector<double> y;
  for (std::size_t at = svg.find("class=\"name"); at != std::string::npos; at = svg.find("class=\"name", at + 1))
    y.push_back(std::stod(svg.substr(svg.find(" y=\"", at) + 4)));
  ASSERT_EQ(y.size(), 3U);
  EXPECT_GE(y[0] - y[1], 13.9);
  EXPECT_GE(y[1] - y[2], 13.9);
}

}  // namespace
}  // namespace emox
