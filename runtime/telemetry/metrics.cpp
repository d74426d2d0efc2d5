#include "runtime/telemetry/metrics.h"

#include <nlohmann/json.hpp>

#include <cerrno>
#include <cmath>
#include <cstring>

#include "runtime/core/error.h"
#include "runtime/telemetry/json_text.h"

namespace emox {
namespace {

void append(std::string& out, const nlohmann::ordered_json& v) {
  if (v.is_object()) {
    out += '{';
    bool first = true;
    for (const auto& [key, value] : v.items()) {
      if (!first) out += ", ";
      first = false;
      out += json_text(nlohmann::json(key)) + ": ";
      append(out, value);
    }
    out += '}';
  } else if (v.is_array()) {
    out += '[';
    for (std::size_t i = 0; i < v.size(); ++i) {
      if (i > 0) out += ", ";
      append(out, v[i]);
    }
    out += ']';
  } else if (v.is_number_float()) {
    const double x = v.get<double>();
    // JSON has no NaN: null keeps the line readable by every parser.
    out += std::isfinite(x) ? fmt::format("{:.9g}", x) : "null";
  } else {
    out += json_text(v);
  }
}

}  // namespace

std::string to_line(const nlohmann::ordered_json& record) {
  std::string out;
  append(out, record);
  return out;
}

MetricsSink::MetricsSink(const std::string& path) : path_(path), file_(std::fopen(path.c_str(), "a")) {
  require<IoError>(file_ != nullptr, "cannot append to {}: {}", path, std::strerror(errno));
}

MetricsSink::~MetricsSink() {
  if (file_ != nullptr) std::fclose(file_);
}

void MetricsSink::write(const nlohmann::ordered_json& record) {
  const std::string line = to_line(record) + '\n';
  const bool ok = std::fwrite(line.data(), 1, line.size(), file_) == line.size() && std::fflush(file_) == 0;
  require<IoError>(ok, "cannot append to {}: is the disk full?", path_);
}

}  // namespace emox
