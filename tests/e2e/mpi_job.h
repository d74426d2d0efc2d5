// `mpirun -n N emox train` on the tiny recipe of tests/support, in a directory of its own.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "launch/config/recipe.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox::test {

inline constexpr const char* kEnvironment =
    "export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "
    "OMPI_MCA_rmaps_base_oversubscribe=1 "
    "OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_plm=isolated; ";

class MpiJob : public ::testing::Test {
 protected:
  MpiJob() : recipe_(tiny_recipe(make_text_sources(directory_.path()))) {
    recipe_.eval.final = false;
    path_ = write_recipe(directory_.path() / "tiny.ini", recipe_).string();
  }
  std::filesystem::path run(const std::string& name) const { return directory_.path() / name; }
  /// The shell's words for a start on `ranks` ranks.
  std::string start(const std::string& name, int ranks, const std::string& overrides = "") const {
    return EMOX_MPIEXEC " -n " + std::to_string(ranks) + " " EMOX_BINARY " train " + path_ +
           " --run.dir=" + run(name).string() + " " + overrides;
  }
  std::filesystem::path train(const std::string& name, int ranks, const std::string& overrides = "") const {
    const CommandResult r = run_command(kEnvironment + start(name, ranks, overrides));
    EXPECT_EQ(r.exit_code, 0) << r.output;
    return run(name);
  }

  TemporaryDirectory directory_;
  Recipe recipe_;
  std::string path_;
};

}  // namespace emox::test
