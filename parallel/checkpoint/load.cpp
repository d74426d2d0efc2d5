// Loading: verify each file once across the job, find in the manifest what overlaps the wanted pieces, read that.
#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "parallel/checkpoint/agreement.h"
#include "parallel/checkpoint/checkpoint.h"
#include "parallel/checkpoint/checksum.h"
#include "parallel/checkpoint/coverage.h"
#include "parallel/checkpoint/fault.h"
#include "parallel/checkpoint/hdf5_file.h"
#include "parallel/checkpoint/pieces.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

using Index = std::vector<const ManifestTensor*>;

/// What is read of each file and of each dataset in it, so that each is opened once.
using Slices = std::map<const ManifestTensor*, std::vector<ArraySlice>>;
using Plan = std::map<std::string, Slices>;

/// The saved pieces of the array that `p` is a part of, in order.
std::span<const ManifestTensor* const> saved_pieces(const Index& index, const CheckpointPiece& p,
                                                    const fs::path& path) {
  const auto array = std::tie(p.name, p.role);
  const auto array_of = [](const ManifestTensor* t) { return std::tie(t->name, t->role); };
  const auto first = std::lower_bound(index.begin(), index.end(), array,
                                      [&](const auto* t, const auto& a) { return array_of(t) < a; });
  const auto last =
      std::upper_bound(first, index.end(), array, [&](const auto& a, const auto* t) { return a < array_of(t); });
  require<IoError>(first != last, "the checkpoint {} has no {} ({})", path.string(), p.name, p.role);
  const ManifestTensor& t = **first;
  require<IoError>(t.shape == p.shape, "{} ({}) is {} in the checkpoint {}, {} here", p.name, p.role, t.shape.str(),
                   path.string(), p.shape.str());
  require<IoError>(t.dtype == p.view.dtype(), "{} ({}) holds {} in the checkpoint {}, {} here", p.name, p.role,
                   name_of(t.dtype), path.string(), name_of(p.view.dtype()));
  return {first, last};
}

Plan plan_reads(std::span<const CheckpointPiece> wanted, const Manifest& manifest, const fs::path& path) {
  const Index index = in_order(manifest.tensors);
  Plan plan;
  for (const CheckpointPiece& p : wanted) {
    check_piece(p);
    const auto saved = saved_pieces(index, p, path);
    if (p.begin == p.end) continue;
    // The first that ends behind the wanted beginning; the manifest's pieces follow each other without a gap.
    auto at = std::upper_bound(saved.begin(), saved.end(), p.begin,
                               [](std::int64_t begin, const ManifestTensor* t) { return begin < t->end; });
    for (; at != saved.end() && (*at)->begin < p.end; ++at) {
      const std::int64_t begin = std::max(p.begin, (*at)->begin), end = std::min(p.end, (*at)->end);
      plan[(*at)->file][*at].push_back({begin, elements_of(p, begin, end)});
    }
  }
  return plan;
}

/// Compares the dataset's own checksum where the slices add up to all of it; a part is vouched for by the file's.
void check_if_whole(const ManifestTensor& t, std::vector<ArraySlice>& slices) {
  std::sort(slices.begin(), slices.end(), [](const auto& a, const auto& b) { return a.begin < b.begin; });
  Checksum checksum;
  std::int64_t at = t.begin;
  for (const ArraySlice& s : slices) {
    if (s.begin > at) return;
    const std::int64_t n = s.view.numel(), seen = std::min(at - s.begin, n);
    const TensorView rest = s.view.reshape({n}).rows(seen, n);
    checksum.update(rest.raw(), rest.bytes());
    at = std::max(at, s.begin + n);
  }
  if (at != t.end) return;
  const std::string got = checksum.hex();
  require<DamagedError>(got == t.checksum,
                        "{} ({}), elements [{}, {}), in {} is damaged: checksum {}, the manifest says {}", t.name,
                        t.role, t.begin, t.end, t.file, got, t.checksum);
}

}  // namespace

LoadReport read_checkpoint(Communicator& comm, const CheckpointInfo& verified,
                           std::span<const CheckpointPiece> wanted) {
  Plan plan;
  run_together(comm, [&] { plan = plan_reads(wanted, verified.manifest, verified.path); });
  LoadReport report;
  run_together(comm, [&] {
    for (auto& [name, datasets] : plan) {
      Hdf5File file = Hdf5File::open(verified.path / name);
      ++report.files;
      for (auto& [entry, slices] : datasets) {
        file.read(*entry, slices);
        for (const ArraySlice& s : slices) report.bytes += static_cast<std::int64_t>(s.view.bytes());
        check_if_whole(*entry, slices);
      }
    }
  });
  return report;
}

Manifest load_checkpoint(Communicator& comm, const fs::path& path, std::span<const CheckpointPiece> wanted) {
  CheckpointInfo info{path, verify_checkpoint(comm, path)};
  read_checkpoint(comm, info, wanted);
  return std::move(info.manifest);
}

}  // namespace emox
