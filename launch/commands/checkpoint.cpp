// `emox checkpoint`: which part is meant; verify and prune.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <system_error>

#include "launch/checkpoint_tool/checkpoint_tool.h"
#include "launch/commands/command.h"
#include "launch/config/arguments.h"
#include "launch/config/nearest.h"
#include "launch/run/failure.h"
#include "launch/run/find_checkpoint.h"
#include "launch/run/lease.h"
#include "launch/run/on_ranks.h"
#include "parallel/checkpoint/inspect.h"
#include "parallel/checkpoint/layout.h"
#include "parallel/checkpoint/verify.h"
#include "parallel/comm/together.h"
#include "runtime/core/error.h"
#include "runtime/telemetry/metrics.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

struct Part {
  const char* name;
  int (*run)(const std::vector<std::string>& args);
};
constexpr Part kParts[] = {{"info", checkpoint_info},
                           {"verify", checkpoint_verify},
                           {"diff", checkpoint_diff},
                           {"export", checkpoint_export},
                           {"prune", checkpoint_prune}};

double gib_per_s(const CheckpointSurvey& s) { return static_cast<double>(s.bytes) / s.seconds / (1 << 30); }

void print_survey(const CheckpointSurvey& s) {
  if (s.intact()) {
    fmt::print("{}: intact: {} files, {} datasets, {}, {:.2f} GiB/s\n", s.path.string(), s.files, s.datasets,
               size_text(s.bytes), gib_per_s(s));
    return;
  }
  fmt::print("{}: {}\n", s.path.string(), s.damage.empty() ? "NOT VERIFIED" : "DAMAGED");
  for (const std::string& message : s.damage) fmt::print("  {}\n", message);
  for (const std::string& message : s.unknown) fmt::print("  not verified: {}\n", message);
}

ordered_json to_json(const CheckpointSurvey& s) {
  ordered_json j{{"checkpoint", s.path.string()},
                 {"intact", s.intact()},
                 {"damage", s.damage},
                 {"not_verified", s.unknown},
                 {"files", s.files},
                 {"datasets", s.datasets},
                 {"bytes", s.bytes},
                 {"seconds", s.seconds}};
  return j;
}

/// Of what can be looked into: the rest is not removed either.
std::int64_t bytes_in(const fs::path& directory) {
  std::int64_t bytes = 0;
  std::error_code unknown;
  fs::recursive_directory_iterator at(directory, fs::directory_options::skip_permission_denied, unknown);
  for (const fs::recursive_directory_iterator end; at != end; at.increment(unknown))
    if (at->is_regular_file(unknown) && !at->is_symlink(unknown))
      if (const auto size = at->file_size(unknown); !unknown) bytes += static_cast<std::int64_t>(size);
  return bytes;
}

struct Pruned {
  std::vector<std::pair<std::string, std::int64_t>> removed;  ///< names, oldest first, and bytes
  std::int64_t bytes = 0, kept = 0;
};

Pruned prune(const fs::path& directory, int keep_last, std::int64_t keep_every_steps, bool dry_run) {
  std::map<std::string, std::int64_t> sizes;
  for (const fs::path& checkpoint : list_checkpoints(directory))
    sizes.emplace(checkpoint.filename().string(), bytes_in(checkpoint));
  const std::vector<fs::path> removed = dry_run ? prunable_checkpoints(directory, keep_last, keep_every_steps)
                                                : prune_checkpoints(directory, keep_last, keep_every_steps);
  Pruned result;
  for (auto at = removed.rbegin(); at != removed.rend(); ++at) {
    const std::string name = at->filename().string();
    result.removed.emplace_back(name, sizes[name]);
    result.bytes += sizes[name];
  }
  result.kept = static_cast<std::int64_t>(sizes.size() - removed.size());
  return result;
}

