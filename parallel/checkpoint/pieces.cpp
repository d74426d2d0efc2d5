#include "parallel/checkpoint/pieces.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <queue>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "parallel/checkpoint/checksum.h"
#include "parallel/checkpoint/layout.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

/// "model.layers.0.mlp.experts.3" for whatever belongs to that expert, otherwise the name itself.
std::string_view unit_of(std::string_view name) {
  constexpr std::string_view kExperts = ".experts.";
  const std::size_t at = name.find(kExperts);
  if (at == std::string_view::npos) return name;
  return name.substr(0, name.find('.', at + kExperts.size()));
}

bool is_nothing(const CheckpointPiece& p) { return p.begin == p.end && p.shape.numel() != 0; }

std::vector<const CheckpointPiece*> in_order(std::span<const CheckpointPiece> pieces) {
  std::vector<const CheckpointPiece*> sorted;
  for (const CheckpointPiece& p : pieces)
    if (!is_nothing(p)) sorted.push_back(&p);
  const auto key = [](const CheckpointPiece& p) { return std::tie(p.name, p.role, p.begin, p.end); };
  std::sort(sorted.begin(), sorted.end(), [&](const auto* a, const auto* b) { return key(*a) < key(*b); });
  return sorted;
}

bool same_array(const ManifestTensor& t, const CheckpointPiece& p) { return t.name == p.name && t.role == p.role; }

bool adjoins(const ManifestTensor& t, const CheckpointPiece& p) {
  return same_array(t, p) && t.end == p.begin && t.begin != t.end && t.shape == p.shape && t.dtype == p.view.dtype();
}

std::string checksum_of_blocks(const std::vector<TensorView>& blocks) {
  Checksum checksum;
  for (const TensorView& b : blocks) checksum.update(b.raw(), b.bytes());
  return checksum.hex();
}

}  // namespace

void add_whole(std::vector<CheckpointPiece>& pieces, const std::string& name, const TensorView& weight,
               const TensorView& exp_avg, const TensorView& exp_avg_sq) {
  const auto add = [&](const char* role, const TensorView& v) {
    pieces.push_back({name, role, v.shape(), 0, v.shape().numel(), v});
  };
  add("weight", weight);
  if (!exp_avg.null()) add("exp_avg", exp_avg);
  if (!exp_avg_sq.null()) add("exp_avg_sq", exp_avg_sq);
}

std::vector<CheckpointPiece> divide_among_ranks(std::span<const CheckpointPiece> pieces, int rank, int size) {
  std::unordered_map<std::string_view, std::size_t> index;  // unit -> its place in the order of first appearance
  std::vector<std::size_t> bytes;
  for (const CheckpointPiece& p : pieces) {
    const std::size_t u = index.try_emplace(unit_of(p.name), bytes.size()).first->second;
    if (u == bytes.size()) bytes.push_back(0);
    bytes[u] += p.view.bytes();
  }
  std::vector<std::size_t> order(bytes.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return bytes[a] > bytes[b]; });
  using Load = std::pair<std::size_t, int>;  // bytes, rank
  std::priority_queue<Load, std::vector<Load>, std::greater<>> least;
  for (int r = 0; r < size; ++r) least.emplace(0, r);
  std::vector<int> writer(bytes.size(), 0);
  for (const std::size_t u : order) {
    const auto [load, r] = least.top();
    least.pop();
    least.emplace(load + bytes[u], r);
    writer[u] = r;
  }
  std::vector<CheckpointPiece> mine;
  for (const CheckpointPiece& p : pieces)
    if (writer[index.at(unit_of(p.name))] == rank) mine.push_back(p);
  return mine;
}

void check_piece(const CheckpointPiece& p) {
  require<ShapeError>(is_tensor_name(p.name), "\"{}\" cannot be the name of a tensor in a checkpoint", p.name);
  require<ShapeError>(is_role(p.role), "{}: \"{}\" is not weight, exp_avg or exp_avg_sq", p.name, p.role);
  const std::int64_t n = p.shape.numel();
  require<ShapeError>(0 <= p.begin && p.begin <= p.end && p.end <= n, "{} ({}): elements [{}, {}) of {}", p.name,
                      p.role, p.begin, p.end, p.shape.str());
  require<ShapeError>(!p.view.null() || p.begin == p.end, "{} ({}): elements [{}, {}) have no memory", p.name, p.role,
                      p.begin, p.end);
  require<ShapeError>(p.view.numel() == p.end - p.begin, "{} ({}): elements [{}, {}) in memory of {}", p.name, p.role,
                      p.begin, p.end, p.view.shape().str());
  require<ShapeError>(p.view.device().type == DeviceType::Cpu, "{} ({}) is not in host memory", p.name, p.role);
}

TensorView elements_of(const CheckpointPiece& p, std::int64_t begin, std::int64_t end) {
  return p.view.reshape({p.view.numel()}).rows(begin - p.begin, end - p.begin);
}

std::vector<Stretch> stretches_of(std::span<const CheckpointPiece> pieces, const std::string& file) {
  for (const CheckpointPiece& p : pieces) check_piece(p);
  std::vector<Stretch> stretches;
  for (const CheckpointPiece* p : in_order(pieces)) {
    const bool later = !stretches.empty() && same_array(stretches.back().entry, *p);
    if (later && adjoins(stretches.back().entry, *p)) {
      stretches.back().entry.end = p->end;
      stretches.back().blocks.push_back(p->view);
      continue;
    }
    std::string dataset = later ? later_dataset_path(p->name, p->role, p->begin) : dataset_path(p->name, p->role);
    ManifestTensor entry{p->name, p->role, p->view.dtype(), p->shape, p->begin, p->end, file, std::move(dataset), {}};
    stretches.push_back({std::move(entry), {p->view}});
  }
  for (Stretch& s : stretches) s.entry.checksum = checksum_of_blocks(s.blocks);
  return stretches;
}

}  // namespace emox
