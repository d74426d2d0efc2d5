#include "launch/bench/scale_bench.h"

#include <fmt/format.h>
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "launch/plan/state_plan.h"
#include "launch/run/device_choice.h"
#include "launch/run/sharding.h"
#include "model/optim/parameter_shards.h"
#include "model/transformer/language_model.h"
#include "parallel/checkpoint/hdf5_file.h"
#include "parallel/checkpoint/layout.h"
#include "parallel/checkpoint/load_plan.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

struct Cost {
  double seconds = 0;
  std::int64_t bytes = 0;  ///< of the heap that the result keeps
};

std::int64_t heap() { return static_cast<std::int64_t>(mallinfo2().uordblks + mallinfo2().hblkhd); }

template <typename Work>
Cost cost_of(const Work& work) {
  const std::int64_t before = heap();
  const auto start = Clock::now();
  work();
  return {std::chrono::duration<double>(Clock::now() - start).count(), heap() - before};
}

/// What every rank wants of a checkpoint: what it wrote.
std::vector<std::string> wanted_by_all(const Manifest& manifest) {
  std::map<std::string, std::vector<CheckpointPiece>> of_file;
  for (const ManifestTensor& t : manifest.tensors)
    of_file[t.file].push_back({t.name, t.role, t.shape, t.begin, t.end, {nullptr, t.dtype, {t.end - t.begin}}});
  std::vector<std::string> texts;
  for (const ManifestFile& f : manifest.files)
    if (f.name != kIndexFileName) texts.push_back(text_of_wanted(of_file[f.name]));
  return texts;
}

nlohmann::ordered_json row_of(Recipe recipe, int ranks, int ranks_per_node) {
  recipe.train.batch_sequences = std::max<std::int64_t>(recipe.train.batch_sequences, ranks);
  const StatePlan plan = plan_state(recipe, ranks, ranks_per_node, planned_device(recipe).activations);

  // Every rank's own work.
  const int last = ranks - 1;
  std::optional<MeshLayout> layout;
  std::unique_ptr<Sharding> sharding;
  std::unique_ptr<LanguageModel> model;
  std::unique_ptr<ParameterShards> shards;
  Context ctx;
  const MemoryMeasurement without_memory;
  const Cost mesh = cost_of([&] {
    layout.emplace(planned_layout(recipe, ranks, ranks_per_node));
    sharding = std::make_unique<Sharding>(ProcessMesh::planned(*layout, last), recipe.model, recipe.parallel);
  });
  model = std::make_unique<LanguageModel>(recipe.model, ctx, true, sharding->experts());
  std::vector<ParameterShards::Piece> owned;
  const Cost shares = cost_of([&] {
    shards = std::make_unique<ParameterShards>(model->parameters(), sharding->mesh());
    owned = shards->owned();
  });
  std::size_t stages = 0;
  const Cost stages_of_a_step =
      cost_of([&] { stages = sum_stages(shards->groups()[0].shards.ranges(), layout->nodes(), last).size(); });

  // Rank 0's.
  std::string text;
  const Cost write = cost_of([&] { text = manifest_text(plan.manifest); });
  Manifest read;
  const Cost parse = cost_of([&] { read = parse_manifest(text, "the manifest"); });
  const fs::path index = fs::temp_directory_path() / fmt::format("emox-bench-scale-{}.h5", getpid());
  const Cost index_file = cost_of([&] { write_index(index, plan.manifest); });
  const auto index_bytes = static_cast<std::int64_t>(fs::file_size(index));
  fs::remove(index);
  const std::vector<std::string> wanted = wanted_by_all(plan.manifest);
  std::vector<std::string> loads;
  const Cost load = cost_of([&] { loads = plan_loads(read, "here", wanted, false); });
  std::size_t longest = 0;
  for (const std::string& l : loads) longest = std::max(longest, l.size());

  return {{"ranks", ranks},
          {"nodes", (ranks + ranks_per_node - 1) / ranks_per_node},
          {"expert_parallel", plan.expert_parallel},
          {"pieces", plan.manifest.tensors.size()},
          {"pieces_of_a_rank", 3 * owned.size()},
          {"manifest_bytes", text.size()},
          {"manifest_write_s", write.seconds},
          {"manifest_parse_s", parse.seconds},
          {"manifest_heap_bytes", parse.bytes},
          {"index_s", index_file.seconds},
          {"index_bytes", index_bytes},
          {"load_plan_s", load.seconds},
          {"load_plan_bytes_of_a_rank", longest},
          {"mesh_s", mesh.seconds},
          {"mesh_bytes", mesh.bytes},
          {"shares_s", shares.seconds},
          {"shares_bytes", shares.bytes},
          {"stages", stages},
          {"stages_s", stages_of_a_step.seconds},
          {"gradients", to_json(plan.gradients)},
          {"weights", to_json(plan.weights)}};
}

}  // namespace

