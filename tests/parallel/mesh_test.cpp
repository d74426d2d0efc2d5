// The table of ranks: who shares a row and a column, on every mesh up to 12 ranks and on nodes of all kinds.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "parallel/mesh/process_mesh.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "tests/support/ranks.h"

namespace emox::test {
namespace {

/// The world ranks of a group, in its order.
std::vector<int> members(Communicator& group, int world_rank) {
  std::int32_t rank = world_rank;
  std::vector<std::int32_t> all(idx(group.size()));
  group.all_gather(TensorView(all.data(), DType::I32, {group.size()}), TensorView(&rank, DType::I32, {1}));
  return {all.begin(), all.end()};
}

/// World ranks by (node, rank), without sorting.
std::vector<int> places(const std::vector<int>& nodes) {
  std::vector<int> order;
  for (std::size_t node = 0; node < nodes.size(); ++node)
    for (std::size_t r = 0; r < nodes.size(); ++r)
      if (nodes[r] == static_cast<int>(node)) order.push_back(static_cast<int>(r));
  return order;
}

void check_layout(const std::vector<int>& nodes, int expert_parallel) {
  const MeshLayout layout(nodes, expert_parallel);
  const int ranks = static_cast<int>(nodes.size()), replicas = ranks / expert_parallel;
  const auto order = places(nodes);
  EXPECT_EQ(layout.ranks(), ranks);
  EXPECT_EQ(layout.expert_parallel(), expert_parallel);
  EXPECT_EQ(layout.data_parallel(), replicas);
  EXPECT_EQ(layout.nodes(), nodes);
  EXPECT_EQ(layout.in_order(), std::is_sorted(order.begin(), order.end()));
  for (int p = 0; p < ranks; ++p) {
    const int rank = order[idx(p)];
    const int replica = p / expert_parallel, expert = p % expert_parallel;
    EXPECT_EQ(layout.expert_index(rank), expert);
    EXPECT_EQ(layout.replica_index(rank), replica);
    EXPECT_EQ(layout.rank_at(replica, expert), rank);
    std::vector<int> row, column, row_nodes;
    for (int e = 0; e < expert_parallel; ++e) row.push_back(order[idx(replica * expert_parallel + e)]);
    for (int d = 0; d < replicas; ++d) column.push_back(order[idx(d * expert_parallel + expert)]);
    for (const int r : row) {  // numbers from 0 in the order of appearance
      const auto same = std::find_if(row.begin(), row.end(), [&](int o) { return nodes[idx(o)] == nodes[idx(r)]; });
      const auto first = same - row.begin();
      row_nodes.push_back(first < std::ssize(row_nodes) ? row_nodes[idx(first)]
                          : row_nodes.empty()           ? 0
                                                        : *std::max_element(row_nodes.begin(), row_nodes.end()) + 1);
    }
    EXPECT_EQ(layout.expert_group(rank), row);
    EXPECT_EQ(layout.replica_group(rank), column);
    EXPECT_EQ(layout.nodes_of(row), row_nodes);
  }
}

// Integers alone: sizes and nodes that no test starts threads for.
TEST(MeshLayout, EveryTableOfRanksOnNodesOfAllKinds) {
  for (const int ranks : {1, 2, 6, 12, 30, 64}) {
    for (const int per_node : {1, 4, 5, 8, 100}) {
      std::vector<int> in_turn;  // the first rank of every node, then the second ones, ...
      const int nodes = (ranks + per_node - 1) / per_node;
      for (int r = 0; r < ranks; ++r) in_turn.push_back(r % nodes);
      for (int expert_parallel = 1; expert_parallel <= ranks; ++expert_parallel) {
        if (ranks % expert_parallel != 0) continue;
        SCOPED_TRACE(fmt::format("{} ranks, {} a node, experts over {}", ranks, per_node, expert_parallel));
        check_layout(nodes_in_order(ranks, per_node), expert_parallel);
        check_layout(in_turn, expert_parallel);
      }
    }
  }
  EXPECT_EQ(nodes_in_order(5, 2), (std::vector<int>{0, 0, 1, 1, 2}));
  for (const std::int64_t size : {-1, 0, 4, 5, 7, 12})
    EXPECT_THROW(MeshLayout(nodes_in_order(6, 2), size), UsageError) << size;
}

void check_mesh(Communicator& world, int expert_parallel) {
  const ProcessMesh mesh(world, expert_parallel);
  const int size = world.size(), rank = world.rank(), replicas = size / expert_parallel;
  check_layout(world.nodes(), expert_parallel);
  const MeshLayout& layout = mesh.layout();
  EXPECT_EQ(layout.nodes(), world.nodes());
  EXPECT_EQ(&mesh.world(), &world);
  EXPECT_EQ(mesh.expert().rank(), layout.expert_index(rank));
  EXPECT_EQ(mesh.replicas().rank(), layout.replica_index(rank));
  EXPECT_EQ(mesh.expert_index(), layout.expert_index(rank));
  EXPECT_EQ(mesh.replica_index(), layout.replica_index(rank));
  EXPECT_EQ(members(mesh.expert(), rank), layout.expert_group(rank));
  EXPECT_EQ(members(mesh.replicas(), rank), layout.replica_group(rank));

  const ProcessMesh planned = ProcessMesh::planned(layout, rank);
  EXPECT_EQ(planned.expert().rank(), mesh.expert().rank());
  EXPECT_EQ(planned.replicas().rank(), mesh.replicas().rank());
  EXPECT_EQ(planned.replicas().size(), mesh.replicas().size());

  const bool in_order = layout.in_order();
  EXPECT_EQ(&mesh.expert() == &world, in_order && expert_parallel == size);
  EXPECT_EQ(&mesh.replicas() == &world, in_order && replicas == size);
  if (size == 1) return;
  EXPECT_EQ(mesh.expert().transport(), expert_parallel == 1 ? "self" : "threads");
  EXPECT_EQ(mesh.replicas().transport(), replicas == 1 ? "self" : "threads");
}

void check_divisors(Communicator& world) {
  for (int expert_parallel = 1; expert_parallel <= world.size(); ++expert_parallel)
    if (world.size() % expert_parallel == 0) check_mesh(world, expert_parallel);
}

TEST(ProcessMesh, EveryMeshUpToTwelveRanksOnNodesOfAllSizes) {
  for (int ranks = 1; ranks <= 12; ++ranks) {
    for (const int ranks_per_node : {0, 1, 2, 4, 5}) {  // 5 and 4 leave a smaller last node
      SCOPED_TRACE(fmt::format("{} ranks, {} a node", ranks, ranks_per_node));
      ThreadWorld world(ranks, {.ranks_per_node = ranks_per_node});
      run_ranks(world, check_divisors);
    }
  }
}

TEST(ProcessMesh, RanksDealtOutOverTheNodesInTurn) {
  for (const int ranks : {4, 6, 8, 12}) {
    for (const int per_node : {2, 3, 4}) {
      SCOPED_TRACE(fmt::format("{} ranks, {} a node", ranks, per_node));
      ThreadWorld threads(ranks, {.ranks_per_node = per_node});
      run_ranks(threads, [&](Communicator& comm) {
        // First the first rank of every node, then the second ones, ...
        const auto world = comm.split(0, comm.rank() % per_node * ranks + comm.rank() / per_node);
        const int nodes = (ranks + per_node - 1) / per_node;
        EXPECT_EQ(world->nodes()[1], nodes > 1 ? 1 : 0);
        check_divisors(*world);
      });
    }
  }
}

TEST(ProcessMesh, UnevenNodes) {
  // Of three nodes of four, 1, 4 and 3 ranks take part, in an order that jumps between the nodes.
  ThreadWorld threads(12, {.ranks_per_node = 4});
  run_ranks(threads, [](Communicator& comm) {
    const int place[] = {5, -1, -1, -1, 0, 4, 2, 7, 3, 1, -1, 6};
    const int mine = place[comm.rank()];
    const auto world = comm.split(mine < 0 ? 1 : 0, mine);
    if (mine < 0) return;
    EXPECT_EQ(world->nodes(), (std::vector<int>{0, 1, 0, 1, 0, 2, 1, 0}));
    check_divisors(*world);
  });
}

TEST(ProcessMesh, ExpertGroupsStayInsideNodes) {
  // 12 ranks dealt out over nodes of 4: groups of 2 and 4 touch one node, 12 all three; 6 cannot do with one.
  ThreadWorld threads(12, {.ranks_per_node = 4});
  run_ranks(threads, [](Communicator& comm) {
    const auto world = comm.split(0, comm.rank() % 4 * 12 + comm.rank() / 4);
    for (const auto& [expert_parallel, touched] : std::vector<std::pair<int, std::size_t>>{{2, 1}, {4, 1}, {6, 2}}) {
      const ProcessMesh mesh(*world, expert_parallel);
      const std::vector<int>& nodes = mesh.expert().nodes();
      EXPECT_EQ(std::set<int>(nodes.begin(), nodes.end()).size(), touched) << expert_parallel;
    }
  });
}

TEST(ProcessMesh, RefusesASizeThatDoesNotDivide) {
  run_ranks(6, [](Communicator& comm) {
    for (const std::int64_t size : {-1, 0, 4, 5, 7, 12}) EXPECT_THROW(ProcessMesh(comm, size), UsageError) << size;
    comm.barrier();
  });
}

std::string refusal(std::int64_t ranks, std::int64_t expert_parallel, std::int64_t routed) {
  try {
    check_expert_parallel(ranks, expert_parallel, routed);
  } catch (const UsageError& e) {
    return e.message();
  }
  return "";
}

TEST(ExpertParallel, AcceptsExactlyTheDivisorsThatTheExpertsAllow) {
  for (std::int64_t ranks = 1; ranks <= 24; ++ranks)
    for (std::int64_t size = -1; size <= 26; ++size)
      for (const std::int64_t routed : {0, 1, 7, 24, 127})
        EXPECT_EQ(refusal(ranks, size, routed).empty(),
                  size >= 1 && ranks % size == 0 && size <= std::max<std::int64_t>(routed, 1))
            << ranks << " " << size << " " << routed;
}

TEST(ExpertParallel, AutoFillsANodeAndDividesTheRanks) {
  const auto nodes = [](std::vector<int> sizes) {
    std::vector<int> all;
    for (std::size_t n = 0; n < sizes.size(); ++n) all.insert(all.end(), idx(sizes[n]), static_cast<int>(n));
    return all;
  };
  EXPECT_EQ(auto_expert_parallel(nodes({1}), 31), 1);
  EXPECT_EQ(auto_expert_parallel(nodes({2}), 31), 2);
  EXPECT_EQ(auto_expert_parallel(nodes({8}), 31), 8);
  EXPECT_EQ(auto_expert_parallel(nodes({8, 8, 8}), 31), 8);  // a group of ranks stays on a node
  EXPECT_EQ(auto_expert_parallel(nodes({8}), 7), 4);         // each rank needs an expert
  EXPECT_EQ(auto_expert_parallel(nodes({6}), 5), 3);
  EXPECT_EQ(auto_expert_parallel(nodes({8, 4}), 31), 4);  // every node holds whole groups
  EXPECT_EQ(auto_expert_parallel(nodes({3, 2}), 31), 1);
  EXPECT_EQ(auto_expert_parallel(nodes({8, 8}), 0), 1);  // dense
  EXPECT_EQ(auto_expert_parallel({0, 1, 0, 1}, 31), 2);  // ranks dealt out over the nodes
  for (int ranks = 1; ranks <= 40; ++ranks)
    for (const std::int64_t routed : {0, 1, 5, 24, 127})
      EXPECT_EQ(refusal(ranks, auto_expert_parallel(nodes({ranks}), routed), routed), "") << ranks << " " << routed;
}

TEST(ExpertParallel, NamesWhatFits) {
  const std::string equation = " does not fit ranks = expert_parallel x data_parallel, ";
  EXPECT_EQ(refusal(12, 5, 24), "parallel.expert_parallel = 5" + equation +
                                    "12 = 5 x data_parallel: data_parallel would be 2.4. On 12 ranks use "
                                    "expert_parallel = 4 or 6, or start 10 or 15 ranks for expert_parallel = 5");
  EXPECT_EQ(refusal(12, 5, 5), "parallel.expert_parallel = 5" + equation +
                                   "12 = 5 x data_parallel: data_parallel would be 2.4. On 12 ranks use "
                                   "expert_parallel = 4, or start 10 or 15 ranks for expert_parallel = 5");
  EXPECT_EQ(refusal(2, 4, 24), "parallel.expert_parallel = 4" + equation +
                                   "2 = 4 x data_parallel: data_parallel would be 0.5. On 2 ranks use "
                                   "expert_parallel = 2, or start 4 ranks for expert_parallel = 4");
  EXPECT_EQ(refusal(16, 16, 10), "parallel.expert_parallel = 16" + equation +
                                     "16 = 16 x data_parallel: each of 16 ranks needs an expert, the model has 10 "
                                     "routed ones. On 16 ranks use expert_parallel = 8");
  EXPECT_EQ(refusal(4, 2, 0), "parallel.expert_parallel = 2" + equation +
                                  "4 = 2 x data_parallel: a dense model has no experts to share. On 4 ranks use "
                                  "expert_parallel = 1");
  EXPECT_EQ(refusal(4, 0, 8), "parallel.expert_parallel = 0" + equation +
                                  "4 = 0 x data_parallel: it must be at least 1. On 4 ranks use expert_parallel = 1");
}

}  // namespace
}  // namespace emox::test
