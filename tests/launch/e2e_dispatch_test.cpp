// The commands about sharded experts: emox plan, --record-pools, emox bench dispatch.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "parallel/expert/pool_trace.h"
#include "runtime/core/idx.h"
#include "runtime/files/files.h"
#include "tests/launch/tiny_program.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::CommandResult;

class DispatchCommands : public test::TinyProgram {
 protected:
  DispatchCommands() {
    recipe_.train.steps = 3;
    recipe_.train.micro_batch_sequences = 6;  // two micro-batches: the forward pass may run twice
    write();
  }
};

TEST_F(DispatchCommands, ARecordingHoldsEveryDecisionOnce) {
  const fs::path file = directory_.path() / "pools.bin";
  for (const char* memory : {"hold", "recompute"}) {
    fs::remove_all(directory_.path() / "run");
    const CommandResult r = emox("train " + path_ + " --force --record-pools " + file.string() +
                                 " --train.micro_batch_memory=" + std::string(memory));
    ASSERT_EQ(r.exit_code, 0) << r.output;
    PoolTraceReader reader(file);
    EXPECT_EQ(reader.header(), (PoolTraceHeader{8, 2, 2, false, 257}));
    std::map<std::pair<std::uint32_t, std::uint32_t>, std::size_t> tokens;  // by step and layer
    std::int64_t outside = 0, documents = 0;
    while (const auto record = reader.next()) {
      tokens[{record->step, record->layer}] += record->ids.size() / 2;
      documents += static_cast<std::int64_t>(record->segments.size()) - 1;
      for (std::size_t d = 0; d + 1 < record->segments.size(); ++d)
        for (std::int32_t i = 2 * record->segments[d]; i < 2 * record->segments[d + 1]; ++i)
          outside += record->pools[d * 8 + idx(record->ids[idx(i)])] == 0;
      if (record->layer > 0) continue;
      // The tokens are those that were routed: documents change where one ends, or with the sequence.
      ASSERT_EQ(record->tokens.size(), record->ids.size() / 2);
      ASSERT_EQ(record->sequence_length, 64);
      for (const std::int32_t at : record->segments)
        EXPECT_TRUE(at % 64 == 0 || record->tokens[idx(at)] == 256 || record->tokens[idx(at) - 1] == 256);
    }
    EXPECT_EQ(outside, 0);  // every pick lies in its document's pool
    EXPECT_GT(documents, 3 * 2 * 12);
    ASSERT_EQ(tokens.size(), 3U * 2U);
    for (const auto& [place, n] : tokens) EXPECT_EQ(n, 12U * 64U) << "step " << place.first;
  }
  // Replayed for more ranks than there are experts, several replicas.
  const json replay = json_of("bench dispatch --replay " + file.string() +
                              " --expert-parallel 8 --data-parallel 128 --ranks-per-node 4 --placement random");
  ASSERT_EQ(replay.at("rows").size(), 2U);
  for (const json& row : replay.at("rows")) {
    EXPECT_EQ(row.at("ranks_per_token"), 2.0);  // one expert a rank, two picks
    EXPECT_GE(row.at("ranks_per_document").get<double>(), 2.0);
    EXPECT_LE(row.at("nodes_per_token").get<double>(), 2.0);
  }
  const json one = json_of("bench dispatch --replay " + file.string() + " --expert-parallel 1");
  EXPECT_EQ(one.at("mean").at("ranks_per_token"), 1.0);
  EXPECT_EQ(one.at("mean").at("rows_sent_per_token"), 0.0);
  const CommandResult many = emox("bench dispatch --replay " + file.string() + " --expert-parallel 9");
  EXPECT_EQ(many.exit_code, 2);
  EXPECT_NE(many.output.find("8 routed experts"), std::string::npos) << many.output;
}

