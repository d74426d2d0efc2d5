#include "launch/run/saving.h"

#include <fmt/format.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <utility>

#include "launch/config/recipe_file.h"
#include "launch/run/model_pieces.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }
double mib(std::int64_t bytes) { return static_cast<double>(bytes) / 1048576; }

SaverOptions options_of(Context& ctx, const CheckpointConfig& c) {
  return {.background = c.async,
          .retention = {.keep_last = static_cast<int>(c.keep_last), .keep_every_steps = c.keep_every_steps},
          .context = &ctx};
}

std::string describe_mesh(const nlohmann::json& mesh, int ranks) {
  if (mesh.is_null()) return fmt::format("{} rank(s)", ranks);
  return fmt::format("{} rank(s) (experts over {}, {} replica(s))", ranks, mesh["expert_parallel"].get<int>(),
                     mesh["data_parallel"].get<int>());
}

nlohmann::json placement_of(Sharding& sharding) {
  if (sharding.experts() == nullptr) return nullptr;
  return sharding.experts()->placement().to_json();
}

}  // namespace

nlohmann::json to_json(const MeshLayout& mesh) {
  return {{"expert_parallel", mesh.expert_parallel()}, {"data_parallel", mesh.data_parallel()}};
}

RunSaver::RunSaver(Session& session, const RunStart& start, std::filesystem::path directory, const LanguageModel& model,
                   const Optimizer& optimizer, Sharding& sharding)
    : s_(session),
      start_(start),
      sharding_(sharding),
      saver_(session.comm(), std::move(directory), pieces_to_save(model, optimizer, session.root()),
             options_of(session.ctx(), start.recipe.checkpoint)) {}

CheckpointMeta RunSaver::meta_of(std::int64_t step, std::int64_t optimizer_step, const nlohmann::json& spikes) {
  CheckpointMeta meta;
  meta.tokens = start_.tokens_after(step);
  meta.seed = static_cast<std::uint64_t>(start_.recipe.run.seed);
  meta.recipe = to_ini(start_.recipe);
  meta.extra = start_.to_extra();
  meta.extra["data_step"] = step;
  meta.extra["optimizer_step"] = optimizer_step;
  if (!spikes.is_null()) meta.extra["spikes"] = spikes;
  meta.mesh = to_json(sharding_.mesh().layout());
  meta.placement = placement_of(sharding_);
  return meta;
}

bool RunSaver::save(std::int64_t step, std::int64_t optimizer_step, bool last, const nlohmann::json& spikes) {
  const Span span(s_.ctx(), "phase.checkpoint");
  if (running() && !last && start_.recipe.checkpoint.when_busy == WhenBusy::Skip) {
    s_.log().info("step {} is not saved: step {} is still being written (checkpoint.when_busy = skip)", step, step_);
    return false;
  }
  settle();
  step_ = step;
  const auto start = Clock::now();
  if (start_.recipe.checkpoint.async) {
    saver_.start(s_.ctx(), step, meta_of(step, optimizer_step, spikes));
    s_.log().detail("step {}: {:.1f} MiB copied in {:.4f} s, to be written beside the next steps", step,
                    mib(saver_.bytes()), seconds_since(start));
    return true;
  }
  const SavedCheckpoint saved = saver_.save(step, meta_of(step, optimizer_step, spikes));
  seconds_ = seconds_since(start);
  s_.log().info("saved {} in {:.2f} s", saved.path.string(), seconds_);
  warn_of_remains(saved);
  return true;
}

void RunSaver::advance() {
  try {
    if (const auto saved = saver_.advance()) report(*saved);
  } catch (const IoError& e) {
    report_failure(e);
  }
}

void RunSaver::settle() {
  while (running()) advance();
}

void RunSaver::warn_of_remains(const SavedCheckpoint& saved) {
  if (!saved.aside.empty())
    s_.log().warn(
        "{} was there already and this job did not write it: it is kept as {}; remove it when it is not needed",
        saved.path.string(), saved.aside.string());
  if (!saved.not_removed.empty())
    s_.log().warn("older checkpoints could not be removed, the next save tries again: {}", saved.not_removed);
}

void RunSaver::report(const SavedCheckpoint& saved) {
  seconds_ = saved.write_seconds + saved.commit_seconds;
  s_.log().info("saved {}, written beside training in {:.2f} s", saved.path.string(), seconds_);
  warn_of_remains(saved);
}

// Training goes on: an earlier checkpoint is there, and the next save may succeed.
void RunSaver::report_failure(const IoError& failure) {
  failures_.push_back(fmt::format("step {}: {}", step_, failure.message()));
  s_.log().warn("the save of step {} failed, training goes on: {}", step_, failure.message());
}

void RunSaver::throw_failures() const {
  if (failures_.empty()) return;
  fail<IoError>("{} save(s) in the background failed; the last: {}. The steps themselves are not affected",
                failures_.size(), failures_.back());
}

std::string describe_load(const Manifest& manifest, Sharding& sharding, const LoadReport& report) {
  const MeshLayout& mesh = sharding.mesh().layout();
  const bool same = manifest.mesh == to_json(mesh) && manifest.placement == placement_of(sharding);
  const std::string read =
      fmt::format("read {:.1f} MiB from {} file(s), each once", mib(report.all_bytes), report.all_files);
  if (same) return fmt::format("same ranks and placement as it was saved with; {}", read);
  return fmt::format("resharded: saved by {}, loaded by {}{}; {}", describe_mesh(manifest.mesh, manifest.world_size),
                     describe_mesh(to_json(mesh), mesh.ranks()),
                     manifest.placement == placement_of(sharding) ? "" : ", experts placed anew", read);
}

}  // namespace emox
