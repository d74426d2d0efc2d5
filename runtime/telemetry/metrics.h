// The metrics file: one flat JSON object a line, appended (history.h makes it ready for a run that goes on).
#pragma once

#include <cstdint>
#include <cstdio>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace emox {

class MetricsSink {
 public:
  /// Opens PATH for appending; IoError.
  explicit MetricsSink(const std::string& path);
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
