#include <cmath>
#include <cstdlib>

#include "data/loader/loader.h"
#include "runtime/core/error.h"

namespace emox {

SourceSpec SourceSpec::parse(const std::string& text) {
  // The path comes last and may contain colons.
  const auto first = text.find(':');
  const auto second = first == std::string::npos ? first : text.find(':', first + 1);
  require<UsageError>(
      second != std::string::npos && first > 0 && second + 1 < text.size(),
      "data.source = '{}': expected label:weight:path, e.g. german-help:1:corpus/quickstart/german-help", text);
  const std::string weight_text = text.substr(first + 1, second - first - 1);
  char* end = nullptr;
  const double weight = std::strtod(weight_text.c_str(), &end);
  require<UsageError>(
      !weight_text.empty() && end == weight_text.c_str() + weight_text.size() && std::isfinite(weight) && weight > 0,
      "data.source = '{}': the weight '{}' must be a number above 0; to leave a source out, remove its line", text,
      weight_text);
  return {text.substr(0, first), weight, text.substr(second + 1)};
}

}  // namespace emox
