// The metrics file: one flat JSON object a line, appended, never rewritten while a run goes on.
#pragma once

#include <cstdint>
#include <cstdio>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace emox {

class MetricsSink {
 public:
  /// Opens PATH for appending. On resume the lines after `last_step` and a torn last line are removed first, so that
  /// the file always tells one history (design section 5). `last_step` < 0 starts an empty file.
  MetricsSink(const std::string& path, std::int64_t last_step);
  ~MetricsSink();
  MetricsSink(const MetricsSink&) = delete;
  MetricsSink& operator=(const MetricsSink&) = delete;

  /// Writes one line and flushes it. Floating-point numbers keep 9 significant digits.
  void write(const nlohmann::ordered_json& record);

 private:
  std::string path_;
  std::FILE* file_ = nullptr;
};

/// One line of JSON with floating-point numbers at 9 significant digits.
std::string to_line(const nlohmann::ordered_json& record);

}  // namespace emox
