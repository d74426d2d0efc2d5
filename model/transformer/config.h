// What a model is: EMO, the matched standard MoE, a fewer-expert MoE or dense, by one struct (design section 5).
#pragma once

#include <cstdint>
#include <span>

namespace emox {

enum class PoolMode : std::uint8_t { Off, Fixed, Uniform, Label };
enum class EosRule : std::uint8_t { Owner, Reference };
enum class BalanceMode : std::uint8_t { Aux, Bias, None };
enum class BalanceScope : std::uint8_t { Step, MicroBatch, Local };

inline constexpr const char* kPoolModeNames[] = {"off", "fixed", "uniform", "label"};
inline constexpr const char* kEosRuleNames[] = {"owner", "reference"};
inline constexpr const char* kBalanceModeNames[] = {"aux", "bias", "none"};
inline constexpr const char* kBalanceScopeNames[] = {"step", "micro_batch", "local"};

/// Sections [model] and [moe] of a recipe. Every key appears once, in visit(): parsing, help, printing and checking
/// all walk that list.
struct ModelConfig {
  std::int64_t d_model = 256;
  std::int64_t layers = 6;
  std::int64_t heads = 4;
  std::int64_t vocab_size = 257;
  std::int64_t sequence_length = 512;
  double norm_eps = 1e-6;
  double rope_theta = 500000.0;
  bool intra_document_attention = true;
  std::int64_t dense_ff = 0;

  std::int64_t num_experts = 32;  ///< shared included; 0: a dense feed-forward layer instead
  std::int64_t top_k = 4;         ///< shared included
  std::int64_t shared_experts = 1;
  std::int64_t expert_ff = 256;
  PoolMode pool = PoolMode::Uniform;
  std::int64_t pool_size = 8;
  std::int64_t pool_min = 4;
  std::int64_t pool_max = 32;
  double pool_free_share = 0;
  double pool_free_tokens = 0;
  std::int64_t pool_from_step = 0;
  std::int64_t pool_until_step = 0;
  std::int64_t pool_from_layer = 0;
  std::int64_t eval_pool = 0;
  EosRule eos = EosRule::Owner;
  BalanceMode balance = BalanceMode::Aux;
  BalanceScope balance_scope = BalanceScope::Step;
  double balance_weight = 0.1;
  double router_z_weight = 0.001;
  double bias_rate = 0.001;
  bool normalize_gates = false;

  bool is_moe() const { return num_experts > 0; }
  std::int64_t routed_experts() const { return num_experts - shared_experts; }
  std::int64_t routed_top_k() const { return top_k - shared_experts; }
  std::int64_t head_dim() const { return d_model / heads; }

  template <typename V>
  void visit_model(V&& v) {
    v.integer("d_model", d_model, 2, 1 << 20, "width of the residual stream; a multiple of 2 x heads");
    v.integer("layers", layers, 1, 4096, "transformer blocks");
    v.integer("heads", heads, 1, 4096, "attention heads; divides d_model, d_model / heads even");
    v.integer("vocab_size", vocab_size, 2, 1 << 24, "token ids 0 .. vocab_size-1");
    v.integer("sequence_length", sequence_length, 2, 1 << 24, "tokens of one sequence");
    v.real("norm_eps", norm_eps, 1e-12, 1e-2, "added to the mean square in RMSNorm");
    v.real("rope_theta", rope_theta, 1.0, 1e12, "base of the rotary angles");
    v.flag("intra_document_attention", intra_document_attention, "tokens attend inside their own document only");
    v.integer("dense_ff", dense_ff, 0, 1 << 24,
              "hidden width of the feed-forward layer when moe.num_experts = 0; 0 = moe.top_k x moe.expert_ff");
  }
  template <typename V>
  void visit_moe(V&& v) {
    v.integer("num_experts", num_experts, 0, 1 << 16, "experts a layer, shared included; 0 = dense");
    v.integer("top_k", top_k, 1, 1 << 16, "experts a token uses, shared included");
    v.integer("shared_experts", shared_experts, 0, 1 << 16, "experts that every token uses");
    v.integer("expert_ff", expert_ff, 1, 1 << 24, "hidden width of one expert");
    v.choice("pool", pool, kPoolModeNames, "document pools: off (standard MoE), fixed, uniform (EMO) or by data label");
    v.integer("pool_size", pool_size, 1, 1 << 16, "routed experts in a pool when pool = fixed");
    v.integer("pool_min", pool_min, 1, 1 << 16, "smallest pool when pool = uniform (routed experts)");
    v.integer("pool_max", pool_max, 1, 1 << 16,
              "largest pool when pool = uniform; the number of routed experts or more = no limit");
    v.real("pool_free_share", pool_free_share, 0.0, 1.0, "share of the documents that no layer limits to a pool");
    v.real("pool_free_tokens", pool_free_tokens, 0.0, 1.0,
           "share of the tokens, drawn for each layer, that training does not limit to their document's pool");
    v.integer("pool_from_step", pool_from_step, 0, std::int64_t{1} << 60, "no pools before this step");
    v.integer("pool_until_step", pool_until_step, 0, std::int64_t{1} << 60,
              "no pools from this step on; 0 = to the end");
    v.integer("pool_from_layer", pool_from_layer, 0, 4096, "no pools in the layers below this one");
    v.integer("eval_pool", eval_pool, 0, 1 << 16, "pool size in evaluation; 0 = no pool, as published");
    v.choice("eos", eos, kEosRuleNames, "whose pool an EOS token joins: its own document, or the next one (reference)");
    v.choice("balance", balance, kBalanceModeNames,
             "load balancing: auxiliary loss, selection bias (no loss), or none");
    v.choice("balance_scope", balance_scope, kBalanceScopeNames, "tokens whose expert counts the balance loss sees");
    v.real("balance_weight", balance_weight, 0.0, 1e3, "weight of the load-balance loss, averaged over layers");
    v.real("router_z_weight", router_z_weight, 0.0, 1e3, "weight of the router z-loss, averaged over layers");
    v.real("bias_rate", bias_rate, 0.0, 1.0, "step of the selection bias when balance = bias");
    v.flag("normalize_gates", normalize_gates, "divide the routed gates of a token by their sum");
  }

  /// Throws UsageError naming the key, its value and the nearest valid ones when the numbers do not fit together.
  void validate() const;
};

}  // namespace emox
