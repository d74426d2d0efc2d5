#include "parallel/checkpoint/pieces.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "parallel/checkpoint/checksum.h"
#include "parallel/checkpoint/layout.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

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

}  // namespace

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

std::string checksum_of_blocks(std::span<const TensorView> blocks) {
  Checksum checksum;
  for (const TensorView& b : blocks) checksum.update(b.raw(), b.bytes());
  return checksum.hex();
}

std::vector<Stretch> stretches_of(std::span<const CheckpointPiece> pieces, const std::string& file) {
  for (const CheckpointPiece& p : pieces) check_piece(p);
  const std::string unknown(32, '0');  // what is written says what its checksum is
  std::vector<Stretch> stretches;
  for (const CheckpointPiece* p : in_order(pieces)) {
    const bool later = !stretches.empty() && same_array(stretches.back().entry, *p);
    if (later && adjoins(stretches.back().entry, *p)) {
      stretches.back().entry.end = p->end;
      stretches.back().blocks.push_back(p->view);
      continue;
    }
    std::string dataset = later ? later_dataset_path(p->name, p->role, p->begin) : dataset_path(p->name, p->role);
    ManifestTensor entry{p->name, p->role, p->view.dtype(),    p->shape, p->begin,
                         p->end,  file,    std::move(dataset), unknown};
    stretches.push_back({std::move(entry), {p->view}});
  }
  return stretches;
}

}  // namespace emox
