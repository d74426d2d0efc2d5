// `emox placement` and the replay of its result, against counting by hand.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "launch/analysis/placement/placement_study.h"
#include "tests/launch/tiny_program.h"

namespace emox {
namespace {

class PlacementCommand : public test::TinyProgram {};

TEST_F(PlacementCommand, CountsWhatItSaysAndItsFileIsUsed) {
  recipe_.train.steps = 6;
  write();
  const std::string pools = (directory_.path() / "pools.bin").string(),
                    file = (directory_.path() / "placement.json").string();
  expect(emox("train " + path_ + " --record-pools " + pools), 0, {});
  const nlohmann::json j = json_of("placement " + pools + " --expert-parallel 2 --ranks-per-node 1 --output " + file);
  const PoolTraceHeader header = RecordedRun(pools).header();
  const ExpertPlacement placement = ExpertPlacement::from_file(file, header.layers, header.experts, 2);
  // Every second document, token by token.
  RecordedRun run(pools);
  RecordedMicroBatch micro;
  std::int64_t document = 0, tokens = 0, visits = 0, measured = 0;
  std::vector<std::int64_t> load(idx(header.layers) * 2, 0);
  while (run.next(micro))
    for (std::size_t d = 0; d + 1 < micro[0].segments.size(); ++d, ++document) {
      if (document % 2 == 0) continue;
      ++measured, tokens += micro[0].segments[d + 1] - micro[0].segments[d];
      for (std::size_t l = 0; l < header.layers; ++l)
        for (std::int64_t t = micro[l].segments[d]; t < micro[l].segments[d + 1]; ++t) {
          std::set<int> ranks;
          for (std::size_t i = 0; i < header.top_k; ++i) {
            const int r =
                placement.of_layer(static_cast<std::int64_t>(l))[idx(micro[l].ids[idx(t) * header.top_k + i])];
            ranks.insert(r), ++load[2 * l + idx(r)];
          }
          visits += std::ssize(ranks);
        }
    }
  const nlohmann::json& affinity = j.at("placements").at(2);
  EXPECT_EQ(j.at("documents_measured"), measured);
  EXPECT_EQ(j.at("tokens_measured"), tokens);
  const double each = static_cast<double>(tokens) * header.layers;
  EXPECT_NEAR(affinity.at("ranks_per_token").get<double>(), static_cast<double>(visits) / each, 1e-9);
  EXPECT_NEAR(affinity.at("nodes_per_token").get<double>(), static_cast<double>(visits) / each, 1e-9);
  EXPECT_NEAR(affinity.at("rows_sent_per_token").get<double>(), static_cast<double>(visits) / each / 2, 1e-9);
  EXPECT_LE(affinity.at("rows_sent_per_token_home"), affinity.at("rows_sent_per_token"));
  double worst = 1;
  for (std::size_t l = 0; l < header.layers; ++l)
    worst = std::max(worst, 2.0 * static_cast<double>(std::max(load[2 * l], load[2 * l + 1])) /
                                static_cast<double>(load[2 * l] + load[2 * l + 1]));
  EXPECT_NEAR(affinity.at("load_max_over_mean").get<double>(), worst, 1e-9);
  // Sequences at home send less, and visit as many.
  const std::string replay = "bench dispatch --replay " + pools + " --expert-parallel 2 --placement " + file;
  EXPECT_EQ(json_of(replay).at("mean").at("placement"), file);
  const nlohmann::json homes = json_of(replay + " --homes affinity --sequences 1");
  const nlohmann::json &turn = homes.at("rows").at(1), &hindsight = homes.at("rows").at(3);
  EXPECT_NEAR(hindsight.at("ranks_per_token").get<double>(), turn.at("ranks_per_token").get<double>(), 1e-9);
  EXPECT_LE(hindsight.at("rows_sent_per_token"), turn.at("rows_sent_per_token"));
  EXPECT_LE(hindsight.at("rows_sent_per_token"), homes.at("rows").at(2).at("rows_sent_per_token"));
  EXPECT_EQ(json_of("bench dispatch --replay " + pools + " --expert-parallel 2 --placement affinity")
                .at("mean")
                .at("placement"),
            "affinity");
  // And the run that recorded it knows where.
  EXPECT_EQ(json_of("placement " + recipe_.run.dir + " --expert-parallel 2 --ranks-per-node 1").at("placements"),
            j.at("placements"));
}

TEST_F(PlacementCommand, SaysWhatIsWrong) {
  recipe_.train.steps = 2;
  write();
  const std::string pools = (directory_.path() / "pools.bin").string(), taken = (directory_.path() / "x.json").string();
  expect(emox("train " + path_ + " --record-pools " + pools), 0, {});
  std::ofstream(taken) << "{}";
  expect(emox("placement " + pools), 2, {"--expert-parallel"});
  expect(emox("placement " + pools + " --expert-parallel 99"), 2, {"99 ranks"});
  expect(emox("placement " + pools + " --expert-parallel 2 --output x.txt"), 2, {"must end in .json"});
  expect(emox("placement " + pools + " --expert-parallel 2 --output " + taken), 2, {"exists: --force replaces it"});
  expect(emox("placement " + pools + " --expert-parallel 2 --from-step 100"), 2, {"holds no document", "step 100"});
  expect(emox("placement " + pools + " --expert-parallel 2 --load-limit 0.9"), 2, {"--load-limit = 0.9"});
  expect(emox("bench dispatch --replay " + pools + " --sequences 2"), 2, {"--sequences is for --homes affinity"});
  expect(emox("placement nowhere.bin --expert-parallel 2"), 2, {"is no recording of pools"});
  expect(emox("placement " + directory_.path().string() + " --expert-parallel 2"), 2, {"recorded no pools"});
  expect(emox("bench dispatch --replay " + pools + " --homes near"), 2, {"--homes = near: use off or affinity"});
}

}  // namespace
}  // namespace emox
