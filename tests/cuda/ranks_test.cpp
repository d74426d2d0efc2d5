// Several ranks that compute on devices against the same ranks on the CPU: plans and counted bytes are equal, losses
// and gradients but for the order of sums.
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "parallel/comm/nccl/nccl_transport.h"
#include "tests/cuda/near.h"
#include "tests/cuda/program.h"
#include "tests/support/device.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox::test {
namespace {

struct Transport {
  const char* name;
  MakeDeviceTransport make;
  bool own_devices;  ///< else all ranks share device 0
};
const Transport kTransports[] = {
    {"staged", make_staged_transport, false},
    {"nccl", [](Communicator& host, DeviceQueue& queue) { return make_nccl_transport(host, queue); }, true}};

struct Case {
  const char* name;
  int ranks, expert_parallel, ranks_per_node;
  void (*change)(Recipe&);
};
void plain(Recipe&) {}
void two_level(Recipe& r) { r.parallel.dispatch = DispatchKind::TwoLevel; }
void randomly(Recipe& r) { r.parallel.placement = PlacementKind::Random, r.parallel.placement_seed = 5; }
void standard(Recipe& r) { r.model.pool = PoolMode::Off; }
void standard_two_level(Recipe& r) { standard(r), two_level(r), randomly(r); }
void no_overlap(Recipe& r) {
  r.parallel.overlap_experts = r.parallel.overlap_gradients = r.parallel.overlap_weights = false;
}
void recomputed(Recipe& r) {
  r.train.micro_batch_sequences = 1;
  r.train.micro_batch_memory = MicroBatchMemory::Recompute;
}
void micro_batch_scope(Recipe& r) {
  r.train.micro_batch_sequences = 1;
  r.model.balance_scope = BalanceScope::MicroBatch;
}
void dense(Recipe& r) {
  r.model.num_experts = 0;
  r.model.pool = PoolMode::Off;
}
const Case kCases[] = {{"one_by_one", 1, 1, 0, plain},
                       {"two_by_one", 2, 2, 0, plain},
                       {"one_by_two", 2, 1, 0, plain},
                       {"one_by_two_dense", 2, 1, 0, dense},
                       {"three_by_one_random", 3, 3, 0, randomly},
                       {"four_by_one", 4, 4, 0, standard},
                       {"four_by_one_two_level", 4, 4, 2, two_level},
                       {"two_by_two", 4, 2, 0, randomly},
                       {"two_by_two_no_overlap", 4, 2, 0, no_overlap},
                       {"two_by_two_recomputed", 4, 2, 0, recomputed},
                       {"two_by_two_micro_batch_scope", 4, 2, 0, micro_batch_scope},
                       {"four_by_two_two_level", 8, 4, 2, standard_two_level}};

class DeviceRanks : public ::testing::TestWithParam<std::tuple<Transport, Case>> {
 protected:
  void SetUp() override {
    const auto& [transport, c] = GetParam();
    const int needed = transport.own_devices ? c.ranks : 1;
    if (too_few_devices(needed)) GTEST_SKIP() << "needs " << needed << " devices";
  }
  Recipe recipe(const Case& c) {
    Recipe r = tiny_recipe(make_text_sources(directory_.path()));
    r.train.batch_sequences = r.train.micro_batch_sequences = 8;
    r.parallel.expert_parallel = c.expert_parallel;
    c.change(r);
    return r;
  }
  RunOptions on_cpu(const Case& c) { return {.ranks = c.ranks, .ranks_per_node = c.ranks_per_node, .steps = 2}; }
  RunOptions on_devices(const Case& c, DType type = DType::F32) {
    RunOptions o = on_cpu(c);
    const Transport& t = std::get<0>(GetParam());
    o.transport = t.make;
    o.own_devices = t.own_devices;
    o.context.activations = type;
    return o;
  }
  TemporaryDirectory directory_;
};

// The integers of routing, so whatever depends on them alone.
void expect_equal(const DispatchMetrics& got, const DispatchMetrics& want) {
  EXPECT_EQ(got.rows_sent_per_token, want.rows_sent_per_token);
  EXPECT_EQ(got.ranks_per_token, want.ranks_per_token);
  EXPECT_EQ(got.nodes_per_token, want.nodes_per_token);
  EXPECT_EQ(got.bytes_intra_node, want.bytes_intra_node);
  EXPECT_EQ(got.bytes_inter_node, want.bytes_inter_node);
  EXPECT_EQ(got.bytes_saved, want.bytes_saved);
  EXPECT_EQ(got.rows_max_over_mean, want.rows_max_over_mean);
  EXPECT_EQ(got.ranks_per_document, want.ranks_per_document);
}

TEST_P(DeviceRanks, AStepIsTheCpus) {
  const Case& c = std::get<1>(GetParam());
  const Recipe r = recipe(c);
  const TrainingRun want = train_on_threads(r, on_cpu(c)), got = train_on_threads(r, on_devices(c));
  for (std::size_t s = 0; s < 2; ++s) {  // the second step has the weights that the first one left
    expect_near(got.steps[s], want.steps[s], 1e-5);
    expect_equal(got.steps[s].dispatch, want.steps[s].dispatch);
  }
  expect_near(got.gradients, want.gradients, 2e-5);
}

class DeviceRanksBf16 : public DeviceRanks {};

// Weights travel as bf16, masters and moments are their owners': two runs give the same bits, on all ranks.
TEST_P(DeviceRanksBf16, TheBitsRepeat) {
  const Case& c = std::get<1>(GetParam());
  const Recipe r = recipe(c);
  const TrainingRun one = train_on_threads(r, on_devices(c, DType::BF16)),
                    two = train_on_threads(r, on_devices(c, DType::BF16));
  for (std::size_t s = 0; s < 2; ++s) {
    EXPECT_EQ(one.steps[s].loss(), two.steps[s].loss());
    EXPECT_EQ(one.steps[s].grad_norm, two.steps[s].grad_norm);
  }
  EXPECT_EQ(one.weights, two.weights);
  EXPECT_FALSE(one.weights.empty());
}

// With experts on other ranks the host waits once a layer, to know how many rows come; not in the backward pass, and
// not when a forward pass runs again. Besides, it waits at the end of a step: for the device, for integers and sums.
TEST(DeviceRanksWaits, OnceALayerAndNotInTheBackwardPass) {
  if (too_few_devices(2)) GTEST_SKIP() << "needs two devices";
  const TemporaryDirectory directory;
  Recipe r = tiny_recipe(make_text_sources(directory.path()));
  r.train.batch_sequences = 4;
  r.parallel.expert_parallel = 2;
  for (const MicroBatchMemory memory : {MicroBatchMemory::Hold, MicroBatchMemory::Recompute}) {
    const int micro_batches = memory == MicroBatchMemory::Hold ? 1 : 2;
    r.train.micro_batch_sequences = 2 / micro_batches;
    r.train.micro_batch_memory = memory;
    const TrainingRun run =
        train_on_threads(r, {.ranks = 2, .steps = 3, .transport = kTransports[1].make, .own_devices = true});
    const QueueCounters &before = run.queue[2], &computed = run.queue[3], &updated = run.queue[4];
    EXPECT_EQ(computed.waits - before.waits, r.model.layers * micro_batches + 3);
    EXPECT_EQ(updated.waits - computed.waits, 0);
  }
}

std::string name_of(const ::testing::TestParamInfo<std::tuple<Transport, Case>>& p) {
  return std::string(std::get<0>(p.param).name) + "_" + std::get<1>(p.param).name;
}
INSTANTIATE_TEST_SUITE_P(All, DeviceRanks,
                         ::testing::Combine(::testing::ValuesIn(kTransports), ::testing::ValuesIn(kCases)), name_of);
// One of each kind: bf16 takes several times as long there.
INSTANTIATE_TEST_SUITE_P(Some, DeviceRanksBf16,
                         ::testing::Combine(::testing::Values(kTransports[1]),
                                            ::testing::Values(kCases[1], kCases[2], kCases[11])),
                         name_of);

}  // namespace
}  // namespace emox::test
