// `emox checkpoint export`: tensors, or a subset of experts, as one HDF5 file.
#include "parallel/checkpoint/inspect.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>

#include "launch/checkpoint_tool/checkpoint_tool.h"
#include "launch/checkpoint_tool/expert_selection.h"
#include "launch/config/arguments.h"
#include "launch/config/nearest.h"
#include "launch/run/failure.h"
#include "launch/run/find_checkpoint.h"
#include "launch/run/on_ranks.h"
#include "launch/run/run_directory.h"
#include "parallel/checkpoint/verify.h"
#include "parallel/comm/together.h"
#include "runtime/core/error.h"
#include "runtime/telemetry/metrics.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

constexpr const char* kCommand = "emox checkpoint export";

void check_output(const fs::path& output, bool force) {
  require_outside_checkpoints(kCommand, output);
  const fs::path parent = fs::absolute(output).parent_path();
  require<UsageError>(fs::is_directory(parent), "{}: {} is not a directory: make it first", kCommand, parent.string());
  require<UsageError>(!fs::is_directory(output), "{}: --output={} is a directory: name a file in it", kCommand,
                      output.string());
  require<UsageError>(force || !fs::exists(output), "{}: {} exists: give --force to replace it, or another --output",
                      kCommand, output.string());
}

/// The checkpoint's arrays that are to be written.
std::vector<SavedArray> selected(const Manifest& manifest, const Arguments& a) {
  std::vector<SavedArray> arrays = arrays_of(manifest);
  const std::int64_t routed = routed_experts_of(manifest);
  if (!a.has("--moments")) std::erase_if(arrays, [](const SavedArray& x) { return x.role != "weight"; });
  if (a.has("--experts")) {
    const ExpertSelection experts =
        parse_experts(a.value("--experts"), routed_experts_in(arrays, routed), std::string(kCommand) + ": --experts");
    std::erase_if(arrays, [&](const SavedArray& x) {
      const auto place = expert_of(x.name);
      return place && place->expert < routed && !experts.contains({place->layer, place->expert});
    });
  }
  if (a.has("--only")) {
    const std::string prefix = a.value("--only");
    std::vector<std::string> names;
    for (const SavedArray& x : arrays) names.push_back(x.name);
    std::erase_if(arrays, [&](const SavedArray& x) { return !x.name.starts_with(prefix); });
    require<UsageError>(!arrays.empty(), "{}: --only={}: no tensor's name begins so; the nearest is {}", kCommand,
                        prefix, nearest(prefix, names));
  }
  return arrays;
}

}  // namespace

int checkpoint_export(const std::vector<std::string>& args) {
  const Arguments a = parse_args(args, {.command = kCommand,
                                        .flags = {"--moments", "--force", "--json"},
                                        .options = {"--output", "--experts", "--only"},
                                        .rank_keys = true,
                                        .min_positional = 1,
                                        .max_positional = 1,
                                        .positional = "RUN|CHECKPOINT --output=FILE.h5"});
  require<UsageError>(!a.value("--output").empty(), "{}: where to? Write --output=FILE.h5", kCommand);
  const fs::path output = a.value("--output");
  return on_ranks(a.overrides, [&](Session& session) {
    on_root(session.comm(), [&] { check_output(output, a.has("--force")); });
    // Damage in files that are not needed does not matter.
    const FoundCheckpoint found = find_checkpoint(session, a.positional[0], Glance::Sizes);
    const fs::path& path = found.path;
    const Manifest manifest = manifest_everywhere(session.comm(), path, found.manifest);
    const std::vector<SavedArray> arrays = selected(manifest, a);
    const std::vector<std::string> files = files_of(arrays);
    verify_files(session.comm(), path, manifest, files);
    ExportNotes notes{{"source", fs::absolute(path).lexically_normal().string()},
                      {"step", fmt::format("{}", manifest.step)},
                      {"tokens", fmt::format("{}", manifest.tokens)},
                      {"recipe", manifest.recipe}};
    for (const char* option : {"--experts", "--only"})
      if (a.has(option)) notes.emplace_back(option + 2, a.value(option));
    const ExportedFile done = export_arrays(session.comm(), path, arrays, output, notes);
    if (!session.root()) return static_cast<int>(kDone);
    if (a.has("--json"))
      fmt::print("{}\n", to_line({{"checkpoint", path.string()},
                                  {"output", output.string()},
                                  {"tensors", done.arrays},
                                  {"bytes", done.bytes},
                                  {"files_read", files}}));
    else
      fmt::print("{}: {} tensors of {}, {}; read {} of its {} files\n", output.string(), done.arrays, path.string(),
                 size_text(done.bytes), files.size(), manifest.files.size());
    return static_cast<int>(kDone);
  });
}

}  // namespace emox
