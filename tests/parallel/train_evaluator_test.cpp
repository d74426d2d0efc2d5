// Held-out loss: every token of a document is scored once, on any number of ranks; the mean is over domains.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <numbers>
#include <numeric>

#include "data/loader/heldout.h"
#include "data/tokenize/tokenizer.h"
#include "launch/run/evaluator.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "tests/support/ranks.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

/// A model with memory for an evaluation.
class Scorer {
 public:
  explicit Scorer(const ModelConfig& config, std::int64_t max_tokens)
      : model_(config, ctx_, false), batch_({}, max_tokens), max_tokens_(max_tokens) {
    model_.initialize(ctx_, 4);
    for (const NamedParameter& p : model_.parameters().named()) {  // confident predictions, far from uniform
      float* w = model_.parameters().weight(p.slot).data<float>();
      for (std::int64_t i = 0; p.matrix && i < p.slot.shape.numel(); ++i) w[i] *= 8;
    }
    Arena measure = Arena::measuring({});
    (void)model_.reserve(measure, max_tokens);
    model_.reserve_scratch(measure, max_tokens);
    arena_ = Arena({}, measure.peak());
    activations_ = model_.reserve(arena_, max_tokens);
    model_.reserve_scratch(arena_, max_tokens);
  }
  Evaluation run(Communicator& comm, const std::vector<HeldOut>& held_out, const EvaluationHooks& hooks = {}) {
    return evaluate(ctx_, model_, comm, {.held_out = held_out, .eos = kByteEos, .step = 17, .hooks = hooks},
                    {activations_, batch_, max_tokens_});
  }
  /// -log p of each token given those before it, from the logits of one sequence alone.
  std::vector<double> losses(const std::vector<std::int32_t>& tokens, const std::vector<std::int32_t>& labels) {
    const SequenceInput input{tokens, labels, 0, 0};
    const MicroBatch micro = make_micro_batch(model_.config(), kByteEos, std::span(&input, 1));
    batch_.upload(ctx_, micro);
    model_.forward(ctx_, activations_, batch_, nullptr);
    const std::int64_t v = model_.config().vocab_size;
    const Tensor logits({}, DType::F32, {micro.tokens, v});
    model_.logits(ctx_, logits, activations_, batch_);
    std::vector<double> result;
    for (std::int64_t t = 0; t < micro.tokens; ++t) {
      const float* z = logits.view().data<float>() + t * v;
      double sum = 0;
      for (std::int64_t i = 0; i < v; ++i) sum += std::exp(double{z[i]});
      result.push_back(std::log(sum) - z[labels[idx(t)]]);
    }
    return result;
  }

 private:
  Context ctx_;
  LanguageModel model_;
  DeviceBatch batch_;
  std::int64_t max_tokens_;
  Arena arena_{Device{}, 0};
  Activations activations_;
};

class Evaluator : public testing::Test {
 protected:
  Evaluator() : sources_(test::make_text_sources(directory_.path())), config_(test::tiny_recipe(sources_).model) {
    std::vector<SourceSpec> specs;
    for (const std::string& s : sources_) specs.push_back(SourceSpec::parse(s));
    held_out_ = read_held_out(specs, 10, *make_tokenizer("byte")).sources;
  }
  test::TemporaryDirectory directory_;
  std::vector<std::string> sources_;
  ModelConfig config_;
  std::vector<HeldOut> held_out_;
};

// Windows of S tokens, the first one led by EOS; the document's bytes and its own EOS are predicted, each exactly once.
TEST_F(Evaluator, ScoresEveryTokenOnce) {
  config_.sequence_length = 16;
  Scorer scorer(config_, 48);
  const auto comm = make_self_communicator();
  for (const std::size_t length : {1, 14, 15, 16, 17, 31, 32, 100}) {
    std::vector<std::int32_t> document;
    for (std::size_t i = 0; i < length; ++i) document.push_back(static_cast<std::int32_t>((i * 37 + length) % 200));
    const Evaluation e = scorer.run(*comm, {{"one", {document}, static_cast<std::int64_t>(length), {}}});
    double want = 0;
    std::size_t scored = 0;
    for (std::size_t begin = 0; begin <= length; begin += 16) {
      std::vector<std::int32_t> tokens, labels;
      for (std::size_t i = begin; i < std::min(begin + 16, length + 1); ++i) {
        tokens.push_back(i == 0 ? kByteEos : document[i - 1]);
        labels.push_back(i == length ? kByteEos : document[i]);
      }
      for (const double nats : scorer.losses(tokens, labels)) want += nats, ++scored;
    }
    ASSERT_EQ(e.domains.size(), 1U);
    EXPECT_EQ(e.domains[0].tokens, static_cast<std::int64_t>(length) + 1);
    EXPECT_EQ(scored, length + 1);
    EXPECT_NEAR(e.domains[0].nats, want, 1e-5 * want) << length;
  }
}

