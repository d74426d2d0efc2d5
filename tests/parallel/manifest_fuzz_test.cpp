// The manifest fuzzer's inputs without a fuzzer: random bytes, the same ones every time, so that every set of tests
// that is built, the sanitizers' too, meets them. tests/fuzz/run.sh searches much further.
#include "tests/fuzz/manifest_fuzz.h"

#include <gtest/gtest.h>

#include <chrono>
#include <random>
#include <vector>

namespace emox {
namespace {

TEST(ManifestFuzz, RandomInputsAreRefusedOrLoadedAndNothingElseHappens) {
  constexpr int kInputs = 20000;
  constexpr std::chrono::seconds kSlowest{10};
  std::mt19937 random(20240229);
  const test::FuzzCounts before = test::fuzz_counts();
  for (int i = 0; i < kInputs; ++i) {
    std::vector<std::uint8_t> bytes(random() % 64);
    for (std::uint8_t& b : bytes) b = static_cast<std::uint8_t>(random());
    const auto begin = std::chrono::steady_clock::now();
    ASSERT_NO_THROW(LLVMFuzzerTestOneInput(bytes.data(), bytes.size())) << "input " << i;
    ASSERT_LT(std::chrono::steady_clock::now() - begin, kSlowest) << "input " << i;
  }
  const test::FuzzCounts after = test::fuzz_counts();
  const std::int64_t refused = after.refused - before.refused, accepted = after.accepted - before.accepted;
  const std::int64_t loaded = after.loaded - before.loaded, unloadable = after.unloadable - before.unloadable;
  std::printf("  %d manifests: %ld refused, %ld accepted; of these %ld loaded, %ld refused by loading\n", kInputs,
              refused, accepted, loaded, unloadable);
  // The edits are good for something only while they reach every depth.
  EXPECT_EQ(refused + accepted, kInputs);
  EXPECT_GT(refused, kInputs / 2);
  EXPECT_GT(unloadable, kInputs / 500);
  EXPECT_GT(loaded, kInputs / 500);
}

}  // namespace
}  // namespace emox
