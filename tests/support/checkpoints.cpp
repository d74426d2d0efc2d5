#include "tests/support/checkpoints.h"

#include <cstring>
#include <vector>

#include "parallel/checkpoint/checkpoint.h"

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

}  // namespace emox::test
