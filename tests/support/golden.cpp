#include "tests/support/golden.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>

#include "model/interchange/safetensors.h"
#include "runtime/core/idx.h"
#include "runtime/ops/basic.h"
#include "tests/support/npy_file.h"
#include "tests/support/reference.h"
#include "tests/support/support.h"

namespace emox::test {
namespace {

// The array of a listed file.
Npy read_listed(const std::filesystem::path& file, const nlohmann::json& entry) {
  Npy npy = read_npy(file);
  if (npy.shape != entry.at("shape").get<std::vector<std::int64_t>>())
    fail_file(file, "has another shape than case.json says");
  if (type_name(npy.type) != entry.at("dtype").get<std::string>())
    fail_file(file, "has another element type than case.json says");
  return npy;
}

// Where element i lies, for messages.
std::string position(std::size_t i, const std::vector<std::int64_t>& shape) {
  std::string text;
  for (std::size_t d = shape.size(); d-- > 0;) {
    const auto extent = idx(shape[d]);
    text = fmt::format("{}{}{}", i % extent, text.empty() ? "" : ", ", text);
    i /= extent;
  }
  return "[" + text + "]";
}

bool holds_case(const std::filesystem::path& folder) { return std::filesystem::is_regular_file(folder / "case.json"); }

GoldenTensors tensors_of(const ParameterStore& store, bool gradients) {
  GoldenTensors all;
  for (const NamedParameter& p : store.named()) {
    GoldenTensor& t = all[p.name];
    for (int d = 0; d < p.slot.shape.rank(); ++d) t.shape.push_back(p.slot.shape[d]);
    t.values = ref::doubles(gradients ? store.grad(p.slot) : store.weight(p.slot));
  }
  return all;
}

}  // namespace

GoldenCase::GoldenCase(std::filesystem::path folder, std::string name)
    : folder_(std::move(folder)), name_(std::move(name)) {
  const std::filesystem::path file = folder_ / "case.json";
  json_ = nlohmann::json::parse(read_whole_file(file), nullptr, false);
  if (!json_.is_object()) fail_file(file, "is no JSON object");
  if (json_.contains("files"))
    for (const nlohmann::json& f : json_["files"]) files_[f.at("file").get<std::string>()] = f;
}

bool GoldenCase::has(const std::string& key) const {
  return json_.contains("scalars") && json_["scalars"].contains(key) && !json_["scalars"][key].is_null();
}

const nlohmann::json& GoldenCase::scalar(const std::string& key) const {
  if (!has(key)) fail_file(folder_ / "case.json", fmt::format("has no scalar '{}'", key));
  return json_["scalars"][key];
}

const nlohmann::json& GoldenCase::entry(const std::string& file) const {
  const auto f = files_.find(file);
  if (f == files_.end()) fail_file(folder_ / "case.json", fmt::format("does not list {}", file));
  return f->second;
}

const nlohmann::json& GoldenCase::use(const std::string& file) {
  used_.insert(file);
  return entry(file);
}

std::vector<double> GoldenCase::reals(const std::string& file) {
  return reals_of(path_of(file), read_listed(path_of(file), use(file)));
}

std::vector<float> GoldenCase::floats(const std::string& file) {
  const std::vector<double> v = reals(file);
  return {v.begin(), v.end()};
}

std::vector<std::int64_t> GoldenCase::integers(const std::string& file) {
  return whole_numbers_of(path_of(file), read_listed(path_of(file), use(file)));
}

std::vector<std::int32_t> GoldenCase::tokens(const std::string& file) {
  const std::vector<std::int64_t> v = integers(file);
  return {v.begin(), v.end()};
}

void GoldenCase::expect_exact(const std::string& file, const std::vector<std::int64_t>& got) {
  const std::vector<std::int64_t> want = integers(file);
  ASSERT_EQ(got.size(), want.size()) << name_ << "/" << file;
  std::size_t wrong = 0, first = 0;
  for (std::size_t i = want.size(); i-- > 0;)
    if (got[i] != want[i]) ++wrong, first = i;
  if (wrong > 0)
    ADD_FAILURE() << name_ << "/" << file << ": " << wrong << " of " << want.size() << " integers differ, the first at "
                  << position(first, entry(file).at("shape")) << ": " << got[first] << ", expected " << want[first];
  fractions_.try_emplace(file, 0.0);
}

void GoldenCase::compare(const std::string& what, const std::vector<double>& want, const std::vector<double>& got,
                         double tolerance, const std::string& report) {
  ASSERT_EQ(got.size(), want.size()) << name_ << "/" << what;
  double most = 0;
  std::size_t worst = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double error = std::abs(got[i] - want[i]);
    if (error <= most) continue;
    most = std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
    worst = i;
  }
  if (!(most <= tolerance))
    ADD_FAILURE() << name_ << "/" << what << ": element " << worst << " of " << want.size() << " is " << got[worst]
                  << ", expected " << want[worst] << ", off by " << most << " > " << tolerance;
  double& fraction = fractions_[report];
  fraction = std::max(fraction, most == 0 ? 0.0 : most / tolerance);
}

