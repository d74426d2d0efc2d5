// Figures of runs against runs that the test writes itself, whose figures are known by hand; and the program's report
// of real ones.
#include "launch/analysis/runs/run_report.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "launch/config/recipe_file.h"
#include "runtime/core/error.h"
#include "tests/launch/tiny_program.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

/// A run of 40 steps on so many ranks: every step takes `seconds`, but those that must not count take ten times that.
struct WrittenRun {
  int ranks = 1, ranks_per_node = 2;
  double seconds = 1;
  std::int64_t batch = 8;
  double loss = 2;
  bool finished = true;
  std::int64_t d_model = 64, steps = 40;
};

fs::path write_run(const fs::path& directory, const WrittenRun& w) {
  fs::create_directories(directory);
  Recipe r;
  r.run.name = directory.filename().string(), r.run.dir = directory.string();
  r.data.source = {"a:1:b"};
  r.model.d_model = w.d_model;
  r.train.batch_sequences = w.batch, r.train.steps = w.finished ? w.steps : 2 * w.steps;
  r.checkpoint.every_steps = 10;
  std::ofstream(directory / "recipe.ini") << to_ini(r);
  nlohmann::json jobs = nlohmann::json::array();
  jobs.push_back({{"started", "2026-12-01T00:00:00Z"},
                  {"host", "one"},
                  {"ranks", w.ranks},
                  {"ranks_per_node", w.ranks_per_node},
                  {"threads_per_rank", 1},
                  {"from_step", 0},
                  {"device", "a <CPU> & more"},
                  {"changes", nlohmann::json::array()}});
  jobs.push_back(jobs[0]);
  jobs[1]["from_step"] = 20;
  jobs[1]["changes"] = {{{"step", 20}, {"key", "train.threads"}, {"old", 0}, {"new", 1}}};
  std::ofstream(directory / "run.json") << jobs;
  std::ofstream metrics(directory / "metrics.jsonl");
  const double tokens = static_cast<double>(w.batch * r.model.sequence_length);
  for (std::int64_t s = 1; s <= w.steps; ++s) {
    const bool unusual = s <= 2 || s == 21 || s == 22 || s % 10 == 0;
    const double seconds = w.seconds * (unusual ? 10 : 1);
    nlohmann::json line = {{"step", s},
                           {"tokens", s * w.batch * r.model.sequence_length},
                           {"ce", w.loss + (s > w.steps - 2 ? 0.0 : 1.0)},
                           {"step_s", seconds},
                           {"tokens_per_s", tokens / seconds},
                           {"useful_s_min", 0.4 * seconds},
                           {"useful_s_mean", 0.6 * seconds},
                           {"useful_s_max", 0.8 * seconds},
                           {"load_max_over_mean", nullptr},
                           {"phase_s", {{"forward", 0.25 * seconds}, {"backward", 0.5 * seconds}}}};
    metrics << line << "\n";
    if (s == 15) metrics << "{\"step\": 16, \"torn\n";
  }
  std::ofstream(directory / "eval.jsonl")
      << R"({"step": 40, "mean": {"loss": )" << w.loss + 0.25 << R"(, "bits_per_byte": 3}})"
      << "\n";
  return directory;
}