TEST_F(DispatchCommands, ARunGoesOnWithItsRecordingAndKeepsItsTimelines) {
  const std::string file = (directory_.path() / "pools.bin").string(), trace = (directory_.path() / "t.json").string();
  const auto train = [&](const std::string& more) {
    return emox("train " + path_ + " --record-pools " + file + " --trace " + trace + " " + more);
  };
  const auto bytes_of = [](const std::string& name) { return try_read_text(name).text; };
  expect(train("--run.stop_after_step=2"), 0, {"timeline of"});
  const std::string two = bytes_of(file), first = bytes_of(trace);
  // Another run's: refused before anything is made of it.
  const std::string other = "--run.dir=" + (directory_.path() / "other").string();
  expect(train(other), 2, {"--trace=" + trace + " exists: give --force"});
  expect(emox("train " + path_ + " --record-pools " + file + " " + other), 2, {file + " exists", "--force"});
  EXPECT_FALSE(fs::exists(directory_.path() / "other"));
  EXPECT_EQ(bytes_of(file), two);
  // Its own, cut to the checkpoint: as if it had never been stopped.
  std::ofstream(file, std::ios::app) << "torn";
  expect(train(""), 0, {"resumed", "the timeline that was in"});
  const std::string whole = bytes_of(file);
  EXPECT_EQ(whole.substr(0, two.size()), two);
  EXPECT_GT(whole.size(), two.size());
  int timelines = 0;
  for (const auto& entry : fs::directory_iterator(directory_.path()))
    if (entry.path().filename().string().starts_with("t.json.until-")) {
      ++timelines;
      EXPECT_EQ(bytes_of(entry.path()), first);
    }
  EXPECT_EQ(timelines, 1);
  fs::rename(file, file + ".0");
  expect(train(other), 2, {"--trace="});
  expect(train(other + " --force"), 0, {"step 3/3"});
  EXPECT_EQ(bytes_of(file), whole);
}

TEST_F(DispatchCommands, WhatCannotBeRecordedIsRefused) {
  const CommandResult nowhere = emox("train " + path_ + " --record-pools /nonexistent/pools.bin");
  EXPECT_EQ(nowhere.exit_code, 2) << nowhere.output;
  EXPECT_NE(nowhere.output.find("/nonexistent/pools.bin cannot be written"), std::string::npos) << nowhere.output;
  const CommandResult dense = emox(
      "train " + path_ + " --record-pools x --moe.num_experts=0 --run.dir=" + (directory_.path() / "dense").string());
  EXPECT_EQ(dense.exit_code, 2) << dense.output;
  const CommandResult missing = emox("bench dispatch --replay " + (directory_.path() / "none").string());
  EXPECT_EQ(missing.exit_code, 2) << missing.output;
}

// Of one rank everything is its own, and nothing travels; on two nodes the plan says the same as the benchmark.
TEST_F(DispatchCommands, BenchScaleNeedsNoRanks) {
  const json one = json_of("bench scale " + path_ + " --nodes 1 --ranks-per-node 1").at("rows").at(0);
  EXPECT_GT(one.at("pieces"), 0);
  EXPECT_EQ(one.at("pieces_of_a_rank"), one.at("pieces"));
  EXPECT_EQ(one.at("gradients").at("bytes_intra_node"), 0);
  EXPECT_EQ(one.at("weights").at("bytes_inter_node"), 0);
  const std::string mesh = path_ + " --nodes 2 --ranks-per-node 2 --parallel.expert_parallel=2";
  const json four = json_of("bench scale " + mesh).at("rows").at(0), plan = json_of("plan " + mesh).at("state");
  EXPECT_GT(four.at("pieces"), one.at("pieces"));  // dense arrays are cut
  EXPECT_LT(four.at("pieces_of_a_rank"), one.at("pieces"));
  EXPECT_GT(four.at("gradients").at("bytes_inter_node"), 0);
  for (const char* key : {"pieces", "manifest_bytes", "gradients", "weights"})
    EXPECT_EQ(four.at(key), plan.at(key)) << key;
  expect(emox("bench scale"), 2, {"Name a recipe"});
  expect(emox("bench scale " + path_ + " --nodes 1 --ranks-per-node 3 --parallel.expert_parallel=2"), 2,
         {"fits none of these numbers of ranks"});
}

TEST_F(DispatchCommands, APlanNeedsNoRanks) {
  const json plan = json_of("plan " + path_ + " --ranks 12 --parallel.expert_parallel=4");
  EXPECT_EQ(plan.at("data_parallel"), 3);
  EXPECT_GT(plan.at("most").at("total").get<std::int64_t>(), plan.at("most").at("activations").get<std::int64_t>());
  const CommandResult wrong = emox("plan " + path_ + " --ranks 10 --parallel.expert_parallel=4");
  EXPECT_EQ(wrong.exit_code, 2);
  EXPECT_NE(wrong.output.find("10 = 4 x data_parallel"), std::string::npos) << wrong.output;
}

}  // namespace
}  // namespace emox
