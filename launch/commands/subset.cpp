// `emox subset`: a smaller model cut out of a checkpoint.
#include <fmt/format.h>

#include "launch/checkpoint_tool/checkpoint_tool.h"
#include "launch/commands/command.h"
#include "launch/commands/selection_arguments.h"
#include "launch/config/arguments.h"
#include "launch/config/recipe_file.h"
#include "launch/run/extract_subset.h"
#include "launch/run/failure.h"
#include "launch/run/find_checkpoint.h"
#include "launch/run/on_ranks.h"
#include "runtime/core/error.h"
#include "runtime/telemetry/metrics.h"

namespace emox {

int run_subset(const std::vector<std::string>& args) {
  const Arguments a = parse_args(args, {.command = "emox subset",
                                        .flags = {"--json"},
                                        .options = {"--experts", "--output"},
                                        .rank_keys = true,
                                        .min_positional = 1,
                                        .max_positional = 1,
                                        .positional = "RUN|CHECKPOINT --experts=FILE.json --output=DIR"});
  for (const char* option : {"--experts", "--output"})
    require<UsageError>(!a.value(option).empty(),
                        "emox subset: {} is missing; usage: emox subset RUN|CHECKPOINT "
                        "--experts=FILE.json --output=DIR",
                        option);
  const std::string source = a.value("--experts");
  const ExpertSubset subset = ExpertSubset::from_file(source);
  return on_ranks(a.overrides, [&](Session& session) {
    // Damage in files that are not needed does not matter.
    const FoundCheckpoint found = find_checkpoint(session, a.positional[0], Glance::Sizes);
    const auto& path = found.path;
    if (session.root())
      warn_of_other_run(session.log(), subset, source, parse_recipe(found.manifest.recipe, "manifest.json").run, path);
    const ExtractedSubset done = extract_subset(session, path, subset, source, a.value("--output"));
    if (!session.root()) return static_cast<int>(kDone);
    if (a.has("--json"))
      fmt::print("{}\n", to_line({{"checkpoint", path.string()},
                                  {"output", done.checkpoint.string()},
                                  {"experts_kept", subset.keep(0)},
                                  {"tensors", done.tensors},
                                  {"bytes", done.bytes},
                                  {"bytes_read", done.bytes_read},
                                  {"files_read", done.files_read}}));
    else
      fmt::print("{}: {} of {} experts a layer, {} tensors, {}; read {} of {} files\n", done.checkpoint.string(),
                 subset.keep(0), subset.experts, done.tensors, size_text(done.bytes), done.files_read, done.files);
    return static_cast<int>(kDone);
  });
}

}  // namespace emox
