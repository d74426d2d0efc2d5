// Training runs small enough for a test, on ranks as threads, and everything that two of them can differ in.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <tuple>
#include <vector>

#include "launch/config/recipe.h"
#include "model/training/training_step.h"
#include "parallel/comm/device_communicator.h"
#include "runtime/core/accelerator.h"

namespace emox::test {

/// Writes four small corpora of real text (Debian's licence texts; this repository's where one is missing), as
/// `emox corpus` lays them out, and returns their `label:weight:path` lines.
std::vector<std::string> make_text_sources(const std::filesystem::path& directory);

/// A complete EMO recipe on these sources: two layers, 8 routed experts and a shared one, 12 sequences of 64 bytes a
/// step.
Recipe tiny_recipe(const std::vector<std::string>& sources);

/// The same with another token that ends a document: recorded data have their own.
inline StepConfig with_eos(StepConfig config, std::int32_t eos) {
  config.eos = eos;
  return config;
}

/// Writes the recipe as an INI file and returns its path.
std::filesystem::path write_recipe(const std::filesystem::path& file, const Recipe& recipe);
/// The lines of a run's metrics.jsonl without what a clock decides. Fails the test on a line that is not JSON.
std::vector<nlohmann::json> read_metrics(const std::filesystem::path& run);
/// Steps 1, 2, ... `last`, each once; a checkpoint of the last one in both runs with equal tensors, bit for bit.
void expect_same_history(const std::filesystem::path& run, const std::filesystem::path& other, std::int64_t last);
/// One step's routing, in the order of the global batch, whichever rank computed it: T = batch_sequences *
/// sequence_length.
struct Routing {
  std::vector<std::int32_t> ids;  ///< [L,T,k], rising
  std::vector<float> p;           ///< [L,T,n], 0 outside the pool
  std::vector<double>
      choice_gap;  ///< [L,T] logit (p + bias, with a bias) of the last pick - that of the next expert of the pool
  std::vector<double> pool_gap;  ///< [L,T] relative difference of the scores on both sides of the pool's edge
};

using NamedValues = std::map<std::string, std::vector<float>>;
using Draws = std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int32_t>, std::int64_t>;

struct TrainingRun {
  std::vector<StepMetrics> steps;
  std::vector<Routing> routing;  ///< a step each, if asked for
  Draws draws;  ///< (step, layer, sequence, document) -> pool size; document -1 - position: whether a token is free
  NamedValues gradients;             ///< of the last step, summed over ranks
  NamedValues weights;               ///< at the end; of rounded ones, those they are rounded from
  std::vector<QueueCounters> queue;  ///< of rank 0's device: at first, then of each step before and after the update
  std::vector<float> bias;           ///< selection bias at the end
};

struct RunOptions {
  int ranks = 1;
  int ranks_per_node = 0;  ///< simulated nodes; 0: one
  std::int64_t steps = 1;
  std::int64_t first_step = 1;
  bool record_routing = false;         ///< only where a rank's share is one micro-batch
  const NamedValues* start = nullptr;  ///< weights to begin with; null: drawn from run.seed
  int timeout_s = 120;
  Context context = {};  ///< where and in which type: of one rank only where that is a device
  /// Ranks compute on devices, whose tensors go over this, in the type of `context`.
  MakeDeviceTransport transport = {};
  bool own_devices = true;  ///< rank r on device r, else all on device 0
};

/// TrainingStep on the sequences of a Loader, as `emox train` does it. Every rank must end with the same numbers.
TrainingRun train_on_threads(const Recipe& recipe, const RunOptions& options);

}  // namespace emox::test
