// Spans, the metrics file and the log.
#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "runtime/telemetry/history.h"
#include "runtime/telemetry/log.h"
#include "runtime/telemetry/metrics.h"
#include "runtime/telemetry/spans.h"
#include "tests/runtime/op_testing.h"

namespace emox::test {
namespace {

std::string content(const std::filesystem::path& path) {
  std::ifstream in(path);
  std::stringstream s;
  s << in.rdbuf();
  return s.str();
}

void put(const std::filesystem::path& path, const std::string& text) { std::ofstream(path) << text; }

TEST(Spans, AddUpByName) {
  Telemetry telemetry;
  Context ctx;
  ctx.telemetry = &telemetry;
  for (int i = 0; i < 3; ++i) {
    const Span outer(ctx, "outer", 100, 10);
    const Span inner(ctx, "inner", 7);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  const SpanTotal outer = telemetry.totals().at("outer"), inner = telemetry.totals().at("inner");
  EXPECT_EQ(outer.calls, 3);
  EXPECT_EQ(outer.flops, 300);
  EXPECT_EQ(outer.bytes, 30);
  EXPECT_EQ(inner.flops, 21);
  EXPECT_EQ(inner.bytes, 0);
  EXPECT_GE(inner.seconds, 0.006);
  EXPECT_GE(outer.seconds, inner.seconds);  // begun before and ended after
  EXPECT_EQ(telemetry.seconds("outer"), outer.seconds);
  EXPECT_EQ(telemetry.seconds("never"), 0.0);
  telemetry.clear();
  EXPECT_TRUE(telemetry.totals().empty());
}

TEST(Spans, WithoutTelemetryRecordNothing) {
  const Context ctx;
  const Span span(ctx, "nobody listens", 1, 1);
}

TEST(Metrics, NineDigitsAndNullForWhatIsNoNumber) {
  nlohmann::ordered_json r;
  r["step"] = 12;
  r["loss"] = 1.0 / 3;
  r["large"] = 123456789.125;
  r["nan"] = std::nan("");
  r["infinite"] = -std::numeric_limits<double>::infinity();
  r["name"] = "a \"b\"\n";
  r["flag"] = true;
  const std::string line = to_line(r);
  EXPECT_EQ(line,
            "{\"step\": 12, \"loss\": 0.333333333, \"large\": 123456789, \"nan\": null, \"infinite\": null, "
            "\"name\": \"a \\\"b\\\"\\n\", \"flag\": true}");
  EXPECT_EQ(nlohmann::json::parse(line)["name"], "a \"b\"\n");
}

TEST(Metrics, ArraysAreWrittenTheSameWay) {
  nlohmann::ordered_json r;
  r["layers"] = {1.0 / 3, std::nan(""), 2, nlohmann::ordered_json::array()};
  EXPECT_EQ(to_line(r), "{\"layers\": [0.333333333, null, 2, []]}");
}

TEST(Metrics, AFloat32SurvivesTheFile) {
  // Nine digits identify every float32.
  std::mt19937 gen(1);
  for (int i = 0; i < 1000; ++i) {
    const float x = std::ldexp(static_cast<float>(gen()) / 4.3e9F, static_cast<int>(gen() % 60) - 30);
    nlohmann::ordered_json r;
    r["x"] = static_cast<double>(x);
    EXPECT_EQ(nlohmann::json::parse(to_line(r))["x"].get<float>(), x);
  }
}

Telemetry::Clock::time_point at(std::int64_t ns) {
  return Telemetry::Clock::time_point(std::chrono::nanoseconds(1'000'000'000 + ns));
}

TEST(Trace, KeepsSpansWithTheirPlaceInTime) {
  Telemetry telemetry;
  telemetry.add("phase.early", at(-5), at(7), 0, 0);  // before the trace
  EXPECT_TRUE(telemetry.events().empty());
  telemetry.start_trace(at(0), 10, {"phase.", "comm."});
  std::string name = "phase.a";
  telemetry.add(name, at(100), at(250), 0, 0);
  name = "matmul!";  // the event has its own copy
  telemetry.add(name, at(120), at(200), 9, 0);
  telemetry.clear();
  telemetry.add("comm.sum", at(300), at(300), 0, 0);
  telemetry.add("phase.open", at(-1), at(400), 0, 0);  // begun before the trace
  ASSERT_EQ(telemetry.events().size(), 2U);
  const TraceEvent a = telemetry.events()[0], sum = telemetry.events()[1];
  EXPECT_EQ(a.name, "phase.a");
  EXPECT_EQ(a.start_ns, 100);
  EXPECT_EQ(a.duration_ns, 150);
  EXPECT_EQ(sum.name, "comm.sum");
  EXPECT_EQ(sum.start_ns, 300);
  EXPECT_EQ(sum.duration_ns, 0);
  EXPECT_EQ(telemetry.dropped_events(), 0);
  EXPECT_EQ(telemetry.totals().size(), 2U);  // since clear(), whatever is traced
}

TEST(Trace, CountsWhatFindsNoRoom) {
  Telemetry telemetry;
  telemetry.start_trace(at(0), 3);
  for (int i = 0; i < 5; ++i) telemetry.add("x", at(i), at(i + 1), 0, 0);
  ASSERT_EQ(telemetry.events().size(), 3U);
  EXPECT_EQ(telemetry.events()[2].start_ns, 2);
  EXPECT_EQ(telemetry.dropped_events(), 2);
  EXPECT_EQ(telemetry.totals().at("x").calls, 5);
  telemetry.start_trace(at(10), 3);
  EXPECT_TRUE(telemetry.events().empty());
  EXPECT_EQ(telemetry.dropped_events(), 0);
}

TEST(Trace, SpansNestAsTheirScopes) {
  Telemetry telemetry;
  Context ctx;
  ctx.telemetry = &telemetry;
  const auto zero = Telemetry::Clock::now();
  telemetry.start_trace(zero, 10);
  {
    const Span outer(ctx, "outer");
    { const Span inner(ctx, "inner"); }
    { const Span inner(ctx, "inner"); }
  }
  ASSERT_EQ(telemetry.events().size(), 3U);
  const TraceEvent first = telemetry.events()[0], second = telemetry.events()[1], outer = telemetry.events()[2];
  EXPECT_GE(outer.start_ns, 0);
  EXPECT_GE(first.start_ns, outer.start_ns);
  EXPECT_GE(second.start_ns, first.start_ns + first.duration_ns);
  EXPECT_LE(second.start_ns + second.duration_ns, outer.start_ns + outer.duration_ns);
}

nlohmann::ordered_json record(int step) { return {{"step", step}, {"loss", 0.5}}; }

TEST(MetricsSink, AppendsALineARecord) {
  const TemporaryDirectory dir;
  const auto path = dir.path() / "metrics.jsonl";
  put(path, "{\"step\": 0}\n");
  MetricsSink sink(path.string());
  sink.write(record(1));
  EXPECT_EQ(content(path), "{\"step\": 0}\n{\"step\": 1, \"loss\": 0.5}\n");  // flushed at once
  sink.write(record(2));
  EXPECT_EQ(content(path), "{\"step\": 0}\n{\"step\": 1, \"loss\": 0.5}\n{\"step\": 2, \"loss\": 0.5}\n");
}

TEST(MetricsSink, NamesAFileThatCannotBeOpened) {
  try {
    const MetricsSink sink("/nonexistent/metrics.jsonl");
    ADD_FAILURE();
  } catch (const IoError& e) {
    EXPECT_NE(e.message().find("/nonexistent/metrics.jsonl"), std::string::npos);
  }
}

std::vector<std::string> names_in(const std::filesystem::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

TEST(History, WhatMustGoIsMovedAside) {
  const std::string first = "{\"step\": 1, \"a\": 1}\n{\"step\": 2, \"a\": 1}\n{\"step\": 2, \"b\": 1}\n";
  struct Case {
    std::string rest;
    std::int64_t later, unreadable;
  };
  for (const Case& c : {Case{"{\"step\": 3, \"a\": 1}\n{\"step\": 4, \"a\": 1}\n", 2, 0},
                        Case{"{\"step\": 3, \"a\"", 0, 1}, Case{"{\"step\": 2, \"c\": 1}", 0, 1},
                        Case{"{\"step\": 9}\nx\n{\"no step\": 1}\n[]\n{\"step\": \"2\"}\n", 1, 4}}) {
    const TemporaryDirectory dir;
    const auto path = dir.path() / "metrics.jsonl";
    put(path, first + c.rest);
    const SetAside moved = settle_history(path.string(), 2);
    EXPECT_EQ(content(path), first) << c.rest;
    EXPECT_EQ(content(moved.file), c.rest);
    EXPECT_EQ(moved.later, c.later) << c.rest;
    EXPECT_EQ(moved.unreadable, c.unreadable) << c.rest;
    EXPECT_TRUE(moved.file.starts_with(path.string() + ".until-2")) << moved.file;
    EXPECT_EQ(names_in(dir.path()).size(), 2U);
    EXPECT_EQ(settle_history(path.string(), 2).file, "") << "nothing is left to do";
  }
}

// One line that cannot be read does not take the others with it, nor does a start from the beginning.
TEST(History, NoLineIsLost) {
  const TemporaryDirectory dir;
  const auto path = dir.path() / "metrics.jsonl";
  put(path, "{\"step\": 1}\nx\n{\"step\": 3}\n{\"step\": 4}\n");
  const std::string torn = settle_history(path.string(), 4).file;
  EXPECT_EQ(content(path), "{\"step\": 1}\n{\"step\": 3}\n{\"step\": 4}\n");
  EXPECT_EQ(content(torn), "x\n");
  const std::string all = settle_history(path.string(), 0).file;  // at the same second, perhaps
  EXPECT_EQ(content(path), "");
  EXPECT_EQ(content(all), "{\"step\": 1}\n{\"step\": 3}\n{\"step\": 4}\n");
  EXPECT_EQ(content(torn), "x\n");
}

TEST(History, WhatIsAsItMustBeIsLeftAlone) {
  const TemporaryDirectory dir;
  const auto path = dir.path() / "metrics.jsonl";
  EXPECT_EQ(settle_history(path.string(), 7).file, "");
  EXPECT_FALSE(std::filesystem::exists(path));
  put(path, "{\"step\": 1}\n");
  std::filesystem::permissions(path, std::filesystem::perms::owner_read);
  const auto inode = [&] {
    struct stat info = {};
    EXPECT_EQ(stat(path.c_str(), &info), 0);
    return info.st_ino;
  };
  const auto before = inode();
  EXPECT_EQ(settle_history(path.string(), 1).file, "");
  EXPECT_EQ(inode(), before);
}

TEST(History, WhatCannotBeReadIsNotEmpty) {
  const TemporaryDirectory dir;
  const auto path = dir.path() / "metrics.jsonl";
  std::filesystem::create_directory(path);
  EXPECT_THROW((void)settle_history(path.string(), 2), IoError);
  std::filesystem::remove(path);
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  EXPECT_THROW((void)settle_history(path.string(), 2), IoError);
  EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"metrics.jsonl"});
}

std::vector<std::string> lines_of(const std::filesystem::path& path) {
  std::ifstream in(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

TEST(Log, WarnsOnceForEachText) {
  const TemporaryDirectory dir;
  const auto path = dir.path() / "log.txt";
  ::testing::internal::CaptureStderr();
  {
    Log log(0, path.string());
    for (int i = 0; i < 3; ++i) log.warn("{} is odd", 7);
    log.warn("{} is odd", 9);
    log.info("hello {}", 1);
    log.info("hello {}", 1);
    log.detail("for the file");
  }
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "warning: 7 is odd\nwarning: 9 is odd\nhello 1\nhello 1\n");
  const std::vector<std::string> lines = lines_of(path);
  ASSERT_EQ(lines.size(), 5U);
  EXPECT_EQ(lines[0].substr(20), " warning: 7 is odd");  // after 2026-01-31T12:00:00Z
  EXPECT_EQ(lines[0][19], 'Z');
  EXPECT_EQ(lines[4].substr(20), " for the file");
}

TEST(Log, OtherRanksAndAClosedConsoleAreSilent) {
  const TemporaryDirectory dir;
  const auto path = dir.path() / "log.txt";
  ::testing::internal::CaptureStderr();
  {
    Log log(1);
    log.info("before there is a file");
    log.open_file(path.string());
    log.info("one");
    log.warn("two");
    Log quiet(0);
    quiet.set_console(false);
    quiet.warn("three");
  }
  {
    Log again(1, path.string());
    again.info("appended");
  }
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
  ASSERT_EQ(lines_of(path).size(), 3U);
  EXPECT_NE(lines_of(path)[2].find("appended"), std::string::npos);
}

TEST(Log, NamesAFileThatCannotBeOpened) { EXPECT_THROW(Log(0, "/nonexistent/log.txt"), IoError); }

}  // namespace
}  // namespace emox::test
