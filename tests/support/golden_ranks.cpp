#include "tests/support/golden_ranks.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "runtime/core/idx.h"
#include "tests/support/device.h"
#include "tests/support/ranks.h"

namespace emox::test {
namespace {

constexpr int kTimeout = 120;
constexpr int kRanksPerNode = 2;

}  // namespace

ParallelConfig GoldenMesh::parallel() const {
  ParallelConfig p;
  p.expert_parallel = expert_parallel, p.dispatch = dispatch, p.placement = PlacementKind::Random;
  return p;
}

std::string GoldenMesh::text() const {
  return fmt::format("{} rank(s), experts over {}, {}", ranks, expert_parallel, kDispatchNames[idx(dispatch)]);
}

std::vector<GoldenMesh> golden_meshes(const ModelConfig& model) {
  std::vector<GoldenMesh> meshes;
  for (const GoldenMesh& m : {GoldenMesh{1, 1}, GoldenMesh{2, 1}, GoldenMesh{4, 1}, GoldenMesh{2, 2},
                              GoldenMesh{2, 2, DispatchKind::TwoLevel}, GoldenMesh{4, 2}, GoldenMesh{4, 4},
                              GoldenMesh{4, 4, DispatchKind::TwoLevel}})
    if (m.ranks > 1 && has_device())
      continue;  // a device is one rank's
    else if (m.expert_parallel == 1 || (model.is_moe() && model.routed_experts() >= m.expert_parallel))
      meshes.push_back(m);
  return meshes;
}

void run_on_mesh(const GoldenMesh& mesh, const std::function<void(Context&, Communicator&)>& body) {
  if (mesh.ranks == 1) {
    Context ctx = golden_context();
    const auto comm = make_self_communicator();
    body(ctx, *comm);
    return;
  }
  ThreadWorld world(mesh.ranks, {.ranks_per_node = kRanksPerNode});
  run_ranks(
      world,
      [&](Communicator& comm) {
        Context ctx;
        body(ctx, comm);
      },
      kTimeout);
}

Part part_of(std::int64_t n, const Communicator& comm) {
  return {n * comm.rank() / comm.size(), n * (comm.rank() + 1) / comm.size()};
}

GoldenTensors sum_over_ranks(const std::vector<GoldenTensors>& by_rank) {
  GoldenTensors sum;
  for (const GoldenTensors& part : by_rank)
    for (const auto& [name, tensor] : part) {
      const auto [at, added] = sum.emplace(name, tensor);
      if (added) continue;
      for (std::size_t i = 0; i < tensor.values.size(); ++i) at->second.values.at(i) += tensor.values[i];
    }
  return sum;
}

GoldenTensors union_over_ranks(const std::vector<GoldenTensors>& by_rank) {
  GoldenTensors all;
  for (const GoldenTensors& part : by_rank)
    for (const auto& [name, tensor] : part)
      if (const auto [at, added] = all.emplace(name, tensor); !added) {
        EXPECT_EQ(at->second.values, tensor.values) << name << " is not the same on all ranks";
      }
  return all;
}

}  // namespace emox::test
