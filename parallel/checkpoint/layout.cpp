#include "parallel/checkpoint/layout.h"

#include <algorithm>
#include <charconv>

#include <fmt/format.h>

#include "runtime/core/idx.h"

namespace emox {
namespace {

constexpr std::string_view kStepPrefix = "step-";
constexpr std::size_t kStepDigits = 8;

}  // namespace

std::string step_directory_name(std::int64_t step) { return fmt::format("{}{:08d}", kStepPrefix, step); }

std::optional<std::int64_t> step_of_directory(std::string_view name) {
  if (!name.starts_with(kStepPrefix)) return std::nullopt;
  name.remove_prefix(kStepPrefix.size());
  std::int64_t step = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), step);
  if (error != std::errc{} || end != name.data() + name.size() || name.size() < kStepDigits || step < 0)
    return std::nullopt;
  return step;
}

bool is_tensor_name(std::string_view name) {
  return !name.empty() && name.front() != '.' && name.back() != '.' && name.find("..") == std::string_view::npos &&
         name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
}

bool is_role(std::string_view role) { return role == "weight" || role == "exp_avg" || role == "exp_avg_sq"; }

std::string_view unit_of(std::string_view name) {
  constexpr std::string_view kExperts = ".experts.";
  const std::size_t at = name.find(kExperts);
  if (at == std::string_view::npos) return name;
  return name.substr(0, name.find('.', at + kExperts.size()));
}

bool is_unfinished(std::string_view name) {
  const std::size_t dot = name.find(".tmp");
  if (dot == std::string_view::npos) return false;
  return name.substr(0, dot) == kLatestName || step_of_directory(name.substr(0, dot)).has_value();
}

std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& directory) {
  std::vector<std::filesystem::path> found;
  if (!std::filesystem::is_directory(directory)) return found;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    std::error_code unknown;  // a link into storage that is away, or that may not be followed
    if ((entry.is_symlink(unknown) || entry.is_directory(unknown)) &&
        step_of_directory(entry.path().filename().string()))
      found.push_back(entry.path());
  }
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
    return *step_of_directory(a.filename().string()) > *step_of_directory(b.filename().string());
  });
  return found;
}

std::string shard_file_name(int rank, int size) { return fmt::format("shard-{:05d}-of-{:05d}.h5", rank, size); }

std::string dataset_path(const std::string& name, const std::string& role) {
  std::string path = "/" + name;
  std::replace(path.begin(), path.end(), '.', '/');
  if (role == "weight") return path;
  const std::size_t slash = path.rfind('/');
  // x.weight -> x/exp_avg; a parameter with another last part keeps that, so that x.bias has moments of its own.
  if (path.substr(slash + 1) == "weight") return path.substr(0, slash + 1) + role;
  return path + "." + role;
}

std::string later_dataset_path(const std::string& name, const std::string& role, std::int64_t begin) {
  return fmt::format("{}.from-{}", dataset_path(name, role), begin);
}

std::vector<Box> boxes_of(const Shape& shape, std::int64_t begin, std::int64_t end) {
  // stride[i]: elements in one step along extent i
  std::array<std::int64_t, Shape::kMaxRank> stride{};
  std::int64_t n = 1;
  for (int i = shape.rank() - 1; i >= 0; --i) {
    stride[idx(i)] = n;
    n *= shape[i];
  }
  std::vector<Box> boxes;
  if (shape.rank() == 0 && begin < end) boxes.push_back({.begin = 0, .end = 1});
  for (std::int64_t at = begin; shape.rank() > 0 && at < end;) {
    // Along the outermost extent that begins a new step here and has a whole one left; inner extents are then whole.
    std::size_t along = 0;
    while (at % stride[along] != 0 || at + stride[along] > end) ++along;
    Box box{.begin = at};
    for (std::size_t i = 0; i < idx(shape.rank()); ++i) {
      const std::int64_t extent = shape[static_cast<int>(i)];
      box.start[i] = at / stride[i] % extent;
      box.count[i] = i < along ? 1 : extent;
      if (i == along) box.count[i] = std::min((end - at) / stride[i], extent - box.start[i]);
    }
    at += box.count[along] * stride[along];
    box.end = at;
    boxes.push_back(box);
  }
  return boxes;
}

}  // namespace emox
