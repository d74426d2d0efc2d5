#include "tests/support/trace.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

namespace emox::test {
namespace {

std::int64_t nanoseconds(const nlohmann::json& microseconds) { return std::llround(microseconds.get<double>() * 1000); }

void check_nesting(std::vector<TraceSpan>& spans) {
  std::vector<const TraceSpan*> open;
  std::int64_t before = 0;
  for (TraceSpan& s : spans) {
    EXPECT_GE(s.start_ns, before) << s.name;
    before = s.start_ns;
    while (!open.empty() && open.back()->end_ns <= s.start_ns) open.pop_back();
    s.depth = static_cast<int>(open.size());
    if (!open.empty()) {
      EXPECT_LE(s.end_ns, open.back()->end_ns) << s.name << " inside " << open.back()->name;
    }
    open.push_back(&s);
  }
}

}  // namespace

std::map<int, std::vector<TraceSpan>> read_trace(const std::filesystem::path& file) {
  std::ifstream in(file);
  const auto json = nlohmann::json::parse(in, nullptr, false);
  EXPECT_FALSE(json.is_discarded()) << file << " is not JSON";
  std::map<int, std::vector<TraceSpan>> lanes;
  if (json.is_discarded()) return lanes;
  std::map<int, int> rank_of;  // lane -> rank
  for (const auto& e : json.at("traceEvents")) {
    EXPECT_EQ(e.at("pid"), 1);
    const int tid = e.at("tid").get<int>();
    if (e.at("ph") == "M") {
      if (e.at("name") != "thread_name") continue;
      const std::string name = e.at("args").at("name").get<std::string>();
      const int rank = static_cast<int>(lanes.size());
      EXPECT_EQ(name, "rank " + std::to_string(rank));
      EXPECT_TRUE(rank_of.emplace(tid, rank).second) << "two names for lane " << tid;
      lanes[rank];
    } else {
      EXPECT_EQ(e.at("ph"), "X");
      EXPECT_EQ(rank_of.count(tid), 1U) << "a lane without a name";
      const std::int64_t start = nanoseconds(e.at("ts"));
      lanes[rank_of[tid]].push_back({e.at("name").get<std::string>(), start, start + nanoseconds(e.at("dur")), 0});
    }
  }
  for (auto& [rank, spans] : lanes) {
    SCOPED_TRACE("rank " + std::to_string(rank));
    check_nesting(spans);
  }
  return lanes;
}

}  // namespace emox::test
