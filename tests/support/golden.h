// Golden cases: folders with the recorded inputs and results of one computation (tests/golden/README.md). A test hands
// in what it computed; tolerances come from the case alone.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "model/moe/pools.h"
#include "model/transformer/batch.h"
#include "model/transformer/config.h"
#include "model/transformer/parameter_store.h"
#include "runtime/core/context.h"
#include "runtime/core/idx.h"
#include "runtime/core/tensor.h"

namespace emox::test {

/// Named tensors in double, as parameters or gradients are compared.
struct GoldenTensor {
  std::vector<std::int64_t> shape;
  std::vector<double> values;
};
using GoldenTensors = std::map<std::string, GoldenTensor>;

/// One case. What cannot be read (a file missing, of another shape than case.json says, ...) throws; what does not
/// match fails the running test.
class GoldenCase {
 public:
  /// `name`: as reports show it.
  GoldenCase(std::filesystem::path folder, std::string name);

  const std::string& name() const { return name_; }
  const nlohmann::json& json() const { return json_; }

  /// Scalars of the case; has(): there and not null.
  bool has(const std::string& key) const;
  double real(const std::string& key) const { return scalar(key).get<double>(); }
  std::int64_t integer(const std::string& key) const { return scalar(key).get<std::int64_t>(); }
  bool flag(const std::string& key) const { return scalar(key).get<bool>(); }
  std::string text(const std::string& key) const { return scalar(key).get<std::string>(); }

  bool has_file(const std::string& file) const { return files_.count(file) != 0; }
  std::vector<std::int64_t> shape(const std::string& file) const { return entry(file).at("shape"); }
  std::filesystem::path path_of(const std::string& relative) const { return folder_ / relative; }
  /// Elements of an .npy file; reading counts as using it.
  std::vector<double> reals(const std::string& file);
  std::vector<float> floats(const std::string& file);
  std::vector<std::int64_t> integers(const std::string& file);
  std::vector<std::int32_t> tokens(const std::string& file);

  void expect_exact(const std::string& file, const std::vector<std::int64_t>& got);
  void expect_close(const std::string& file, const std::vector<double>& got);
  /// The same names, shapes and values as the safetensors file holds.
  void expect_tensors(const std::string& file, const GoldenTensors& got);
  /// A scalar of the case that has a tolerance.
  void expect_scalar(const std::string& key, double got);

  /// A number that case.json holds in a form of its own.
  void expect_number(const std::string& what, double want, double got, double tolerance) {
    compare(what, {want}, {got}, tolerance, what);
  }

  /// Prints how much of each tolerance was used, and fails if a result of the case was never looked at.
  void finish();

 private:
  const nlohmann::json& scalar(const std::string& key) const;
  const nlohmann::json& entry(const std::string& file) const;
  const nlohmann::json& use(const std::string& file);
  void compare(const std::string& what, const std::vector<double>& want, const std::vector<double>& got,
               double tolerance, const std::string& report);

  std::filesystem::path folder_;
  std::string name_;
  nlohmann::json json_;
  std::map<std::string, nlohmann::json> files_;
  std::set<std::string> used_, used_scalars_;
  std::map<std::string, double> fractions_;  ///< of the tolerance, by file or scalar
};

/// Where the cases lie: EMOX_GOLDEN_DIR, or tests/golden of the source tree.
std::filesystem::path golden_root(const std::filesystem::path& source_dir);

/// Runs the body on all cases of a kind: a folder of the root with a case.json of its own, or else its sub-folders. An
/// exception fails that case, the others still run. No folder or no case: a failure.
void for_each_golden_case(const std::filesystem::path& source_dir, const std::string& kind,
                          const std::function<void(GoldenCase&)>& body);

/// On the device where the program has one (device.h). As many threads as OMP_NUM_THREADS says, else one.
Context golden_context();

/// The model a case describes: of `model` and `trajectory` cases.
ModelConfig golden_model_config(const GoldenCase& c);
/// The EOS rule of the pools: `eos_convention` or `pool_eos_convention`; the reference's where the case names none.
EosRule golden_eos_rule(const GoldenCase& c);

/// Pool sizes of a recorded run.
class RecordedPools final : public PoolSizes {
 public:
  /// The sizes of one document in the layers, from layer 0.
  void record(std::int64_t step, const PoolDocument& document, std::vector<std::int64_t> sizes);
  std::int64_t size(std::int64_t step, std::int64_t layer, const PoolDocument& document) const override;
  /// Tokens of the sequence that no pool limits, in all steps and layers: 1 for each that is free.
  void record_free(std::int64_t sequence, std::vector<std::int64_t> flags) { free_[sequence] = std::move(flags); }
  bool frees_tokens() const override { return !free_.empty(); }
  bool is_free(std::int64_t, std::int64_t, const PoolDocument& document, std::int64_t position) const override {
    return free_.at(document.sequence).at(idx(position)) != 0;
  }

 private:
  std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t>, std::vector<std::int64_t>> sizes_;
  std::map<std::int64_t, std::vector<std::int64_t>> free_;
};

/// Sequences of `length` tokens each; they look into `tokens`. The first has index `first`.
std::vector<SequenceInput> golden_sequences(std::span<const std::int32_t> tokens, std::int64_t length,
                                            std::int64_t first = 0);
/// Pool segments as cases list them: row, start, end.
std::vector<std::int64_t> golden_segments(const MicroBatch& batch, std::int64_t length);
/// Routed picks [T,k_r] with the shared slots behind them, as cases list them: [T,k]; a shared expert's gate is 1.
std::vector<std::int64_t> with_shared_ids(const TensorView& ids, std::int64_t routed_experts, std::int64_t shared);
std::vector<double> with_shared_gates(const TensorView& gates, std::int64_t shared);

/// LB of one layer from its routing sums over `tokens` tokens, and weight * dLB/dp.
struct GoldenBalance {
  double loss = 0;
  std::vector<float> gradient;
};
GoldenBalance golden_balance(const TensorView& counts, const TensorView& p_sum, std::int64_t routed_top_k,
                             double tokens, double divisor, double weight);

/// The elements of an i32, i64 or u8 view.
std::vector<std::int64_t> integers_of(const TensorView& t);
/// Reads all parameters by their names; the file must hold exactly these.
void load_golden_weights(Context& ctx, const ParameterStore& store, const std::filesystem::path& file);
GoldenTensors golden_weights(const ParameterStore& store);
GoldenTensors golden_gradients(const ParameterStore& store);

}  // namespace emox::test
