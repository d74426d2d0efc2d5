#include "tests/support/golden_model.h"

#include <fstream>
#include <nlohmann/json.hpp>

namespace emox::test {

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

}  // namespace emox::test