TEST_F(Evaluator, AnyNumberOfRanksAndAnyMemoryAgree) {
  Scorer scorer(config_, 64);
  const Evaluation one = scorer.run(*make_self_communicator(), held_out_);
  for (const int ranks : {2, 3, 4}) {
    std::vector<Evaluation> seen(idx(ranks));
    test::run_ranks(ranks, [&](Communicator& comm) {
      Scorer mine(config_, 64 * (1 + comm.rank()));
      seen[idx(comm.rank())] = mine.run(comm, held_out_);
    });
    for (const Evaluation& e : seen) {
      ASSERT_EQ(e.domains.size(), one.domains.size());
      for (std::size_t d = 0; d < e.domains.size(); ++d) {
        EXPECT_EQ(e.domains[d].tokens, one.domains[d].tokens);
        EXPECT_EQ(e.domains[d].documents, one.domains[d].documents);
        EXPECT_NEAR(e.domains[d].nats, one.domains[d].nats, 1e-6 * one.domains[d].nats) << ranks << " ranks";
      }
      EXPECT_EQ(e.mean_loss(), seen[0].mean_loss());
    }
  }
}

// Where all ranks have all experts, a pass gives the same bits wherever it is made, and passes are added in their
// order.
TEST_F(Evaluator, TheRanksDoNotShowInTheBits) {
  const Evaluation one = Scorer(config_, 128).run(*make_self_communicator(), held_out_);
  for (const int ranks : {2, 3, 5}) {
    test::run_ranks(ranks, [&](Communicator& comm) {
      const Evaluation e = Scorer(config_, 128).run(comm, held_out_);
      for (std::size_t d = 0; d < e.domains.size(); ++d) EXPECT_EQ(e.domains[d].nats, one.domains[d].nats) << ranks;
    });
  }
}

// A long document is shared out: no rank makes more than one pass beyond another's.
TEST_F(Evaluator, OneLongDocumentIsWorkForAllRanks) {
  const std::vector<HeldOut> uneven = {
      {"long", {std::vector<std::int32_t>(5000, 97), std::vector<std::int32_t>(51, 98)}, 5051, {}}};
  const Evaluation one = Scorer(config_, 128).run(*make_self_communicator(), uneven);
  for (const int ranks : {2, 3}) {
    std::vector<std::int64_t> tokens(idx(ranks), 0);
    test::run_ranks(ranks, [&](Communicator& comm) {
      EvaluationHooks hooks;
      std::int64_t last = -1;
      hooks.observer = [&](std::span<const ScoredWindow> windows) {
        for (const ScoredWindow& w : windows) tokens[idx(comm.rank())] += static_cast<std::int64_t>(w.tokens.size());
      };
      hooks.progress = [&](std::int64_t done, std::int64_t of) {
        EXPECT_GT(done, last);
        EXPECT_EQ(of, 40);  // 5054 tokens, 128 at a time
        last = done;
      };
      const Evaluation e = Scorer(config_, 128).run(comm, uneven, hooks);
      EXPECT_EQ(e.domains[0].nats, one.domains[0].nats);
      EXPECT_EQ(last, 40);
    });
    EXPECT_EQ(std::accumulate(tokens.begin(), tokens.end(), std::int64_t{0}), 5053);
    for (const std::int64_t mine : tokens) EXPECT_LE(std::abs(mine - 5053 / ranks), 128) << ranks;
  }
}

TEST_F(Evaluator, ARequestToStopEndsItOnAllRanks) {
  for (const int asked : {0, 2}) {
    std::vector<int> passes(3, 0);
    test::run_ranks(3, [&](Communicator& comm) {
      int& mine = passes[idx(comm.rank())];
      EvaluationHooks hooks;
      hooks.observer = [&](std::span<const ScoredWindow>) { ++mine; };
      hooks.stop = [&] { return comm.rank() == asked && mine == 2; };
      EXPECT_THROW(Scorer(config_, 64).run(comm, held_out_, hooks), EvaluationStopped);
    });
    EXPECT_EQ(passes, std::vector<int>(3, 2));
  }
}

TEST_F(Evaluator, RanksThatReadOtherTextSaySo) {
  test::run_ranks(2, [&](Communicator& comm) {
    std::vector<HeldOut> mine = held_out_;
    if (comm.rank() == 1) mine[0].documents.pop_back();
    try {
      Scorer(config_, 64).run(comm, mine);
      ADD_FAILURE() << "no error";
    } catch (const IoError& e) {
      EXPECT_NE(e.message().find("the ranks have read different held-out documents"), std::string::npos) << e.message();
    }
  });
}

