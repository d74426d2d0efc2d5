#include "parallel/checkpoint/layout.h"

#include <algorithm>
#include <charconv>
#include <numeric>
#include <set>
#include <unordered_map>

#include "runtime/core/error.h"

namespace emox {
namespace {

constexpr std::string_view kStepPrefix = "step-";
constexpr std::size_t kStepDigits = 8;

/// "model.layers.0.mlp.experts.3" for whatever belongs to that expert, otherwise the name itself.
std::string_view unit_of(std::string_view name) {
  constexpr std::string_view kExperts = ".experts.";
  const std::size_t at = name.find(kExperts);
  if (at == std::string_view::npos) return name;
  return name.substr(0, name.find('.', at + kExperts.size()));
}

void check_name(const std::string& name) {
  const bool empty_part =
      name.empty() || name.front() == '.' || name.back() == '.' || name.find("..") != std::string::npos;
  require<ShapeError>(!empty_part && name.find('/') == std::string::npos,
                      "\"{}\" cannot be the name of a tensor in a checkpoint", name);
}

void check_array(const CheckpointTensor& t, const std::string& role, const TensorView& view) {
  require<ShapeError>(view.shape() == t.weight.shape(), "{}: {} is {}, the weight {}", t.name, role, view.shape().str(),
                      t.weight.shape().str());
  require<ShapeError>(!view.null() || view.numel() == 0, "{}: {} has no memory", t.name, role);
  require<ShapeError>(view.device().type == DeviceType::Cpu, "{}: {} is not in host memory", t.name, role);
}

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

bool is_unfinished(std::string_view name) {
  const std::size_t dot = name.find(".tmp");
  return dot != std::string_view::npos && step_of_directory(name.substr(0, dot)).has_value();
}

std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& directory) {
  std::vector<std::filesystem::path> found;
  if (!std::filesystem::is_directory(directory)) return found;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    if (entry.is_directory() && step_of_directory(entry.path().filename().string())) found.push_back(entry.path());
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

std::vector<CheckpointArray> arrays_of(std::span<const CheckpointTensor> tensors) {
  std::vector<CheckpointArray> arrays;
  std::set<std::string> places;
  for (const CheckpointTensor& t : tensors) {
    check_name(t.name);
    require<ShapeError>(t.exp_avg.null() == t.exp_avg_sq.null(), "{}: one of the two moments is missing", t.name);
    const auto add = [&](const std::string& role, const TensorView& view) {
      check_array(t, role, view);
      require<ShapeError>(places.insert(dataset_path(t.name, role)).second, "{} ({}) is in the checkpoint twice",
                          t.name, role);
      arrays.push_back({t.name, role, view});
    };
    add("weight", t.weight);
    if (t.exp_avg.null()) continue;
    add("exp_avg", t.exp_avg);
    add("exp_avg_sq", t.exp_avg_sq);
  }
  return arrays;
}

void divide_among_ranks(std::vector<CheckpointArray>& arrays, int size) {
  std::unordered_map<std::string_view, std::size_t> index;  // unit -> its place in the order of first appearance
  std::vector<std::size_t> bytes;
  for (const CheckpointArray& a : arrays) {
    const std::size_t u = index.try_emplace(unit_of(a.name), bytes.size()).first->second;
    if (u == bytes.size()) bytes.push_back(0);
    bytes[u] += a.view.bytes();
  }
  std::vector<std::size_t> order(bytes.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return bytes[a] > bytes[b]; });
  std::vector<std::size_t> load(static_cast<std::size_t>(size), 0);
  std::vector<int> writer(bytes.size(), 0);
  for (const std::size_t u : order) {
    const auto least = std::min_element(load.begin(), load.end());
    *least += bytes[u];
    writer[u] = static_cast<int>(least - load.begin());
  }
  for (CheckpointArray& a : arrays) a.writer = writer[index.at(unit_of(a.name))];
}

}  // namespace emox
