// The first lines of a run's log: what is trained, on what, with how much memory.
#pragma once

#include <cstddef>

#include "data/loader/loader.h"
#include "launch/config/recipe.h"
#include "launch/run/gemm_rate.h"
#include "launch/run/session.h"
#include "launch/run/sharding.h"
#include "model/training/training_step.h"
#include "model/transformer/language_model.h"

namespace emox {

struct Announced {
  const Recipe& recipe;
  LanguageModel& model;
  TrainingStep& step;
  Sharding& sharding;
  const Loader& loader;
  const GemmFloor& floor;
  std::size_t save_bytes = 0;  ///< host memory of the copy for saving
};
void announce(Session& session, const Announced& run);

}  // namespace emox
