// A checkpoint in the published layout, run as published: no pools, attention over the whole row. On one rank, and with
// its experts sharded over ranks.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <stdexcept>

#include "launch/run/sharding.h"
#include "model/transformer/language_model.h"
#include "runtime/core/idx.h"
#include "runtime/ops/matmul.h"
#include "tests/support/golden.h"
#include "tests/support/golden_model.h"
#include "tests/support/golden_ranks.h"
#include "tests/support/reference.h"

namespace emox::test {
namespace {

// What every rank reads.
struct Inputs {
  explicit Inputs(GoldenCase& c)
      : checkpoint(c.path_of("checkpoint")),
        config(published_config(checkpoint / "config.json")),
        ids(c.tokens("input_ids.npy")),
        length(c.shape("input_ids.npy").back()) {
    if (!c.has_file("greedy.npy")) return;
    while (c.has_file(fmt::format("prompt_{}.npy", prompts.size())))
      prompts.push_back(c.tokens(fmt::format("prompt_{}.npy", prompts.size())));
    if (prompts.empty()) throw std::runtime_error("greedy.npy without a prompt");
    greedy = c.integers("greedy.npy");
    continuation = static_cast<std::int64_t>(greedy.size() / prompts.size());
  }

  std::filesystem::path checkpoint;
  ModelConfig config;
  std::vector<std::int32_t> ids;  ///< rows of `length`
  std::int64_t length;
  std::vector<std::vector<std::int32_t>> prompts;
  std::vector<std::int64_t> greedy;  ///< [prompts, continuation]
  std::int64_t continuation = 0;
};

// What the ranks leave, in the order of the case's rows.
struct Results {
  Results(const Inputs& in, int ranks)
      : logits(1, ranks),
        router_logits(in.config.layers, ranks),
        picks(in.config.layers, ranks),
        greedy(in.prompts.size()) {}
  ByRank<double> logits, router_logits;
  ByRank<std::int64_t> picks;
  std::vector<std::vector<std::int64_t>> greedy;  ///< by prompt
};

class Inference {
 public:
  Inference(const Inputs& in, Context& ctx, Communicator& comm, const ParallelConfig& parallel)
      : in_(in),
        ctx_(ctx),
        comm_(comm),
        sharding_(comm, in.config, parallel),
        model_(in.config, ctx, false, sharding_.experts()) {
    EXPECT_EQ(model_.experts()->exchanges(), parallel.expert_parallel > 1);
    load_golden_weights(ctx, model_.parameters(), in.checkpoint / "model.safetensors");
  }

  void run(Results& into) {
    const auto rows = static_cast<std::int64_t>(in_.ids.size()) / in_.length;
    const auto mine = part_of(rows, comm_).of(in_.ids, in_.length);
    forward({mine.begin(), mine.end()}, in_.length);
    into.logits.put(0, comm_.rank(), ref::doubles(logits_));
    note_routers(into);
    // Rank after rank takes a prompt; in the last round some ranks may have none.
    const std::size_t ranks = idx(comm_.size());
    for (std::size_t first = 0; first < in_.prompts.size(); first += ranks)
      continue_greedily(first + idx(comm_.rank()), into);
  }

 private:
  // Rows of `length` tokens each, maybe none: activations, and logits [T,V].
  void forward(const std::vector<std::int32_t>& ids, std::int64_t length) {
    const auto tokens = static_cast<std::int64_t>(ids.size());
    const auto reserve = [&] {
      activations_ = model_.reserve(arena_, tokens);
      model_.reserve_scratch(arena_, tokens);
    };
    arena_ = Arena::measuring(ctx_.device);
    reserve();
    arena_ = Arena(ctx_.device, arena_.peak());
    reserve();
    constexpr std::int32_t kNoToken = -1;  // an EOS is a token as any other here
    const MicroBatch host = make_micro_batch(in_.config, kNoToken, golden_sequences(ids, length));
    DeviceBatch batch(ctx_.device, tokens);
    batch.upload(ctx_, host);
    model_.forward(ctx_, activations_, batch, nullptr);
    logits_ = Tensor(ctx_.device, DType::F32, {tokens, in_.config.vocab_size});
    model_.logits(ctx_, logits_, activations_, batch);
  }

  void note_routers(Results& into) {
    std::int64_t layer = 0;
    for (const NamedParameter& p : model_.parameters().named()) {
      if (p.name.find(".mlp.gate.weight") == std::string::npos) continue;
      const Activations::Block& block = activations_.blocks[idx(layer)];
      const Tensor logits(ctx_.device, DType::F32, {block.normed.dim(0), in_.config.num_experts});
      ops::matmul_nt(ctx_, logits, block.normed, model_.parameters().weight(p.slot));
      into.router_logits.put(layer, comm_.rank(), ref::doubles(logits));
      into.picks.put(layer++, comm_.rank(),
                     with_shared_ids(block.moe.route.ids, in_.config.routed_experts(), in_.config.shared_experts));
    }
  }

  // At every position of prompt + recorded continuation the next token is the most probable one.
  void continue_greedily(std::size_t prompt, Results& into) {
    if (prompt >= in_.prompts.size()) return forward({}, 1);
    std::vector<std::int32_t> ids = in_.prompts[prompt];
    const auto begin = static_cast<std::int64_t>(ids.size());
    const auto recorded = in_.greedy.begin() + static_cast<std::int64_t>(prompt) * in_.continuation;
    for (std::int64_t j = 0; j + 1 < in_.continuation; ++j) ids.push_back(static_cast<std::int32_t>(recorded[j]));
    forward(ids, static_cast<std::int64_t>(ids.size()));
    for (std::int64_t j = 0; j < in_.continuation; ++j) into.greedy[prompt].push_back(best_token(begin - 1 + j));
  }

  std::int64_t best_token(std::int64_t position) const {
    const std::vector<double> row = ref::doubles(logits_.view()[position]);
    return std::max_element(row.begin(), row.end()) - row.begin();
  }

  const Inputs& in_;
  Context& ctx_;
  Communicator& comm_;
  Sharding sharding_;
  LanguageModel model_;
  Tensor logits_;
  Arena arena_{Device{}, 0};
  Activations activations_;
};

void run_checkpoint(GoldenCase& c) {
  const Inputs in(c);
  for (const GoldenMesh& mesh : golden_meshes(in.config)) {
    SCOPED_TRACE(mesh.text());
    Results r(in, mesh.ranks);
    run_on_mesh(mesh, [&](Context& ctx, Communicator& comm) { Inference(in, ctx, comm, mesh.parallel()).run(r); });
    c.expect_close("logits.npy", r.logits.all());
    c.expect_close("router_logits.npy", r.router_logits.all());
    c.expect_exact("topk_ids.npy", r.picks.all());
    std::vector<std::int64_t> greedy;
    for (const auto& tokens : r.greedy) greedy.insert(greedy.end(), tokens.begin(), tokens.end());
    if (c.has_file("greedy.npy")) c.expect_exact("greedy.npy", greedy);
  }
}

TEST(Golden, HfTiny) { for_each_golden_case(EMOX_SOURCE_DIR, "hf_tiny", run_checkpoint); }

}  // namespace
}  // namespace emox::test
