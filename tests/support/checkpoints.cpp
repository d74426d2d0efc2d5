#include "tests/support/checkpoints.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <queue>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "parallel/checkpoint/layout.h"

namespace emox::test {
namespace {

struct Arrays {
  std::vector<Tensor> memory;
  std::vector<CheckpointPiece> pieces;
};

Arrays load_all(const std::filesystem::path& checkpoint) {
  Arrays all;
  for (const ManifestTensor& t : read_manifest(checkpoint).tensors) {
    if (t.begin != 0) continue;  // one piece of each array begins at 0
    all.memory.emplace_back(Device{}, t.dtype, t.shape);
    all.pieces.push_back({t.name, t.role, t.shape, 0, t.shape.numel(), all.memory.back()});
  }
  load_checkpoint(*make_self_communicator(), checkpoint, all.pieces);
  return all;
}

}  // namespace

::testing::AssertionResult same_arrays(const std::filesystem::path& checkpoint, const std::filesystem::path& other) {
  // A saved manifest is ordered by name and role.
  const Arrays a = load_all(checkpoint), b = load_all(other);
  if (a.pieces.size() != b.pieces.size())
    return ::testing::AssertionFailure() << a.pieces.size() << " arrays in " << checkpoint << ", " << b.pieces.size()
                                         << " in " << other;
  for (std::size_t i = 0; i < a.pieces.size(); ++i) {
    const CheckpointPiece &x = a.pieces[i], &y = b.pieces[i];
    const bool same = x.name == y.name && x.role == y.role && x.shape == y.shape && x.view.dtype() == y.view.dtype();
    if (!same || (x.view.bytes() != 0 && std::memcmp(x.view.raw(), y.view.raw(), x.view.bytes()) != 0))
      return ::testing::AssertionFailure() << x.name << " (" << x.role << ") in " << checkpoint << " differs from "
                                           << y.name << " (" << y.role << ") in " << other;
  }
  return ::testing::AssertionSuccess();
}

std::optional<CheckpointInfo> latest_in(const std::filesystem::path& directory, Log* log) {
  const auto comm = make_self_communicator();
  return find_latest(*comm, directory, log);
}

Manifest verified(const std::filesystem::path& checkpoint) {
  const auto comm = make_self_communicator();
  return verify_checkpoint(*comm, checkpoint);
}

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

}  // namespace emox::test
