// Several ranks that compute on devices against the same on the CPU: plans and counted bytes are equal, losses and
// gradients but for the order of sums.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/device.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox::test {
namespace {

class DeviceRanks : public ::testing::Test {
 protected:
  Recipe recipe() {
    Recipe r = tiny_recipe(make_text_sources(directory_.path()));
    r.train.batch_sequences = r.train.micro_batch_sequences = 4;
    return r;
  }
  TemporaryDirectory directory_;
};

TEST_F(DeviceRanks, Staged) {
  Recipe r = recipe();
  r.parallel.expert_parallel = 2;
  const TrainingRun want = train_on_threads(r, {.ranks = 2});
  RunOptions o{.ranks = 2, .transport = make_staged_transport, .own_devices = false};
  const TrainingRun got = train_on_threads(r, o);
  EXPECT_NEAR(got.steps[0].ce, want.steps[0].ce, 1e-5 * want.steps[0].ce);
  EXPECT_EQ(got.steps[0].dispatch.bytes_intra_node, want.steps[0].dispatch.bytes_intra_node);
  EXPECT_EQ(got.steps[0].dispatch.rows_sent_per_token, want.steps[0].dispatch.rows_sent_per_token);
}

}  // namespace
}  // namespace emox::test
