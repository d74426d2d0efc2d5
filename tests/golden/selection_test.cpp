// Experts chosen for a text by each method, and the logits of the model that keeps them. On one rank, and with the
// experts sharded over ranks: the choice must be the same.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "launch/run/sharding.h"
#include "model/modularity/select_experts.h"
#include "runtime/core/idx.h"
#include "tests/support/golden.h"
#include "tests/support/golden_model.h"
#include "tests/support/golden_ranks.h"
#include "tests/support/reference.h"

namespace emox::test {
namespace {

constexpr std::int32_t kNoToken = -1;  // an EOS is a token as any other here

struct Inputs {
  explicit Inputs(GoldenCase& c)
      : checkpoint(c.path_of(c.text("checkpoint"))),
        config(published_config(checkpoint / "config.json")),
        held(c.tokens("held_ids.npy")),
        held_length(c.shape("held_ids.npy").back()),
        keep(c.json().at("scalars").at("keep").get<std::vector<std::int64_t>>()) {
    const std::vector<std::int32_t> ids = c.tokens("calibration_ids.npy");
    const std::int64_t length = c.shape("calibration_ids.npy").back();
    auto row = ids.begin();
    for (const std::int64_t n : c.integers("calibration_lengths.npy")) {
      text.sequences.emplace_back(row, row + n);
      row += length;
      longest = std::max(longest, n);
    }
  }
  std::filesystem::path checkpoint;
  ModelConfig config;
  CalibrationText text{.sequences = {}, .eos = kNoToken};
  std::int64_t longest = 0;
  std::vector<std::int32_t> held;  ///< rows of held_length
  std::int64_t held_length;
  std::vector<std::int64_t> keep;
};

class Selection {
 public:
  Selection(const Inputs& in, Context& ctx, Communicator& comm, const ParallelConfig& parallel)
      : in_(in),
        ctx_(ctx),
        comm_(comm),
        sharding_(comm, in.config, parallel),
        model_(in.config, ctx, false, sharding_.experts()),
        memory_(ctx, model_, std::max(in.longest, static_cast<std::int64_t>(in.held.size()))) {
    load_golden_weights(ctx, model_.parameters(), in.checkpoint / "model.safetensors");
  }

  ExpertSubset select(SelectionMethod method, std::int64_t keep) {
    SelectionRequest request{method, check_budgets(in_.config, {keep}, "the case"), 0};
    return select_experts(ctx_, model_, comm_, memory_, in_.text, request);
  }

  /// Logits of this rank's part of the held rows.
  std::vector<double> logits(const std::vector<std::vector<std::int32_t>>* kept) {
    if (kept != nullptr)
      model_.keep_experts(ctx_, *kept);
    else
      model_.keep_all_experts(ctx_);
    const auto rows = static_cast<std::int64_t>(in_.held.size()) / in_.held_length;
    const std::span<const std::int32_t> mine = part_of(rows, comm_).of(in_.held, in_.held_length);
    const MicroBatch host = make_micro_batch(in_.config, kNoToken, golden_sequences(mine, in_.held_length));
    memory_.batch.upload(ctx_, host);
    model_.forward(ctx_, memory_.activations, memory_.batch, nullptr);
    const Tensor logits(ctx_.device, DType::F32, {host.tokens, in_.config.vocab_size});
    model_.logits(ctx_, logits, memory_.activations, memory_.batch);
    model_.keep_all_experts(ctx_);
    return ref::doubles(logits);
  }

 private:
  const Inputs& in_;
  Context& ctx_;
  Communicator& comm_;
  Sharding sharding_;
  LanguageModel model_;
  InferenceMemory memory_;
};

std::vector<std::int64_t> kept_ids(const ExpertSubset& subset) {
  std::vector<std::int64_t> ids;
  const nlohmann::ordered_json json = subset.to_json();
  for (const auto& layer : json.at("kept"))
    for (const auto& id : layer) ids.push_back(id);
  return ids;
}

std::vector<double> flat(const std::vector<std::vector<double>>& layers) {
  std::vector<double> all;
  for (const auto& layer : layers) all.insert(all.end(), layer.begin(), layer.end());
  return all;
}

// Method and keep count of every choice that the case records.
using Choice = std::pair<SelectionMethod, std::int64_t>;

std::string file_stem(const Choice& choice) {
  std::string name = kSelectionMethodNames[idx(choice.first)];
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

void run_selection(GoldenCase& c) {
  const Inputs in(c);
  std::vector<Choice> choices;
  for (const SelectionMethod m : {SelectionMethod::Layerwise, SelectionMethod::Global, SelectionMethod::EasyEp})
    for (const std::int64_t k : in.keep)
      if (c.has_file(fmt::format("{}_k{}_kept.npy", file_stem({m, k}), k))) choices.emplace_back(m, k);
  ASSERT_FALSE(choices.empty());
  for (const GoldenMesh& mesh : golden_meshes(in.config)) {
    SCOPED_TRACE(mesh.text());
    const auto ranks = idx(mesh.ranks);
    std::vector<std::map<Choice, ExpertSubset>> chosen(ranks);
    std::map<Choice, ByRank<double>> pruned;
    for (const Choice& choice : choices) pruned.emplace(choice, ByRank<double>(1, mesh.ranks));
    ByRank<double> full(1, mesh.ranks);
    run_on_mesh(mesh, [&](Context& ctx, Communicator& comm) {
      Selection selection(in, ctx, comm, mesh.parallel());
      auto& mine = chosen[idx(comm.rank())];
      for (const Choice& choice : choices) {
        mine[choice] = selection.select(choice.first, choice.second);
        pruned.at(choice).put(0, comm.rank(), selection.logits(&mine[choice].routed));
      }
      full.put(0, comm.rank(), selection.logits(nullptr));
    });
    for (const Choice& choice : choices) {
      const std::string stem = file_stem(choice), with_k = fmt::format("{}_k{}", stem, choice.second);
      const ExpertSubset& subset = chosen[0].at(choice);
      for (const auto& other : chosen) EXPECT_EQ(other.at(choice).to_json(), subset.to_json());
      c.expect_exact(with_k + "_kept.npy", kept_ids(subset));
      for (const std::string& file : {stem + "_scores.npy", with_k + "_scores.npy"})
        if (c.has_file(file)) c.expect_close(file, flat(subset.scores));
      if (const std::string file = "held_logits_" + with_k + ".npy"; c.has_file(file))
        c.expect_close(file, pruned.at(choice).all());
      EXPECT_GE(subset.provenance.at("smallest_gap").get<double>(), 1e-5);
    }
    c.expect_close("held_logits_full.npy", full.all());
  }
}

TEST(Golden, Selection) { for_each_golden_case(EMOX_SOURCE_DIR, "selection", run_selection); }

}  // namespace
}  // namespace emox::test
