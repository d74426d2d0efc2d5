#include "launch/run/extract_subset.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "launch/config/recipe_file.h"
#include "launch/run/model_pieces.h"
#include "launch/run/same_on_ranks.h"
#include "parallel/checkpoint/arrays.h"
#include "parallel/checkpoint/inspect.h"
#include "parallel/checkpoint/verify.h"
#include "parallel/comm/together.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/core/quoted.h"
#include "runtime/files/atomic_file.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

/// An array of the small model: which one of the whole it comes from, and which rows of that.
struct KeptArray {
  const SavedArray* from = nullptr;
  std::string name;
  std::optional<std::vector<std::int32_t>> rows;  ///< none: all

  Shape shape() const { return rows ? from->shape.with_rows(static_cast<std::int64_t>(rows->size())) : from->shape; }
};

/// Says of each array of the whole model what becomes of it.
class ArraySelection {
 public:
  explicit ArraySelection(const ExpertSubset& subset) : subset_(subset), routed_(subset.experts - subset.shared) {
    for (std::size_t l = 0; l < subset.routed.size(); ++l) {
      std::vector<std::int32_t> all = subset.routed[l];
      for (std::int64_t e = routed_; e < subset.experts; ++e) all.push_back(static_cast<std::int32_t>(e));
      rows_[fmt::format("model.layers.{}.mlp.gate.weight", l)] = std::move(all);
      rows_[fmt::format("model.layers.{}{}", l, kSelectionBiasName)] = subset.routed[l];
    }
  }

  /// Nothing for a dropped expert.
  std::optional<KeptArray> of(const SavedArray& array) const {
    if (const auto found = rows_.find(array.name); found != rows_.end())
      return KeptArray{&array, array.name, found->second};
    const auto place = expert_of(array.name);
    if (!place) return KeptArray{&array, array.name, std::nullopt};
    const auto& kept = subset_.routed.at(idx(place->layer));
    std::int64_t number = static_cast<std::int64_t>(kept.size()) + place->expert - routed_;
    if (place->expert < routed_) {
      const auto at = std::lower_bound(kept.begin(), kept.end(), place->expert);
      if (at == kept.end() || *at != place->expert) return std::nullopt;
      number = at - kept.begin();
    }
    const std::string was = fmt::format(".experts.{}.", place->expert);
    std::string name = array.name;
    name.replace(name.find(was), was.size(), fmt::format(".experts.{}.", number));
    return KeptArray{&array, name, std::nullopt};
  }

 private:
  const ExpertSubset& subset_;
  std::int64_t routed_;
  std::map<std::string, std::vector<std::int32_t>> rows_;
};

/// This rank's share of the small model, in host memory: nothing is computed.
class Share {
 public:
  explicit Share(const std::vector<KeptArray>& arrays, const Communicator& comm) {
    for (std::size_t i = idx(comm.rank()); i < arrays.size(); i += idx(comm.size())) {
      const KeptArray& a = arrays[i];
      const Shape shape = a.shape();
      const TensorView memory = memory_.emplace_back(Device{}, a.from->dtype, shape).view();
      saved.push_back({a.name, a.from->role, shape, 0, shape.numel(), memory});
      if (!a.rows) {
        wanted.push_back({a.from->name, a.from->role, shape, 0, shape.numel(), memory});
        continue;
      }
      const std::int64_t width = shape.with_rows(1).numel();
      for (std::size_t r = 0; r < a.rows->size(); ++r) {
        const std::int64_t begin = (*a.rows)[r] * width, row = static_cast<std::int64_t>(r);
        wanted.push_back({a.from->name, a.from->role, a.from->shape, begin, begin + width, memory.rows(row, row + 1)});
      }
    }
  }
  std::vector<CheckpointPiece> wanted, saved;

 private:
  std::vector<Tensor> memory_;
};

