#include <gtest/gtest.h>

#include <atomic>

#include "parallel/comm/factory.h"
#include "parallel/comm/mpi_world.h"
#include "parallel/comm/thread_world.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "tests/parallel/comm_checks.h"
#include "tests/parallel/comm_errors.h"
#include "tests/support/ranks.h"

namespace emox::test {
namespace {

TEST(SelfCommunicator, ComputesWhatOneRankMust) {
  const auto self = make_self_communicator();
  check_everything(*self);
  EXPECT_EQ(self->traffic(), Traffic{});
}

class ThreadRanks : public ::testing::TestWithParam<int> {};

TEST_P(ThreadRanks, ComputeTheClosedForms) {
  run_ranks(
      GetParam(), [](Communicator& comm) { check_everything(comm); }, 120);
}

TEST_P(ThreadRanks, ManySmallCallsInARow) {
  run_ranks(GetParam(), [](Communicator& comm) {
    for (std::int64_t i = 0; i < 200; ++i) {
      comm.barrier();
      check_all_reduce_of<std::int64_t>(comm, i % 7);
      check_all_to_all_of<std::int32_t>(comm, i % 3, 2);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Sizes, ThreadRanks, ::testing::Values(1, 2, 3, 4, 8));

TEST(ThreadWorld, SumsInRankOrder) {
  // 1e8 + 1 - 1e8 depends on the order: in f32 it is 0 in rank order, 1 in another.
  run_ranks(3, [](Communicator& comm) {
    std::vector<float> x(5, comm.rank() == 0 ? 1e8F : comm.rank() == 1 ? 1.0F : -1e8F);
    comm.all_reduce(view_of(x));
    expect_values(x, "rank order", [](std::int64_t) { return 0.0F; });
  });
}

// Nodes of two, three and four ranks, nodes that are not alike, and ranks of a node that are not neighbours.
TEST(ThreadWorld, AddsUpNodesFirst) {
  for (const auto& sizes : {std::pair{4, 2}, {6, 3}, {8, 4}, {8, 2}, {5, 2}, {7, 7}}) {
    const int ranks = sizes.first, a_node = sizes.second;
    ThreadWorld world(ranks, {.ranks_per_node = a_node});
    run_ranks(world, [&](Communicator& comm) {
      EXPECT_EQ(adds_up_nodes(comm.nodes()), ranks % a_node == 0 && ranks > a_node);
      check_ranges(comm);
      check_ranges(*comm.split(0, comm.rank() % a_node * ranks + comm.rank()));  // places first, then nodes
    });
  }
}

// What leaves a node does not grow with its ranks, and the length of messages not with the job: at 64 ranks on 8 nodes
// every rank receives each byte of its share once from each node.
TEST(ThreadWorld, SixtyFourRanksReceiveAShareFromEachNode) {
  constexpr int kRanks = 64, kNode = 8;
  const std::int64_t n = 64 * 65536 * 2;  // two pieces a rank
  std::vector<std::int64_t> cuts;
  for (int r = 0; r <= kRanks; ++r) cuts.push_back(n / kRanks * r);
  const auto ranges = ranges_of(cuts);
  ThreadWorld world(kRanks, {.ranks_per_node = kNode});
  run_ranks(
      world,
      [&](Communicator& comm) {
        std::vector<float> x(idx(n), static_cast<float>(comm.rank()));
        comm.reduce_scatter(view_of(x), ranges);
        const Traffic sum = comm.traffic();
        EXPECT_EQ(sum.bytes_inter_node, 7 * n / kRanks * 4);  // the other nodes' sums of its share
        EXPECT_EQ(sum.messages_inter_node, 7 * 2);
        EXPECT_EQ(sum.bytes_intra_node, 7 * n / kNode * 4);  // its neighbours' parts of what its place owns
        EXPECT_EQ(sum.messages_intra_node, 7 * 16);
        const auto mine = idx(cuts[idx(comm.rank())]);
        constexpr int kSum = kRanks * (kRanks - 1) / 2;
        EXPECT_EQ(x[mine], static_cast<float>(kSum));
      },
      120);
}

TEST(ThreadWorld, SimulatesNodes) {
  ThreadWorld world(5, {.ranks_per_node = 2});
  run_ranks(world, [](Communicator& comm) {
    EXPECT_EQ(comm.node_size(), comm.rank() == 4 ? 1 : 2);
    EXPECT_EQ(comm.node_rank(), comm.rank() % 2);
    EXPECT_EQ(comm.nodes(), (std::vector<int>{0, 0, 1, 1, 2}));
    const auto even = comm.split(comm.rank() % 2, 0);  // world ranks 0 2 4 and 1 3: one a node
    EXPECT_EQ(even->node_size(), 1);
    EXPECT_EQ(even->node_rank(), 0);
    const auto node = comm.split(comm.rank() / 2, comm.rank());
    EXPECT_EQ(node->size(), node->node_size());
    EXPECT_EQ(node->nodes(), std::vector<int>(idx(node->size()), 0));
    // World ranks 4 2 3 0 1: numbered in the order of this communicator's ranks.
    const int key[] = {3, 4, 1, 2, 0};
    const auto mixed = comm.split(0, key[comm.rank()]);
    EXPECT_EQ(mixed->nodes(), (std::vector<int>{0, 1, 1, 2, 2}));
    const int between[] = {0, 2, 1, 4, 3};
    EXPECT_EQ(comm.split(0, between[comm.rank()])->nodes(), (std::vector<int>{0, 1, 0, 2, 1}));
  });
}

TEST(ThreadWorld, ADifferentCollectiveFailsOnAllRanks) {
  ThreadWorld world(3);
  const auto errors = comm_errors(world, [](Communicator& comm) {
    std::vector<float> x(8);
    if (comm.rank() == 2)
      comm.barrier();
    else
      comm.all_reduce(view_of(x));
    comm.barrier();
  });
  for (const std::string& e : errors) {
    EXPECT_TRUE(contains(e, "rank 0 calls all_reduce(32 bytes of f32), rank 2 calls barrier")) << e;
  }
}

TEST(ThreadWorld, ADifferentSizeFailsOnAllRanks) {
  ThreadWorld world(3);
  const auto errors = comm_errors(world, [](Communicator& comm) {
    std::vector<float> x(comm.rank() == 1 ? 4 : 8);
    comm.all_reduce(view_of(x));
  });
  for (const std::string& e : errors) {
    EXPECT_TRUE(contains(e, "rank 0 calls all_reduce(32 bytes of f32), rank 1 calls all_reduce(16 bytes of f32)")) << e;
  }
}

TEST(ThreadWorld, RowCountsThatDoNotMeetFailOnAllRanks) {
  ThreadWorld world(2);
  const auto errors = comm_errors(world, [](Communicator& comm) {
    const std::vector<std::int64_t> send{1, 1}, recv{1, comm.rank() == 0 ? 2 : 1};
    std::vector<float> in(2), out(idx(recv[0] + recv[1]));
    comm.all_to_all_v(view_of(out), recv, view_of(in), send);
  });
  for (const std::string& e : errors) EXPECT_TRUE(contains(e, "rank 1 calls all_to_all_v with 1 rows for rank 0")) << e;
}

TEST(ThreadWorld, RangesThatDifferFailOnAllRanks) {
  for (const bool gather : {false, true}) {
    ThreadWorld world(2);
    const auto errors = comm_errors(world, [&](Communicator& comm) {
      std::vector<float> x(4);
      const std::vector<std::int64_t> cuts{0, comm.rank() == 0 ? 3 : 2, 4};
      gather ? comm.all_gather_v(view_of(x), ranges_of(cuts)) : comm.reduce_scatter(view_of(x), ranges_of(cuts));
    });
    for (const std::string& e : errors) {
      EXPECT_TRUE(contains(e, "the ranks' ranges differ: rank 0 calls ")) << e;
      EXPECT_TRUE(contains(e, " with range 0 = rows [0, 3) of rank 0, rank 1 with rows [0, 2) of rank 0")) << e;
    }
  }
}

TEST(ThreadWorld, ARankThatGivesUpFreesTheOthers) {
  ThreadWorld world(4);
  std::atomic<int> freed = 0;
  try {
    run_ranks(world, [&](Communicator& comm) {
      const auto part = comm.split(comm.rank() / 2, 0);
      if (comm.rank() == 3) throw std::logic_error("no more tokens");
      try {
        if (comm.rank() == 2)
          part->barrier();  // waits in a part, where rank 3 is missing
        else
          comm.barrier();
      } catch (const CommError& e) {
        EXPECT_TRUE(contains(e.message(), "barrier cannot finish: rank 3 stopped: no more tokens")) << e.message();
        ++freed;
        throw;
      }
    });
    ADD_FAILURE() << "run_ranks must rethrow";
  } catch (const std::logic_error& e) {
    EXPECT_STREQ(e.what(), "no more tokens");
  }
  EXPECT_EQ(freed, 3);
}

TEST(ThreadWorld, ErrorsNameTheirRank) {
  try {
    run_ranks(2, [](Communicator& comm) {
      if (comm.rank() == 1) fail("broken");
      comm.barrier();
    });
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_EQ(e.rank(), 1);
  }
}

TEST(RunRanks, ATimeoutFailsInsteadOfHanging) {
  EXPECT_THROW(run_ranks(
                   2,
                   [](Communicator& comm) {
                     if (comm.rank() == 0) comm.barrier();
                   },
                   1),
               CommError);
}

TEST(Arguments, AreCheckedBeforeAnythingIsSent) {
  run_ranks(2, [](Communicator& comm) {
    std::vector<float> three(3), four(4);
    std::vector<std::uint8_t> bytes(4);
    const std::vector<std::int64_t> two{2, 2}, negative{-1, 5}, one{4};
    EXPECT_THROW(comm.all_reduce(view_of(bytes)), ShapeError);
    EXPECT_THROW(comm.all_gather(view_of(three), view_of(four)), ShapeError);
    using Ranges = std::vector<RowRange>;
    for (const Ranges& ranges : {Ranges{{0, 5, 0}}, Ranges{{-1, 2, 0}}, Ranges{{2, 2, 0}}, Ranges{{0, 3, 0}, {2, 4, 1}},
                                 Ranges{{2, 4, 0}, {0, 2, 1}}, Ranges{{0, 4, 2}}, Ranges{{0, 4, -1}}}) {
      EXPECT_THROW(comm.reduce_scatter(view_of(four), ranges), ShapeError);
      EXPECT_THROW(comm.all_gather_v(view_of(four), ranges), ShapeError);
    }
    EXPECT_THROW(comm.reduce_scatter(view_of(bytes), Ranges{{0, 4, 0}}), ShapeError);
    EXPECT_THROW(comm.all_gather_v(TensorView(four.data(), DType::F32, {}), Ranges{{0, 1, 0}}), ShapeError);
    EXPECT_THROW(comm.all_gather(view_of(bytes), view_of(four)), ShapeError);
    EXPECT_THROW(comm.broadcast(view_of(four), 2), CommError);
    EXPECT_THROW(comm.all_to_all_v(view_of(three), two, view_of(four), two), ShapeError);
    EXPECT_THROW(comm.all_to_all_v(view_of(four), two, view_of(four), negative), ShapeError);
    EXPECT_THROW(comm.all_to_all_v(view_of(four), one, view_of(four), one), ShapeError);
    const std::vector<std::int64_t> send{comm.rank() == 0 ? 1 : 3, comm.rank() == 0 ? 3 : 1};
    EXPECT_THROW(comm.all_to_all_v_start(view_of(four), two, view_of(four), send), ShapeError);
    EXPECT_THROW(comm.split(-1, 0), CommError);
    EXPECT_THROW(comm.all_reduce(TensorView(three.data(), DType::F32, {3}, Device{DeviceType::Cuda, 0})), CommError);
    comm.barrier();
  });
}

/// Sets variables of a launcher, and restores what was there.
class LauncherEnvironment {
 public:
  LauncherEnvironment() {
    for (const char* name : kNames) {
      const char* value = std::getenv(name);
      if (value != nullptr) saved_.emplace_back(name, value);
      ::unsetenv(name);
    }
  }
  ~LauncherEnvironment() {
    for (const char* name : kNames) ::unsetenv(name);
    for (const auto& [name, value] : saved_) ::setenv(name.c_str(), value.c_str(), 1);
  }

 private:
  static constexpr std::array kNames{"OMPI_COMM_WORLD_SIZE", "PMI_SIZE",    "PMI_RANK", "PMIX_RANK", "SLURM_PROCID",
                                     "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"};
  std::vector<std::pair<std::string, std::string>> saved_;
};

TEST(Factory, ChoosesByTheLauncher) {
  const LauncherEnvironment clean;
  EXPECT_EQ(make_communicator(Transport::Auto)->transport(), "self");
  EXPECT_EQ(make_communicator(Transport::Self)->transport(), "self");
  EXPECT_EQ(parse_transport("mpi"), Transport::Mpi);
  EXPECT_THROW(parse_transport("mip"), UsageError);
  EXPECT_THROW(make_communicator(Transport::Self, -1), UsageError);
  ::setenv("OMPI_COMM_WORLD_SIZE", "2", 1);
  EXPECT_TRUE(MpiWorld::launched_by_mpi());
  EXPECT_THROW(make_communicator(Transport::Self), UsageError);
}

TEST(Factory, AJobScriptIsNoLaunch) {
  const LauncherEnvironment clean;
  ::setenv("SLURM_PROCID", "0", 1);
  ::setenv("SLURM_NTASKS", "4", 1);
  EXPECT_EQ(MpiWorld::launched_ranks(), 1);
  ::setenv("SLURM_STEP_NUM_TASKS", "4", 1);  // srun
  EXPECT_EQ(MpiWorld::launched_ranks(), 4);
}

}  // namespace
}  // namespace emox::test
