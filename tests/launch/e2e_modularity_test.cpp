// `emox eval --modularity` as a program.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <span>

#include "data/format/npy.h"
#include "data/loader/loader.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

using test::CommandResult;

TEST(ProgramModularity, MeasuresACheckpointAndRefusesADenseOne) {
  const test::TemporaryDirectory directory;
  Recipe recipe = test::tiny_recipe(test::make_text_sources(directory.path()));
  recipe.train.steps = 3, recipe.train.warmup_steps = 0, recipe.eval.final = false, recipe.data.eval_documents = 6;
  recipe.run.dir = (directory.path() / "run").string();
  const std::string path = test::write_recipe(directory.path() / "tiny.ini", recipe).string();
  const auto emox = [](const std::string& arguments) {
    return test::run_command("OMP_NUM_THREADS=1 " EMOX_BINARY " " + arguments);
  };
  const CommandResult trained = emox("train " + path);
  ASSERT_EQ(trained.exit_code, 0) << trained.output;

  const CommandResult text = emox("eval " + recipe.run.dir + " --modularity");
  ASSERT_EQ(text.exit_code, 0) << text.output;
  EXPECT_NE(text.output.find("modularity after step 3: 24 documents of 4 domains"), std::string::npos) << text.output;

  EXPECT_NE(text.output.find("the corpus does not name files: pieces of one count as independent"), std::string::npos)
      << text.output;

  const CommandResult out = emox("eval " + recipe.run.dir + " --modularity --json");
  ASSERT_EQ(out.exit_code, 0) << out.output;
  const auto json = nlohmann::json::parse(out.output.substr(out.output.find('{')));
  const auto& m = json.at("modularity");
  EXPECT_EQ(m.at("layers").size(), 2U);
  EXPECT_TRUE(m.at("files").is_null());
  EXPECT_NE(m.at("interval").get<std::string>().find("over documents"), std::string::npos) << m.at("interval");
  std::int64_t tokens = 0;
  for (const auto& domain : json.at("domains")) tokens += domain.at("tokens").get<std::int64_t>();
  EXPECT_EQ(m.at("tokens"), tokens);
  double mean = 0;
  for (const auto& layer : m.at("layers")) {
    const auto& value = layer.at("surface").at("share_of_possible");
    EXPECT_LE(value.at("low"), value.at("value"));
    EXPECT_GE(value.at("high"), value.at("value"));
    mean += value.at("value").get<double>() / 2;
  }
  EXPECT_NEAR(m.at("mean").at("surface").at("share_of_possible").at("value").get<double>(), mean, 1e-12);
  EXPECT_FALSE(nlohmann::json::parse(emox("eval " + recipe.run.dir + " --json").output).contains("modularity"));

  // The same documents, said to be pieces of two files a domain: the same values, other intervals.
  for (const std::string& source : recipe.data.source) {
    const std::filesystem::path folder = SourceSpec::parse(source).path;
    const auto documents = static_cast<std::int64_t>(read_npy_integers(folder / "heldout.docs.npy").size()) - 1;
    std::vector<std::int64_t> files;
    for (std::int64_t d = 0; d < documents; ++d) files.push_back(d % 2);
    write_npy(folder / "heldout.files.npy", std::span<const std::int64_t>(files));
  }
  const CommandResult by_file = emox("eval " + recipe.run.dir + " --modularity --json");
  ASSERT_EQ(by_file.exit_code, 0) << by_file.output;
  const auto f = nlohmann::json::parse(by_file.output.substr(by_file.output.find('{'))).at("modularity");
  EXPECT_EQ(f.at("files"), 8);
  EXPECT_EQ(f.at("interval"), "95 %, Student's t, over source files inside domains");
  const auto &pieces = m.at("mean").at("topic").at("bits"), &whole = f.at("mean").at("topic").at("bits");
  EXPECT_EQ(whole.at("value"), pieces.at("value"));
  EXPECT_NE(whole.at("high"), pieces.at("high"));

  const std::string dense = (directory.path() / "dense").string();
  const CommandResult trained_dense = emox("train " + path + " --moe.num_experts=0 --run.dir=" + dense);
  ASSERT_EQ(trained_dense.exit_code, 0) << trained_dense.output;
  const CommandResult refused = emox("eval " + dense + " --modularity");
  EXPECT_EQ(refused.exit_code, 2) << refused.output;
  EXPECT_NE(refused.output.find("dense"), std::string::npos) << refused.output;
}

}  // namespace
}  // namespace emox