TEST_F(Evaluator, NoTextIsNoLoss) {
  held_out_.resize(3);
  held_out_[1].documents.clear(), held_out_[1].bytes = 0;
  const Evaluation e = Scorer(config_, 64).run(*make_self_communicator(), held_out_);
  EXPECT_TRUE(std::isnan(e.domains[1].loss()));
  EXPECT_DOUBLE_EQ(e.mean_loss(), (e.domains[0].loss() + e.domains[2].loss()) / 2);
  EXPECT_DOUBLE_EQ(e.mean_bits_per_byte(), (e.domains[0].bits_per_byte() + e.domains[2].bits_per_byte()) / 2);
  EXPECT_EQ(e.without_text(), std::vector<std::string>{held_out_[1].label});
  EXPECT_TRUE(e.to_json().at("domains").at(held_out_[1].label).at("loss").is_null());
  EXPECT_NE(e.to_text().find("0          0           -          -\n"), std::string::npos) << e.to_text();
  EXPECT_NE(e.to_text().find("not in the mean, for want of held-out tokens: " + held_out_[1].label), std::string::npos);
  for (HeldOut& h : held_out_) h.documents.clear(), h.bytes = 0;
  const Evaluation none = Scorer(config_, 64).run(*make_self_communicator(), held_out_);
  EXPECT_TRUE(none.to_json().at("mean").at("loss").is_null());
  EXPECT_EQ(none.to_text().find("nan"), std::string::npos) << none.to_text();
}

TEST_F(Evaluator, ReportsTheMeanOverDomains) {
  Scorer scorer(config_, 64);
  const Evaluation e = scorer.run(*make_self_communicator(), held_out_);
  ASSERT_EQ(e.domains.size(), 4U);
  double loss = 0, bits = 0;
  for (std::size_t d = 0; d < e.domains.size(); ++d) {
    const DomainLoss& domain = e.domains[d];
    EXPECT_EQ(domain.documents, 10);
    std::int64_t bytes = 0;
    for (const auto& document : held_out_[d].documents) bytes += static_cast<std::int64_t>(document.size());
    EXPECT_EQ(domain.bytes, bytes);
    EXPECT_EQ(domain.tokens, bytes + domain.documents);
    EXPECT_GT(domain.loss(), 1.0);
    EXPECT_DOUBLE_EQ(domain.loss(), domain.nats / static_cast<double>(domain.tokens));
    EXPECT_DOUBLE_EQ(domain.bits_per_byte(), domain.nats / std::numbers::ln2 / static_cast<double>(domain.bytes));
    loss += domain.loss() / 4, bits += domain.bits_per_byte() / 4;
  }
  EXPECT_NEAR(e.mean_loss(), loss, 1e-12);
  const auto json = e.to_json();
  EXPECT_EQ(json.at("step"), 17);
  EXPECT_EQ(json.at("experts_kept"), 9);
  EXPECT_NEAR(json.at("mean").at("loss").get<double>(), loss, 1e-12);
  EXPECT_NEAR(json.at("mean").at("bits_per_byte").get<double>(), bits, 1e-12);
  EXPECT_EQ(json.at("domains").at("mozilla").at("tokens"), e.domains[1].tokens);
}

TEST_F(Evaluator, BitsAByteAreUnknownWithoutTheText) {
  held_out_.resize(2);
  held_out_[1].bytes = 0;  // token ids whose text is not known
  const Evaluation e = Scorer(config_, 64).run(*make_self_communicator(), held_out_);
  const auto json = e.to_json();
  EXPECT_GT(json.at("domains").at(held_out_[0].label).at("bits_per_byte").get<double>(), 1.0);
  EXPECT_TRUE(json.at("domains").at(held_out_[1].label).at("bits_per_byte").is_null());
  EXPECT_TRUE(json.at("mean").at("bits_per_byte").is_null());
  EXPECT_GT(json.at("mean").at("loss").get<double>(), 1.0);
  EXPECT_NE(e.to_text().find("         -\n"), std::string::npos) << e.to_text();
  EXPECT_EQ(e.to_text().find("nan"), std::string::npos) << e.to_text();
}

// A pool in evaluation changes the loss; one of all experts does not.
TEST_F(Evaluator, UsesThePoolOfEvaluation) {
  const auto comm = make_self_communicator();
  const double free = Scorer(config_, 64).run(*comm, held_out_).mean_loss();
  config_.eval_pool = 8;
  EXPECT_EQ(Scorer(config_, 64).run(*comm, held_out_).mean_loss(), free);
  config_.eval_pool = 2;
  EXPECT_NE(Scorer(config_, 64).run(*comm, held_out_).mean_loss(), free);
}

}  // namespace
}  // namespace emox