nlohmann::ordered_json bench_scale(const Recipe& recipe, const ScaleBenchOptions& options) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  std::string why;
  for (const int ranks : options.ranks) {
    try {
      rows.push_back(row_of(recipe, ranks, options.ranks_per_node));
    } catch (const UsageError& e) {
      why = e.message();
    }
  }
  require<UsageError>(!rows.empty(), "emox bench scale: the recipe fits none of these numbers of ranks: {}", why);
  return {{"recipe", recipe.run.name}, {"ranks_per_node", options.ranks_per_node}, {"rows", std::move(rows)}};
}

std::string scale_table(const nlohmann::ordered_json& result) {
  std::string text = fmt::format("{}, {} ranks a node; jobs that do not run\n\n", result["recipe"].get<std::string>(),
                                 result["ranks_per_node"].get<int>());
  const auto line = [&](const std::string& what, const auto& value) {
    text += fmt::format("{:<44}", what);
    for (const auto& row : result["rows"]) text += fmt::format("{:>11}", value(row));
    text += '\n';
  };
  const auto number = [](const char* key) {
    return [key](const auto& row) { return fmt::format("{}", row[key].template get<std::int64_t>()); };
  };
  const auto seconds = [](const char* key) {
    return [key](const auto& row) { return fmt::format("{:.4f}", row[key].template get<double>()); };
  };
  const auto mib = [](const char* key) {
    return [key](const auto& row) { return fmt::format("{:.2f}", row[key].template get<double>() / 1048576); };
  };
  const auto of = [](const char* part, const char* key, double unit) {
    return [=](const auto& row) { return fmt::format("{:.0f}", row[part][key].template get<double>() / unit); };
  };
  line("ranks", number("ranks"));
  line("experts over", number("expert_parallel"));
  text += "rank 0, at a save or a load\n";
  line("  pieces", number("pieces"));
  line("  manifest, MiB", mib("manifest_bytes"));
  line("  manifest written, s", seconds("manifest_write_s"));
  line("  manifest read and checked, s", seconds("manifest_parse_s"));
  line("  manifest in memory, MiB", mib("manifest_heap_bytes"));
  line("  index.h5, s", seconds("index_s"));
  line("  load planned for all, s", seconds("load_plan_s"));
  text += "every rank\n";
  line("  pieces that it writes and reads", number("pieces_of_a_rank"));
  line("  its load plan, KiB", [](const auto& row) {
    return fmt::format("{:.1f}", row["load_plan_bytes_of_a_rank"].template get<double>() / 1024);
  });
  line("  mesh and placement, s", seconds("mesh_s"));
  line("  mesh and placement, MiB", mib("mesh_bytes"));
  line("  shares of the state, s", seconds("shares_s"));
  line("  shares of the state, MiB", mib("shares_bytes"));
  line("  stages of a sum, s a step", seconds("stages_s"));
  text += "received in a step (the rank that gets most)\n";
  line("  gradients between nodes, messages", of("gradients", "messages_inter_node", 1));
  line("  gradients between nodes, MiB", of("gradients", "bytes_inter_node", 1048576));
  line("  gradients inside the node, messages", of("gradients", "messages_intra_node", 1));
  line("  gradients inside the node, MiB", of("gradients", "bytes_intra_node", 1048576));
  line("  weights between nodes, messages", of("weights", "messages_inter_node", 1));
  line("  weights between nodes, MiB", of("weights", "bytes_inter_node", 1048576));
  text +=
      "\nLinear in ranks: shares, mesh, stages (every rank knows who owns which stretch), rank 0's list of files.\n"
      "Not growing: what a rank writes, reads and keeps; lease (one file, by rank 0); metrics (one line a step).\n";
  return text;
}

}  // namespace emox
