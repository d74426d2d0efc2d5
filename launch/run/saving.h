// When and how a training run saves: at once, or in the background beside the next steps; and what it says about it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "launch/run/run_start.h"
#include "launch/run/session.h"
#include "launch/run/sharding.h"
#include "model/optim/optimizer.h"
#include "model/transformer/language_model.h"
#include "parallel/checkpoint/saver.h"
#include "runtime/core/error.h"

namespace emox {

class RunSaver {
 public:
  /// Collective. `directory` is the run's checkpoints/. Everything, the model's memory too, must outlive this object.
  /// Where checkpoint.async is set, takes the memory for a copy of what this rank saves.
  RunSaver(Session& session, const RunStart& start, std::filesystem::path directory, const LanguageModel& model,
           const Optimizer& optimizer, Sharding& sharding);

  /// This rank's vote in the step's all-reduce.
  bool finished() const { return saver_.finished(); }
  bool running() const { return saver_.running(); }
  /// Collective. Takes the running save a stage further; every rank must have voted for it.
  void advance();

  /// Collective: saves the state after `step`. In the background this returns when the state is copied, and a failure
  /// is reported at a later step and by throw_failures(); otherwise it throws. While another save is running it waits
  /// for that, or leaves this step out and returns false if checkpoint.when_busy says so and it is not the `last` one.
  /// `spikes`: SpikeGuard::state(), null without one.
  bool save(std::int64_t step, std::int64_t optimizer_step, bool last, const nlohmann::json& spikes);
  /// Collective. Waits until nothing is being saved.
  void settle();
  /// Throws an IoError when a save in the background failed.
  void throw_failures() const;

  /// Of the newest finished save, with all its writing; 0: none yet.
  double seconds() const { return seconds_; }
  /// Host memory of the copy; 0 without checkpoint.async, unless the model lies on a device.
  std::int64_t buffer_bytes() const { return saver_.buffer_bytes(); }

 private:
  CheckpointMeta meta_of(std::int64_t step, std::int64_t optimizer_step, const nlohmann::json& spikes);
  void report(const SavedCheckpoint& saved);
  void warn_of_remains(const SavedCheckpoint& saved);
  void report_failure(const IoError& failure);

  Session& s_;
  const RunStart& start_;
  Sharding& sharding_;
  CheckpointSaver saver_;
  std::int64_t step_ = 0;  ///< of the running save
  double seconds_ = 0;
  std::vector<std::string> failures_;
};

/// {"expert_parallel": ..., "data_parallel": ...}
nlohmann::json to_json(const MeshLayout& mesh);

/// One line: on which ranks the checkpoint was saved, on which it is loaded, what rank 0 read of it.
std::string describe_load(const Manifest& manifest, Sharding& sharding, const LoadReport& report);

}  // namespace emox