void check_output(const fs::path& output) {
  std::error_code ignored;
  require<UsageError>(!fs::exists(output, ignored) || fs::is_empty(output, ignored),
                      "{} is there already: name a directory that does not exist yet", output.string());
  std::error_code error;
  fs::create_directories(output, error);
  require<UsageError>(!error, "cannot make the directory {}: {}", output.string(), error.message());
}

}  // namespace

Recipe recipe_of_subset(Recipe r, const ExpertSubset& subset, const std::string& source, const fs::path& directory) {
  require<UsageError>(
      subset.uniform(),
      "{} keeps different numbers of experts in its layers, a model has one: choose with --keep instead "
      "of --layer-budgets, or evaluate it with emox eval --experts",
      source);
  ModelConfig& m = r.model;
  subset.check_model(m, source);
  m.num_experts = subset.keep(0);
  m.top_k = std::min(m.top_k, m.num_experts);
  const auto fit = [&](std::int64_t& pool) { pool = std::clamp(pool, m.routed_top_k(), m.routed_experts()); };
  for (std::int64_t* pool : {&m.pool_size, &m.pool_min, &m.pool_max}) fit(*pool);
  if (m.eval_pool > 0) fit(m.eval_pool);
  // The pools of labels were of the experts' old numbers.
  if (m.pool == PoolMode::Label) m.pool = PoolMode::Off;
  r.parallel.expert_parallel = std::min(r.parallel.expert_parallel, m.routed_experts());
  r.parallel.placement = PlacementKind::Block;
  r.parallel.placement_file.clear();
  r.run.dir = directory.string();
  r.run.name = directory.filename().string();
  r.run.warm_start.clear();
  r.run.stop_after_step = 0;
  return r;
}

ExtractedSubset extract_subset(Session& session, const fs::path& checkpoint, const ExpertSubset& subset,
                               const std::string& source, const fs::path& output) {
  Communicator& comm = session.comm();
  const Manifest manifest = read_manifest_together(comm, checkpoint);
  const fs::path directory = fs::absolute(output).lexically_normal();
  const Recipe recipe = recipe_of_subset(parse_recipe(manifest.recipe, (checkpoint / "manifest.json").string()), subset,
                                         source, directory.has_filename() ? directory : directory.parent_path());
  require_same(comm, "the subset " + source, subset.to_json().at("kept").dump());
  on_root(session.comm(), [&] { check_output(recipe.run.dir); });

  const std::vector<SavedArray> all = arrays_of(manifest);
  const ArraySelection selection(subset);
  std::vector<SavedArray> kept;
  for (const SavedArray& a : all)
    if (selection.of(a)) kept.push_back(a);
  std::vector<KeptArray> arrays;
  ExtractedSubset done;
  for (const SavedArray& a : kept) {
    arrays.push_back(*selection.of(a));
    ++done.tensors;
    done.bytes += arrays.back().shape().numel() * static_cast<std::int64_t>(size_of(a.dtype));
  }
  const Share share(arrays, comm);
  const LoadReport read = load_checkpoint(comm, {checkpoint, manifest}, share.wanted, FilesToRead::Needed);
  done.files_read = read.all_files;
  done.files = static_cast<std::int64_t>(manifest.files.size());
  done.bytes_read = read.all_bytes;

  CheckpointMeta meta;
  meta.tokens = manifest.tokens;
  meta.seed = manifest.seed;
  meta.recipe = to_ini(recipe);
  meta.extra = manifest.extra;
  meta.extra.erase("spikes");  // losses of another model
  meta.extra["subset_of"] = quoted_text(fs::absolute(checkpoint).lexically_normal().string());
  meta.extra["experts"] = subset.to_json().at("kept");
  done.checkpoint = save_checkpoint(comm, fs::path(recipe.run.dir) / "checkpoints", manifest.step, share.saved, meta);
  on_root(session.comm(),
          [&] { write_file_atomically(fs::path(recipe.run.dir) / "recipe.ini", to_ini(recipe, true)); });
  return done;
}

}  // namespace emox