TEST(RunFigures, AreThoseOfUsualSteps) {
  const test::TemporaryDirectory directory;
  const RunHistory run = read_history(write_run(directory.path() / "one", {.ranks = 3, .seconds = 0.5}));
  EXPECT_EQ(run.steps.size(), 40U);
  EXPECT_EQ(run.unreadable, 1);
  const RunFigures f = figures_of(run);
  EXPECT_EQ(f.name, "one");
  EXPECT_EQ(f.ranks, 3);
  EXPECT_EQ(f.nodes, 2);
  EXPECT_EQ(f.left_out, 8U);  // 1, 2, 10, 20, 21, 22, 30, 40
  EXPECT_EQ(f.counted, 32U);
  EXPECT_DOUBLE_EQ(f.step_s.value, 0.5);
  EXPECT_DOUBLE_EQ(f.step_s.low, 0.5);
  EXPECT_DOUBLE_EQ(f.step_s.high, 0.5);
  EXPECT_DOUBLE_EQ(f.tokens_per_s.value, 8 * 512 / 0.5);
  EXPECT_DOUBLE_EQ(f.train_loss, 2);
  EXPECT_DOUBLE_EQ(f.held_out, 2.25);
  EXPECT_DOUBLE_EQ(f.bits_per_byte, 3);
  EXPECT_NEAR(f.load_balance, 0.75, 1e-12);
  EXPECT_NEAR(f.communication_efficiency, 0.8, 1e-12);
  EXPECT_NEAR(f.parallel_efficiency, 0.6, 1e-12);
  EXPECT_NEAR(f.phase_s[0], 0.125, 1e-12);
  EXPECT_TRUE(std::isnan(f.load_max_over_mean));
  EXPECT_TRUE(std::isnan(f.phase_s[4]));
  EXPECT_EQ(f.restarts, 1U);
  EXPECT_EQ(f.changes, 1U);
  EXPECT_TRUE(f.finished);
  // By hand: 64 wide, 6 layers, 4 active experts of width 256 and a router of 32 rows, norms; no embeddings.
  EXPECT_DOUBLE_EQ(f.parameters, 64 + 6 * (4 * 64 * 64 + 2 * 64 + 32 * 64 + 4 * 3 * 64 * 256));
}

// The interval of 95 % and more holds the true median of draws in as many cases.
TEST(RunFigures, MediansLieInTheirIntervals) {
  EXPECT_DOUBLE_EQ(median_interval({3, 1, NAN, 2}).value, 2);
  EXPECT_EQ(median_interval({3, 1, NAN, 2}).count, 3U);
  EXPECT_DOUBLE_EQ(median_interval({4, 1, 3, 2}).value, 2.5);
  EXPECT_DOUBLE_EQ(median_interval({1, 2, 3, 4, 5}).low, 1);  // 2 / 2^5 lie outside: more than 5 %
  EXPECT_DOUBLE_EQ(median_interval({1, 2, 3, 4, 5, 6}).high, 6);
  EXPECT_DOUBLE_EQ(median_interval({1, 2, 3, 4, 5, 6, 7, 8, 9}).low, 2);  // the tables: 2nd to 8th of 9
  EXPECT_DOUBLE_EQ(median_interval({1, 2, 3, 4, 5, 6, 7, 8, 9}).high, 8);
  EXPECT_TRUE(std::isnan(median_interval({}).value));
  std::mt19937 random(5);
  std::exponential_distribution<double> draw(1);
  for (const std::size_t n : {12U, 50U, 2000U}) {
    int held = 0;
    for (int trial = 0; trial < 400; ++trial) {
      std::vector<double> x(n);
      for (double& v : x) v = draw(random);
      const MedianInterval m = median_interval(x);
      held += m.low <= std::log(2) && std::log(2) <= m.high;
    }
    EXPECT_GE(held, 370) << n;  // 380 and more expected, 4.4 of deviation
  }
}