void GoldenCase::expect_close(const std::string& file, const std::vector<double>& got) {
  compare(file, reals(file), got, entry(file).at("tolerance_abs").get<double>(), file);
}

void GoldenCase::expect_tensors(const std::string& file, const GoldenTensors& got) {
  const nlohmann::json& listed = use(file);
  const SafetensorsFile tensors(path_of(file));
  std::set<std::string> missing;
  for (const std::string& name : tensors.names()) missing.insert(name);
  EXPECT_EQ(missing.size(), listed.at("tensors").get<std::size_t>()) << name_ << "/" << file;
  for (const auto& [name, tensor] : got) {
    if (missing.erase(name) == 0) {
      ADD_FAILURE() << name_ << "/" << file << " has no " << name;
      continue;
    }
    EXPECT_EQ(tensor.shape, tensors.info(name).shape) << name_ << "/" << file << ": " << name;
    const double tolerance = listed.contains("tolerance_abs_per_tensor")
                                 ? listed["tolerance_abs_per_tensor"].at(name).get<double>()
                                 : listed.at("tolerance_abs").get<double>();
    compare(fmt::format("{}: {}", file, name), tensors.read_f64(name), tensor.values, tolerance, file);
  }
  for (const std::string& name : missing) ADD_FAILURE() << name_ << "/" << file << ": " << name << " was not computed";
}

void GoldenCase::expect_scalar(const std::string& key, double got) {
  used_scalars_.insert(key);
  const auto tolerances = json_.find("scalar_tolerance_abs");
  if (tolerances == json_.end() || !tolerances->contains(key))
    fail_file(folder_ / "case.json", fmt::format("has no tolerance for '{}'", key));
  compare(key, {real(key)}, {got}, (*tolerances)[key].at("tolerance_abs").get<double>(), key);
}

void GoldenCase::finish() {
  for (const auto& [file, listed] : files_)
    if (listed.at("role") != "input" && used_.count(file) == 0)
      ADD_FAILURE() << name_ << "/" << file << " was not looked at";
  if (json_.contains("scalar_tolerance_abs"))
    for (const auto& [key, tolerance] : json_["scalar_tolerance_abs"].items())
      if (used_scalars_.count(key) == 0) ADD_FAILURE() << name_ << ": scalar " << key << " was not looked at";
  std::vector<std::pair<double, std::string>> sorted;
  for (const auto& [what, fraction] : fractions_) sorted.emplace_back(fraction, what);
  std::sort(sorted.rbegin(), sorted.rend());
  std::string text;
  for (const auto& [fraction, what] : sorted)
    if (fraction > 0) text += fmt::format("{}{} {:.3f}", text.empty() ? "" : ", ", what, fraction);
  fmt::print("[   golden ] {}: {} results, used of the tolerances: {}\n", name_, sorted.size(),
             text.empty() ? "nothing" : text);
  std::fflush(stdout);
}

std::filesystem::path golden_root(const std::filesystem::path& source_dir) {
  const char* named = std::getenv("EMOX_GOLDEN_DIR");
  return named != nullptr ? std::filesystem::path(named) : source_dir / "tests" / "golden";
}

void for_each_golden_case(const std::filesystem::path& source_dir, const std::string& kind,
                          const std::function<void(GoldenCase&)>& body) {
  const std::filesystem::path folder = golden_root(source_dir) / kind;
  ASSERT_TRUE(std::filesystem::is_directory(folder)) << folder << " is no directory";
  std::vector<std::pair<std::filesystem::path, std::string>> cases;
  if (holds_case(folder))
    cases.emplace_back(folder, kind);
  else
    for (const auto& sub : std::filesystem::directory_iterator(folder)) {
      const std::string name = sub.path().filename().string();
      if (!sub.is_directory() || name == "parameters") continue;  // shared inputs of the cases beside it
      EXPECT_TRUE(holds_case(sub.path())) << sub.path() << " has no case.json";
      if (holds_case(sub.path())) cases.emplace_back(sub.path(), kind + "/" + name);
    }
  std::sort(cases.begin(), cases.end());
  ASSERT_FALSE(cases.empty()) << folder << " holds no case";
  for (const auto& [path, name] : cases) {
    SCOPED_TRACE(name);
    try {
      GoldenCase c(path, name);
      body(c);
      c.finish();
    } catch (const std::exception& e) {
      ADD_FAILURE() << name << ": " << e.what();
    }
  }
}

Context golden_context() {
  Context ctx = any_context();
  const char* threads = std::getenv("OMP_NUM_THREADS");
  ctx.threads = threads != nullptr ? std::max(1, std::atoi(threads)) : 1;
  return ctx;
}

EosRule golden_eos_rule(const GoldenCase& c) {
  for (const char* key : {"eos_convention", "pool_eos_convention"}) {
    if (!c.has(key)) continue;
    for (const EosRule rule : {EosRule::Owner, EosRule::Reference})
      if (c.text(key) == kEosRuleNames[idx(rule)]) return rule;
    fail_file(c.path_of("case.json"), fmt::format("{} = {}", key, c.text(key)));
  }
  return EosRule::Reference;
}

