// Experts sharded over two nodes (nodes.sh): the bytes that dispatch counts are those on the link between them.
//
// The link carries more than dispatch: the start, gradients, weights, counts. All of that depends on the model and on
// the number of steps, not on the tokens. So each dispatch runs twice, with many and with as few sequences a step as
// there are ranks, and the difference of the two on the link is dispatch, with its share of headers: Ethernet, IP, TCP
// and its acknowledgements, MPI. What headers add is measured with an exchange of known size, in messages as large as
// the mean message of rows.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <regex>
#include <stdexcept>

#include "runtime/core/idx.h"
#include "tests/e2e/mpi_job.h"
#include "tests/support/checkpoints.h"

namespace emox {
namespace {

constexpr int kSkipped = 77;
/// Repeated runs differ by 0.0005; gates that nobody counted would be 0.02.
constexpr double kTolerance = 0.01;
constexpr std::int64_t kSteps = 5, kRanks = 4, kManySequences = 128;

struct Traffic {
  double link = 0;                         ///< bytes, both directions
  double inter = 0, intra = 0, saved = 0;  ///< metrics, summed over the steps
};

class Nodes : public test::MpiJob {
 protected:
  static test::CommandResult on_nodes(const std::string& command) {
    return test::run_command("export OMP_NUM_THREADS=1; " EMOX_SOURCE_DIR "/tests/e2e/nodes.sh 60 2 " + command, 90);
  }
  static std::string succeed(const std::string& command) {
    const test::CommandResult r = on_nodes(command);
    if (r.exit_code != 0) throw std::runtime_error(command + ":\n" + r.output);
    return r.output;
  }
  static double number(const std::string& text, const std::string& before) {
    std::smatch m;
    if (std::regex_search(text, m, std::regex(before + "([0-9]+)"))) return std::stod(m[1]);
    throw std::runtime_error("no '" + before + "' in:\n" + text);
  }
  Traffic train(const std::string& dispatch, std::int64_t sequences) const {
    const std::string name = dispatch + "-" + std::to_string(sequences);
    const std::string output =
        succeed(EMOX_BINARY " train " + path_ + " --run.dir=" + run(name).string() +
                " --parallel.dispatch=" + dispatch + " --train.batch_sequences=" + std::to_string(sequences));
    Traffic t;
    t.link = number(output, "link: ");
    const auto steps = test::read_metrics(run(name));
    EXPECT_EQ(steps.size(), idx(kSteps));
    for (const auto& step : steps) {
      t.inter += step.at("bytes_inter_node").get<double>();
      t.intra += step.at("bytes_intra_node").get<double>();
      t.saved += step.at("bytes_saved").get<double>();
      EXPECT_GT(step.at("nodes_per_token").get<double>(), 1);
    }
    return t;
  }
  /// Bytes on the link a byte sent, in `times` exchanges of `bytes` bytes for each pair of ranks.
  static double header_factor(double bytes, std::int64_t times) {
    const auto run = [&](std::int64_t n) {
      const std::string output =
          succeed(EMOX_MPI_COMM " traffic " + std::to_string(std::llround(bytes)) + " " + std::to_string(n));
      return std::pair(number(output, "link: "), number(output, "between nodes: "));
    };
    const auto [link, sent] = run(times);
    return (link - run(0).first) / sent;
  }
};

TEST_F(Nodes, BytesOnTheLinkAreThoseThatDispatchCounts) {
  if (const auto r = on_nodes("true"); r.exit_code == kSkipped) GTEST_SKIP() << r.output;
  recipe_.model.d_model = 16;  // narrow rows, so that gates and plans weigh something beside them
  recipe_.model.num_experts = 17, recipe_.model.top_k = 5;
  recipe_.model.pool_min = 4, recipe_.model.pool_max = 16;
  recipe_.train.micro_batch_sequences = kManySequences;
  recipe_.train.steps = kSteps, recipe_.train.warmup_steps = 2;
  recipe_.parallel.expert_parallel = kRanks;
  test::write_recipe(path_, recipe_);
  double share[2] = {}, counted[2] = {}, other[2] = {};
  for (const bool two_level : {false, true}) {
    const std::string dispatch = two_level ? "two_level" : "flat";
    const Traffic many = train(dispatch, kManySequences), few = train(dispatch, kRanks);
    // Rows make four journeys a layer; of 12 ordered pairs of ranks, 8 are on different nodes, of which two_level
    // uses 4.
    const std::int64_t exchanges = kSteps * recipe_.model.layers * 4;
    const double pairs = two_level ? 4 : 8, mean = (many.inter - few.inter) / static_cast<double>(exchanges) / pairs;
    const double factor = header_factor(mean, exchanges * static_cast<std::int64_t>(pairs) / 8);
    counted[two_level] = many.inter - few.inter;
    share[two_level] = (many.link - few.link) / factor;
    other[two_level] = few.link - factor * few.inter;
    std::printf(
        "%s: link %.0f - %.0f bytes, headers x %.4f: dispatch sent %.0f, counted %.0f - %.0f, ratio %.4f (%.4f with "
        "headers); everything else %.0f; inside nodes %.0f; one row a pick would have sent %.0f more\n",
        dispatch.c_str(), many.link, few.link, factor, share[two_level], many.inter, few.inter,
        share[two_level] / counted[two_level], share[two_level] * factor / counted[two_level], other[two_level],
        many.intra - few.intra, many.saved);
    EXPECT_GT(factor, 1.0);
    EXPECT_LT(factor, 1.1);
    EXPECT_GT(counted[two_level], 0.5 * many.link);  // the comparison is about most of the traffic
    EXPECT_NEAR(share[two_level] / counted[two_level], 1.0, kTolerance);
    EXPECT_GT(many.intra, 0);
    EXPECT_GT(many.saved, 0);
  }
  EXPECT_LT(counted[1], counted[0]);
  EXPECT_LT(share[1], share[0]);
  // The same ranks on one node: other ways through the machine, and gradients are not added up inside nodes first, so
  // the same numbers but for rounding.
  const auto few = run("flat-" + std::to_string(kRanks));
  const auto one_node = MpiJob::train("one-node", kRanks, "--train.batch_sequences=" + std::to_string(kRanks));
  const auto a = test::read_metrics(few), b = test::read_metrics(one_node);
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i)
    for (const char* key : {"loss", "lb", "grad_norm"}) {
      const double on_two = a[i].at(key), on_one = b[i].at(key);
      EXPECT_NEAR(on_two, on_one, 1e-5 * on_one) << key << " " << i + 1;
    }
  // What is no dispatch does not depend on the dispatch either, but for the headers of few sequences' small messages.
  EXPECT_NEAR(other[1] / other[0], 1.0, 0.05);
}

// Of two nodes with two ranks each, every byte of a sum leaves its node once, and comes back once: half of what it
// would be if every rank sent its own part.
TEST_F(Nodes, BytesOfSumsOnTheLinkAreThoseThatAreCounted) {
  if (const auto r = on_nodes("true"); r.exit_code == kSkipped) GTEST_SKIP() << r.output;
  constexpr std::int64_t kFloats = 3'000'000;
  const auto run = [&](std::int64_t times) {
    return succeed(EMOX_MPI_COMM " sums " + std::to_string(kFloats) + " " + std::to_string(times));
  };
  const std::string none = run(0), three = run(3);
  const double counted = number(three, "between nodes: "), link = number(three, "link: ") - number(none, "link: ");
  EXPECT_EQ(counted, 3 * 2 * 4.0 * kFloats);
  // A share of 750,000 floats is 12 pieces from the other node, and one message back.
  EXPECT_EQ(number(three, "messages: "), 3 * 4 * (12 + 1));
  std::printf("link %.0f bytes, counted %.0f, ratio %.4f\n", link, counted, link / counted);
  EXPECT_GT(link / counted, 1.0);
  EXPECT_LT(link / counted, 1.05);
}

}  // namespace
}  // namespace emox