TEST(RunScaling, IsAgainstTheSmallest) {
  const test::TemporaryDirectory d;
  std::vector<RunHistory> runs;
  // Strong: 1, 2 and 4 ranks take 1, 0.5 and 0.4 s. Weak: 2 and 4 ranks with twice and four times the batch, 1 and 1.25
  // s.
  const std::vector<WrittenRun> written = {{.ranks = 1, .seconds = 1},
                                           {.ranks = 4, .seconds = 0.4},
                                           {.ranks = 2, .seconds = 0.5},
                                           {.ranks = 2, .seconds = 1, .batch = 16},
                                           {.ranks = 4, .seconds = 1.25, .batch = 32},
                                           {.ranks = 8, .batch = 9, .d_model = 128}};
  for (std::size_t i = 0; i < written.size(); ++i)
    runs.push_back(read_history(write_run(d.path() / ("run-" + std::to_string(i)), written[i])));
  const RunReport report = make_report(runs);
  ASSERT_EQ(report.scaling.size(), 2U);
  const Scaling &strong = report.scaling[0], &weak = report.scaling[1];
  ASSERT_TRUE(strong.strong && !weak.strong);
  ASSERT_EQ(strong.points.size(), 3U);
  EXPECT_EQ(strong.points[1].ranks, 2);
  EXPECT_NEAR(strong.points[1].efficiency, 1, 1e-9);
  EXPECT_NEAR(strong.points[2].speed_up, 2.5, 1e-9);
  EXPECT_NEAR(strong.points[2].efficiency, 0.625, 1e-9);
  EXPECT_EQ(strong.points[2].runs, std::vector<std::string>{"run-1"});
  ASSERT_EQ(weak.points.size(), 3U);  // the first run has the same share of a rank
  EXPECT_NEAR(weak.points[1].efficiency, 1, 1e-9);
  EXPECT_NEAR(weak.points[2].efficiency, 0.8, 1e-9);
}

// Two sets of three: means 2 and 2.5, deviations 0.1; by hand: 0.1 x sqrt(2/3) x t(4) = 0.2267.
TEST(RunSets, DifferencesHaveTheirInterval) {
  std::vector<RunFigures> first(3), second(3);
  for (int i = 0; i < 3; ++i) {
    first[idx(i)].held_out = 1.9 + 0.1 * i, second[idx(i)].held_out = 2.4 + 0.1 * i;
    first[idx(i)].tokens_per_s.value = second[idx(i)].tokens_per_s.value = 100;
  }
  const auto all = compare_sets(first, second);
  ASSERT_EQ(all[0].figure, "held-out loss, nats a token");
  EXPECT_NEAR(all[0].difference, -0.5, 1e-12);
  EXPECT_NEAR(all[0].half, 0.1 * std::sqrt(2.0 / 3) * 2.7764, 1e-4);
  second.resize(1);
  EXPECT_TRUE(std::isinf(compare_sets(first, second)[0].half));
}

std::string refusal(const fs::path& directory) {
  try {
    (void)read_history(directory);
  } catch (const UsageError& e) {
    return e.message();
  }
  return "read";
}

TEST(RunHistories, WhatIsNoRunIsSaid) {
  const test::TemporaryDirectory d;
  const auto says = [](const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  says(refusal(d.path() / "nowhere"), "is no directory");
  says(refusal(d.path()), "it has no recipe.ini");
  const fs::path run = write_run(d.path() / "run", {});
  EXPECT_EQ(refusal(run), "read");
  std::ofstream(run / "metrics.jsonl") << "";
  says(refusal(run), "nothing was trained yet");
  fs::remove(run / "run.json");
  says(refusal(run), "run.json is missing");
  std::ofstream(run / "recipe.ini") << "[model]\nwidth = 3\n";
  says(refusal(run), "width");
}

TEST(RunPage, HoldsEveryPartAndIsTheSameEveryTime) {
  const test::TemporaryDirectory d;
  std::vector<RunHistory> runs;
  int i = 0;
  for (const std::int64_t width : {64, 128, 192})
    for (const std::int64_t steps : {20, 40, 80}) {
      const double n = static_cast<double>(width * width), tokens = static_cast<double>(steps);
      runs.push_back(read_history(write_run(d.path() / ("<run> & " + std::to_string(i++)),
                                            {.ranks = i % 2 + 1,
                                             .loss = 1 + 20 / std::sqrt(n) + 2 / std::sqrt(tokens),
                                             .d_model = width,
                                             .steps = steps})));
    }
  runs.push_back(read_history(write_run(d.path() / "unfinished", {.finished = false})));
  const RunReport report = make_report(runs, {runs[0]});
  EXPECT_EQ(report.law_points.size(), 9U);
  EXPECT_EQ(report.law.refused, "");
  EXPECT_NEAR(report.law.beta.value, 0.5, 0.02);
  const std::string html = runs_html(report, "A <title>");
  EXPECT_EQ(html, runs_html(make_report(runs, {runs[0]}), "A <title>"));
  EXPECT_EQ(html.find("http", html.find("</head>")), html.find("http://www.w3.org/2000/svg")) << "nothing is fetched";
  for (const char* part : {"<h1>A &lt;title&gt;</h1>", "The runs", "Loss", "Speed", "Scaling law",
                           "Against the other set", "Jobs", "40 of 80", "a &lt;CPU&gt; &amp; more",
                           "train.threads: 0 -&gt; 1", "prefers-color-scheme:dark", "@media print", "id=\"figures\""})
    EXPECT_NE(html.find(part), std::string::npos) << part;
  EXPECT_EQ(html.find("<run>"), std::string::npos);
  const auto data = html.find("id=\"figures\">") + 13;
  const auto figures = nlohmann::json::parse(html.substr(data, html.find("</script>", data) - data));
  ASSERT_EQ(figures.size(), 10U);
  EXPECT_EQ(figures[0]["run"], "<run> & 0");
  EXPECT_EQ(figures[9]["of_steps"], 80);
  const std::string csv = runs_csv(report);
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 11);
}