void print_pruned(const fs::path& directory, const Pruned& pruned, bool dry_run) {
  const char* what = dry_run ? "would remove" : "removed";
  for (const auto& [name, bytes] : pruned.removed)
    fmt::print("{} {} ({})\n", what, (directory / name).string(), size_text(bytes));
  fmt::print("{} {} checkpoint(s), {}; {} left\n", what, pruned.removed.size(), size_text(pruned.bytes), pruned.kept);
}

}  // namespace

int checkpoint_verify(const std::vector<std::string>& args) {
  const Arguments a = parse_args(args, {.command = "emox checkpoint verify",
                                        .flags = {"--json"},
                                        .rank_keys = true,
                                        .min_positional = 1,
                                        .max_positional = 1,
                                        .positional = "RUN|CHECKPOINT"});
  return on_ranks(a.overrides, [&](Session& session) {
    bool intact = true;
    auto list = ordered_json::array();
    for (const fs::path& path : all_checkpoints(session, a.positional[0])) {
      const CheckpointSurvey survey = survey_checkpoint(session.comm(), path);
      // A run that goes on removes old ones.
      if (session.root() && !survey.intact() && !fs::exists(path)) continue;
      intact = intact && survey.intact();
      list.push_back(to_json(survey));
      if (session.root() && !a.has("--json")) print_survey(survey);
      std::fflush(stdout);
    }
    if (session.root() && a.has("--json")) fmt::print("{}\n", to_line({{"intact", intact}, {"checkpoints", list}}));
    return static_cast<int>(intact || !session.root() ? kDone : kFailed);
  });
}

int checkpoint_prune(const std::vector<std::string>& args) {
  const char* command = "emox checkpoint prune";
  const Arguments a = parse_args(args, {.command = command,
                                        .flags = {"--dry-run", "--json"},
                                        .options = {"--keep-last", "--keep-every-steps"},
                                        .rank_keys = true,
                                        .min_positional = 1,
                                        .max_positional = 1,
                                        .positional = "RUN --keep-last=N"});
  require<UsageError>(a.has("--keep-last"), "{}: how many of the newest are kept? Write --keep-last=N", command);
  const int keep_last = whole_number(command, "--keep-last", a.value("--keep-last"), 1);
  const int keep_every = whole_number(command, "--keep-every-steps", a.value("--keep-every-steps", "0"), 0);
  const bool dry_run = a.has("--dry-run");
  return on_ranks(a.overrides, [&](Session& session) {
    on_root(session.comm(), [&] {
      const fs::path directory = checkpoints_directory(a.positional[0]);
      require<UsageError>(!list_checkpoints(directory).empty(), "{}: {} holds no checkpoints", command,
                          directory.string());
      // Not beside a job that saves and prunes there itself.
      std::unique_ptr<RunLease> lease;
      if (!dry_run && directory.filename() == "checkpoints")
        lease = std::make_unique<RunLease>(directory.parent_path(), LeaseHolder::self({command}));
      const Pruned pruned = refusing_unusable([&] { return prune(directory, keep_last, keep_every, dry_run); });
      if (!a.has("--json")) return print_pruned(directory, pruned, dry_run);
      ordered_json names = ordered_json::array();
      for (const auto& [name, bytes] : pruned.removed) names.push_back(name);
      fmt::print("{}\n",
                 to_line({{"dry_run", dry_run}, {"removed", names}, {"bytes", pruned.bytes}, {"kept", pruned.kept}}));
    });
    return static_cast<int>(kDone);
  });
}

int run_checkpoint(const std::vector<std::string>& args) {
  std::vector<std::string> names;
  for (const Part& part : kParts) names.emplace_back(part.name);
  require<UsageError>(!args.empty(), "emox checkpoint: what? {}; emox checkpoint --help", fmt::join(names, ", "));
  for (const Part& part : kParts)
    if (args[0] == part.name) return part.run({args.begin() + 1, args.end()});
  fail<UsageError>("emox checkpoint: unknown part {}: did you mean {}?", args[0], nearest(args[0], names));
}

}  // namespace emox