ModelConfig golden_model_config(const GoldenCase& c) {
  ModelConfig m;
  m.vocab_size = c.integer("vocab");
  m.d_model = c.integer("d_model");
  m.heads = c.integer("heads");
  m.layers = c.integer("layers");
  m.sequence_length = c.integer("sequence");
  m.norm_eps = c.real("rms_eps");
  m.rope_theta = c.real("rope_theta");
  m.intra_document_attention = c.flag("intra_document_attention");
  m.eos = golden_eos_rule(c);
  m.pool = c.has_file("draws.npy") ? PoolMode::Uniform : PoolMode::Off;
  m.num_experts = c.has("experts") ? c.integer("experts") : 0;
  if (!m.is_moe()) {
    m.dense_ff = c.integer("d_ff");
    return m;
  }
  m.expert_ff = c.integer("d_ff");
  m.top_k = c.integer("top_k");
  m.shared_experts = c.integer("shared");
  m.balance_weight = c.real("balance_weight");
  m.router_z_weight = c.real("router_z_weight");
  return m;
}

void RecordedPools::record(std::int64_t step, const PoolDocument& document, std::vector<std::int64_t> sizes) {
  sizes_[{step, document.sequence, document.document}] = std::move(sizes);
}

std::int64_t RecordedPools::size(std::int64_t step, std::int64_t layer, const PoolDocument& document) const {
  return sizes_.at({step, document.sequence, document.document}).at(idx(layer));
}

std::vector<SequenceInput> golden_sequences(std::span<const std::int32_t> tokens, std::int64_t length,
                                            std::int64_t first) {
  std::vector<SequenceInput> sequences;
  for (std::size_t at = 0; at < tokens.size(); at += idx(length))
    sequences.push_back({tokens.subspan(at, idx(length)), {}, first++, 0});
  return sequences;
}

std::vector<std::int64_t> golden_segments(const MicroBatch& batch, std::int64_t length) {
  std::vector<std::int64_t> rows;
  for (std::size_t i = 0; i + 1 < batch.pool_segments.size(); ++i) {
    const std::int64_t begin = batch.pool_segments[i], end = batch.pool_segments[i + 1], row = begin / length;
    rows.insert(rows.end(), {row, begin - row * length, end - row * length});
  }
  return rows;
}

std::vector<std::int64_t> with_shared_ids(const TensorView& ids, std::int64_t routed_experts, std::int64_t shared) {
  const std::vector<std::int64_t> routed = integers_of(ids);
  std::vector<std::int64_t> all;
  for (std::int64_t t = 0; t < ids.dim(0); ++t) {
    const auto row = routed.begin() + t * ids.dim(1);
    all.insert(all.end(), row, row + ids.dim(1));
    for (std::int64_t s = 0; s < shared; ++s) all.push_back(routed_experts + s);
  }
  return all;
}

std::vector<double> with_shared_gates(const TensorView& gates, std::int64_t shared) {
  const std::vector<double> routed = ref::doubles(gates);
  std::vector<double> all;
  for (std::int64_t t = 0; t < gates.dim(0); ++t) {
    const auto row = routed.begin() + t * gates.dim(1);
    all.insert(all.end(), row, row + gates.dim(1));
    all.insert(all.end(), idx(shared), 1.0);
  }
  return all;
}

GoldenBalance golden_balance(const TensorView& counts, const TensorView& p_sum, std::int64_t routed_top_k,
                             double tokens, double divisor, double weight) {
  const std::vector<std::int64_t> picks = integers_of(counts);
  const std::vector<double> sums = ref::doubles(p_sum);
  const double scale = static_cast<double>(picks.size()) / static_cast<double>(routed_top_k) / divisor;
  GoldenBalance b;
  for (std::size_t i = 0; i < picks.size(); ++i) {
    b.loss += scale * static_cast<double>(picks[i]) * sums[i] / tokens;
    b.gradient.push_back(static_cast<float>(weight * scale * static_cast<double>(picks[i]) / tokens));
  }
  return b;
}

std::vector<std::int64_t> integers_of(const TensorView& t) {
  const auto all = [](const auto& v) { return std::vector<std::int64_t>(v.begin(), v.end()); };
  if (t.dtype() == DType::I64) return values_of<std::int64_t>(t);
  if (t.dtype() == DType::U8) return all(values_of<std::uint8_t>(t));
  return all(values_of<std::int32_t>(t));
}

void load_golden_weights(Context& ctx, const ParameterStore& store, const std::filesystem::path& file) {
  const SafetensorsFile tensors(file);
  EXPECT_EQ(tensors.names().size(), store.parameter_count()) << file;
  for (const NamedParameter& p : store.named()) {
    const std::vector<float> values = tensors.read_f32(p.name);
    if (static_cast<std::int64_t>(values.size()) != p.slot.shape.numel())
      fail_file(file, fmt::format("{} is not {}", p.name, p.slot.shape.str()));
    ops::copy_from_host(ctx, store.weight(p.slot), values.data());
  }
}

GoldenTensors golden_weights(const ParameterStore& store) { return tensors_of(store, false); }
GoldenTensors golden_gradients(const ParameterStore& store) { return tensors_of(store, true); }

}  // namespace emox::test