class ReportCommand : public test::TinyProgram {};

// Real runs on one and two ranks, from the directory that they lie in.
TEST_F(ReportCommand, RunsOfTheProgram) {
  recipe_.train.steps = 8, recipe_.eval.final = true;
  write();
  const fs::path runs = directory_.path() / "runs";
  for (const std::string name : {"one", "again"})
    expect(emox("train " + path_ + " --run.name=" + name + " --run.dir=" + (runs / name).string()), 0, {});
  const std::string page = (directory_.path() / "page.html").string(), csv = (directory_.path() / "runs.csv").string();
  expect(emox("report " + runs.string() + " --output " + page + " --csv=" + csv), 0,
         {"one", "again", "written: " + page});
  const std::string html = text(page);
  // Well-formed, by a parser of its own.
  std::ofstream(directory_.path() / "parse.py") << "import sys, xml.dom.minidom as m; m.parse(sys.argv[1])\n";
  const test::CommandResult xml =
      test::run_command("python3 " + (directory_.path() / "parse.py").string() + " " + page);
  EXPECT_EQ(xml.exit_code, 0) << xml.output;
  EXPECT_NE(html.find("No law is fitted: 2 finished runs"), std::string::npos);
  const nlohmann::json figures = json_of("report " + runs.string());
  ASSERT_EQ(figures.size(), 2U);
  EXPECT_EQ(figures[0].at("run"), "again");
  EXPECT_EQ(figures[0].at("steps"), 8);
  EXPECT_EQ(figures[0].at("counted_steps"), 5);  // without the first two and the last
  // A rank alone waits for nobody: its work is the step, but for reading data and writing the line.
  EXPECT_EQ(figures[0].at("load_balance"), 1.0);
  EXPECT_GT(figures[0].at("communication_efficiency"), 0.5);
  EXPECT_LE(figures[0].at("communication_efficiency"), 1.1);
  expect(emox("report " + runs.string() + " --output " + page), 2, {"exists: --force replaces it"});
  expect(emox("report " + runs.string() + " --output " + page + " --force --title=again"), 0, {});
  expect(emox("report " + runs.string() + " --output page.txt"), 2, {"must end in .html"});
  expect(emox("report " + (runs / "one").string() + " " + runs.string()), 2, {"is named twice"});
  expect(emox("report " + directory_.path().string()), 2, {"is no run of emox, and holds none"});
  expect(emox("report " + (runs / "three").string()), 2, {"is no directory"});
}

}  // namespace
}  // namespace emox
