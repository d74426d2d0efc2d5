#include "runtime/core/error.h"

#include <string_view>

namespace emox {
namespace {
thread_local int t_rank = 0;

std::string_view base_name(std::string_view path) {
  const auto slash = path.rfind('/');
  return slash == std::string_view::npos ? path : path.substr(slash + 1);
}
}  // namespace

int error_rank() { return t_rank; }
void set_error_rank(int rank) { t_rank = rank; }

Error::Error(std::string message, std::source_location where)
    : std::runtime_error(
          fmt::format("{} [rank {}] ({}:{})", message, t_rank, base_name(where.file_name()), where.line())),
      message_(std::move(message)),
      rank_(t_rank) {}

}  // namespace emox
