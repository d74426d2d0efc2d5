#include "runtime/telemetry/metrics.h"

#include <unistd.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <fstream>

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

// Copies the complete lines up to `last_step`; whatever follows belongs to steps that will be run again.
void cut(const std::string& path, std::int64_t last_step) {
  std::string kept;
  {
    std::ifstream in(path);
    std::string line;
    while (std::getline(in, line)) {
      if (in.eof()) break;  // no newline at its end: torn
      const auto record = nlohmann::json::parse(line, nullptr, false);
      if (record.is_discarded() || !record.is_object() || record.value("step", last_step + 1) > last_step) break;
      kept += line + '\n';
    }
  }
  const std::string temporary = path + ".tmp";
  std::FILE* f = std::fopen(temporary.c_str(), "w");
  require<IoError>(f != nullptr, "cannot write {}", temporary);
  const bool written =
      std::fwrite(kept.data(), 1, kept.size(), f) == kept.size() && std::fflush(f) == 0 && fsync(fileno(f)) == 0;
  std::fclose(f);
  require<IoError>(written && std::rename(temporary.c_str(), path.c_str()) == 0, "cannot rewrite {}: is the disk full?",
                   path);
}

}  // namespace

std::string to_line(const nlohmann::ordered_json& record) {
  std::string out;
  append(out, record);
  return out;
}

MetricsSink::MetricsSink(const std::string& path, std::int64_t last_step) : path_(path) {
  if (last_step >= 0) cut(path, last_step);
  file_ = std::fopen(path.c_str(), last_step >= 0 ? "a" : "w");
  require<IoError>(file_ != nullptr, "cannot open {} for writing", path);
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
