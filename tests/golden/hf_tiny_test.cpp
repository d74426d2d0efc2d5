// A checkpoint in the published layout, run as published: no pools, attention over the whole row.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "model/transformer/language_model.h"
#include "runtime/ops/matmul.h"
#include "tests/support/golden.h"
#include "tests/support/reference.h"

namespace emox::test {
namespace {

ModelConfig published_config(const std::filesystem::path& file) {
  std::ifstream in(file);
  const nlohmann::json json = nlohmann::json::parse(in);
  ModelConfig m;
  m.d_model = json.at("hidden_size");
  m.layers = json.at("num_hidden_layers");
  m.heads = json.at("num_attention_heads");
  m.vocab_size = json.at("vocab_size");
  m.sequence_length = json.at("max_position_embeddings");
  m.norm_eps = json.at("rms_norm_eps");
  m.rope_theta = json.at("rope_theta");
  m.intra_document_attention = false;
  m.num_experts = json.at("num_experts");
  m.top_k = json.at("num_experts_per_tok");
  m.shared_experts = json.at("num_shared_experts");
  m.expert_ff = json.at("intermediate_size");
  m.pool = PoolMode::Off;
  return m;
}

class Inference {
 public:
  Inference(const std::filesystem::path& checkpoint)
      : config(published_config(checkpoint / "config.json")), ctx(golden_context()), model(config, ctx, false) {
    load_golden_weights(ctx, model.parameters(), checkpoint / "model.safetensors");
  }

  // Rows of `length` tokens each: activations, and logits [T,V].
  const Activations& run(const std::vector<std::int32_t>& ids, std::int64_t length) {
    const auto tokens = static_cast<std::int64_t>(ids.size());
    arena_ = Arena::measuring();
    (void)model.reserve(arena_, tokens);
    model.reserve_scratch(arena_, tokens, ctx.threads);
    arena_ = Arena(ctx.device, arena_.peak());
    activations_ = model.reserve(arena_, tokens);
    model.reserve_scratch(arena_, tokens, ctx.threads);
    constexpr std::int32_t kNoToken = -1;  // an EOS is a token as any other here
    const MicroBatch host = make_micro_batch(config, kNoToken, golden_sequences(ids, length));
    DeviceBatch batch(ctx.device, tokens);
    batch.upload(ctx, host);
    model.forward(ctx, activations_, batch, host.documents, {}, nullptr);
    logits = Tensor(ctx.device, DType::F32, {tokens, config.vocab_size});
    model.logits(ctx, logits, activations_, batch);
    return activations_;
  }

  std::int32_t best_token(std::int64_t position) const {
    const std::vector<double> row = ref::doubles(logits.view()[position]);
    return static_cast<std::int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
  }

  ModelConfig config;
  Context ctx;
  LanguageModel model;
  Tensor logits;

 private:
  Arena arena_{Device{}, 0};
  Activations activations_;
};

void expect_routers(GoldenCase& c, Inference& inference, const Activations& a) {
  std::vector<double> router_logits;
  std::vector<std::int64_t> ids;
  const ModelConfig& config = inference.config;
  std::size_t layer = 0;
  for (const NamedParameter& p : inference.model.parameters().named()) {
    if (p.name.find(".mlp.gate.weight") == std::string::npos) continue;
    const Activations::Block& block = a.blocks[layer++];
    const Tensor logits({}, DType::F32, {block.normed.dim(0), config.num_experts});
    ops::matmul_nt(inference.ctx, logits, block.normed, inference.model.parameters().weight(p.slot));
    const std::vector<double> l = ref::doubles(logits);
    router_logits.insert(router_logits.end(), l.begin(), l.end());
    const std::vector<std::int64_t> i =
        with_shared_ids(block.moe.route.ids, config.routed_experts(), config.shared_experts);
    ids.insert(ids.end(), i.begin(), i.end());
  }
  c.expect_close("router_logits.npy", router_logits);
  c.expect_exact("topk_ids.npy", ids);
}

// Greedy continuations: at every position of prompt + recorded continuation the next token is the most probable one.
void expect_greedy(GoldenCase& c, Inference& inference) {
  const std::vector<std::int64_t> want = c.integers("greedy.npy");
  std::int64_t prompts = 0;
  while (c.has_file("prompt_" + std::to_string(prompts) + ".npy")) ++prompts;
  ASSERT_GT(prompts, 0);
  const std::int64_t length = static_cast<std::int64_t>(want.size()) / prompts;
  std::vector<std::int64_t> got;
  for (std::int64_t i = 0; i < prompts; ++i) {
    std::vector<std::int32_t> ids = c.tokens("prompt_" + std::to_string(i) + ".npy");
    const auto prompt = static_cast<std::int64_t>(ids.size());
    for (std::int64_t j = 0; j + 1 < length; ++j)
      ids.push_back(static_cast<std::int32_t>(want[static_cast<std::size_t>(i * length + j)]));
    inference.run(ids, static_cast<std::int64_t>(ids.size()));
    for (std::int64_t j = 0; j < length; ++j) got.push_back(inference.best_token(prompt - 1 + j));
  }
  c.expect_exact("greedy.npy", got);
}

void run_checkpoint(GoldenCase& c) {
  Inference inference(c.path_of("checkpoint"));
  const std::vector<std::int32_t> ids = c.tokens("input_ids.npy");
  const Activations& a = inference.run(ids, c.shape("input_ids.npy").back());
  c.expect_close("logits.npy", ref::doubles(inference.logits));
  expect_routers(c, inference, a);
  if (c.has_file("greedy.npy")) expect_greedy(c, inference);
}

TEST(Golden, HfTiny) { for_each_golden_case(EMOX_SOURCE_DIR, "hf_tiny", run_checkpoint); }

}  // namespace
}  // namespace emox::test
