// Reads a trace file back, as a viewer does, and checks what every trace must keep to.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace emox::test {

struct TraceSpan {
  std::string name;
  std::int64_t start_ns, end_ns;
  int depth;  ///< spans around it
};

/// The spans of every lane, by rank. Fails the test unless the file is JSON in the object form, every lane has the name
/// "rank N" once and all of them are there, and spans lie in the order of their starts, each wholly inside or outside
/// any other one.
std::map<int, std::vector<TraceSpan>> read_trace(const std::filesystem::path& file);

}  // namespace emox::test
