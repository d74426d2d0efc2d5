// No folder of recorded cases is passed over in silence.
#include <gtest/gtest.h>

#include <set>

#include "tests/support/golden.h"

namespace emox::test {
namespace {

TEST(Golden, EveryFolderHasATest) {
  const std::set<std::string> tested = {"router",   "moe_layer", "model",    "trajectory",
                                        "schedule", "hf_tiny",   "selection"};
  const std::filesystem::path root = golden_root(EMOX_SOURCE_DIR);
  ASSERT_TRUE(std::filesystem::is_directory(root)) << root;
  for (const auto& folder : std::filesystem::directory_iterator(root)) {
    const std::string name = folder.path().filename().string();
    const bool known = !folder.is_directory() || tested.count(name) > 0;
    EXPECT_TRUE(known) << "no test knows " << folder.path();
  }
}

}  // namespace
}  // namespace emox::test
