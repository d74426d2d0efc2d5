// The recipes of the released models hold the published values: every key of [model], [moe] and [train], typed from the
// specification (sections 1.1, 1.2, 3.3 and 4), and not one more. What the published scripts also do and emox does not
// (the repetition filter, the order of the files) is said in launch/recipes/README.md.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "launch/config/fields.h"
#include "launch/config/recipe_file.h"

namespace emox {
namespace {

using Values = std::map<std::string, std::string>;

std::string recipe_path(const std::string& name) {
  return std::string(EMOX_SOURCE_DIR) + "/launch/recipes/" + name + ".ini";
}

// 1.1 and 4: what all of them share.
const Values kCommon = {{"model.d_model", "2048"},
                        {"model.layers", "16"},
                        {"model.heads", "16"},           // head_dim 128
                        {"model.vocab_size", "100352"},  // 100278 ids, padded to a multiple of 128
                        {"model.sequence_length", "4096"},
                        {"model.norm_eps", "1e-6"},
                        {"model.rope_theta", "500000"},
                        {"train.tokens", "0"},
                        {"train.batch_sequences", "1024"},  // 4194304 tokens
                        {"train.micro_batch_sequences", "4"},
                        {"train.learning_rate", "4e-3"},
                        {"train.schedule", "cosine"},
                        {"train.warmup_steps", "2000"},
                        {"train.min_lr_ratio", "0.1"},
                        {"train.anneal_from_step", "0"},
                        {"train.weight_decay", "0.1"},
                        {"train.beta1", "0.9"},
                        {"train.beta2", "0.95"},
                        {"train.eps", "1e-8"},
                        {"train.clip_norm", "1.0"},
                        {"train.skip_spikes", "0"},
                        {"train.lm_z_weight", "1e-5"},
                        {"data.tokenizer", "dolma2"}};

// 1.2, 2 and 3: the mixture of experts, and EMO's pools. The weights are divided by the layers, as emox does.
const Values kExperts = {{"moe.top_k", "8"},
                         {"moe.shared_experts", "1"},
                         {"moe.expert_ff", "1024"},
                         {"moe.eval_pool", "0"},
                         {"moe.eos", "reference"},
                         {"moe.balance", "aux"},
                         {"moe.balance_scope", "micro_batch"},
                         {"moe.balance_weight", "0.1"},
                         {"moe.router_z_weight", "0.001"},
                         {"moe.normalize_gates", "false"}};
const Values kPools = {
    {"moe.pool", "uniform"},      {"moe.pool_min", "8"},         {"moe.pool_max", "128"},
    {"moe.pool_free_share", "0"}, {"moe.pool_free_tokens", "0"}, {"moe.pool_from_step", "0"},
    {"moe.pool_until_step", "0"}, {"moe.pool_from_layer", "0"},  {"model.intra_document_attention", "true"}};
const Values kNoPools = {{"moe.pool", "off"}, {"model.intra_document_attention", "false"}};
// 4: 50e9 tokens from the rate at which the cosine ended, linearly to 0.
const Values kAnneal = {{"train.steps", "250339"},       {"train.anneal_from_step", "238419"},
                        {"train.learning_rate", "4e-4"}, {"train.schedule", "linear"},
                        {"train.warmup_steps", "0"},     {"train.min_lr_ratio", "0"}};

Values together(std::initializer_list<Values> parts) {
  Values all;
  for (const Values& part : parts)
    for (const auto& [key, value] : part) all[key] = value;  // later ones count
  return all;
}

struct Released {
  const char* name;
  Values values;
};

std::vector<Released> released() {
  const Values large = {{"moe.num_experts", "128"}, {"train.steps", "238419"}};
  return {
      {"emo-1b14b", together({kCommon, kExperts, kPools, large})},
      {"stdmoe-1b14b", together({kCommon, kExperts, kNoPools, large})},
      {"emo-1b14b-anneal", together({kCommon, kExperts, kPools, large, kAnneal})},
      {"stdmoe-1b14b-anneal", together({kCommon, kExperts, kNoPools, large, kAnneal})},
      {"stdmoe-1b14b-emo-anneal", together({kCommon, kExperts, kPools, large, kAnneal})},
      {"stdmoe-1b4b", together({kCommon, kExperts, kNoPools, {{"moe.num_experts", "32"}, {"train.steps", "30995"}}})},
      {"dense-1b", together({kCommon,
                             {{"moe.num_experts", "0"},
                              {"model.dense_ff", "8192"},
                              {"model.intra_document_attention", "false"},
                              {"train.steps", "30995"},
                              {"train.weight_decay", "0.033"},
                              {"train.skip_spikes", "6"},  // SkipStepAdamW
                              {"train.skip_window", "128"}}})}};
}

// Keys that have no influence on what such a model learns.
bool without_effect(const std::string& key, const Recipe& r) {
  static const std::set<std::string> kOfTheMachine = {"train.threads", "train.micro_batch_memory",
                                                      "train.precision"};  // auto: bf16 on a GPU, as published
  if (kOfTheMachine.count(key) > 0) return true;
  if (key == "train.decay_steps") return r.train.schedule != ScheduleKind::Wsd;
  if (key == "train.skip_window") return r.train.skip_spikes == 0;
  if (key == "model.dense_ff") return r.model.is_moe();
  if (key == "moe.bias_rate") return r.model.balance != BalanceMode::Bias;
  if (key == "moe.pool_size") return r.model.pool != PoolMode::Fixed;
  if (key == "moe.num_experts") return false;
  if (key.rfind("moe.", 0) == 0 && !r.model.is_moe()) return true;
  return key.rfind("moe.pool_", 0) == 0 && r.model.pool == PoolMode::Off;
}

TEST(ReleasedRecipes, HoldEveryPublishedValue) {
  for (const auto& [name, values] : released()) {
    SCOPED_TRACE(name);
    Recipe recipe = load_recipe(recipe_path(name)), want;
    const std::vector<Field> fields = fields_of(recipe), wanted = fields_of(want);
    std::size_t compared = 0;
    for (std::size_t i = 0; i < fields.size(); ++i) {
      const std::string key = fields[i].name();
      const auto value = values.find(key);
      if (value == values.end()) {
        const bool of_the_model =
            fields[i].section() == "model" || fields[i].section() == "moe" || fields[i].section() == "train";
        EXPECT_TRUE(!of_the_model || without_effect(key, recipe))
            << key << " = " << fields[i].values().front() << ": say what the published scripts have there";
        continue;
      }
      wanted[i].set(value->second, "test");  // 1e-6 and 0.000001 are the same
      EXPECT_EQ(fields[i].values(), wanted[i].values()) << key;
      ++compared;
    }
    EXPECT_EQ(compared, values.size());  // no key of the table is misspelt
    EXPECT_EQ(recipe.tokens_per_step(), 4194304);
    EXPECT_EQ(recipe.data.eos_id(), 100257);
  }
}

// The models of 130B tokens are the same recipes with fewer steps, as their headers say.
TEST(ReleasedRecipes, StepsAreTheTokens) {
  for (const auto& [steps, tokens] :
       {std::pair<std::int64_t, std::int64_t>{238419, 1'000'000'000'000}, {30995, 130'000'000'000}}) {
    Recipe r = load_recipe(recipe_path("emo-1b14b"), {"--train.steps=0"});
    r.train.tokens = tokens;
    EXPECT_EQ(r.total_steps(), steps);
  }
  EXPECT_EQ(250339 - 238419, 50'000'000'000 / 4194304);  // the anneal rounds down
}

}  // namespace
}  // namespace emox
