// A run that begins with the weights, or also with the optimizer's moments, of another run's checkpoint: keys
// run.warm_start and run.warm_start_state.
#pragma once

#include <cstdint>

#include "launch/config/recipe.h"
#include "launch/run/session.h"
#include "model/optim/optimizer.h"
#include "model/transformer/language_model.h"
#include "parallel/checkpoint/manifest.h"

namespace emox {

/// Collective. Fills the model, and with warm_start_state = optimizer the optimizer's moments, from what
/// recipe.run.warm_start names, however that was sharded, and says in the log which keys of the recipes differ. The
/// optimizer then counts the steps that its moments have seen. UsageError, before any weight is read, that lists every
/// array that is missing, left over or of another shape; also when there is no checkpoint, or a damaged one. A
/// selection bias (balance = bias) is loaded where both have one; otherwise it is zero, or dropped, and the log says
/// so.
void warm_start(Session& session, const Recipe& recipe, const LanguageModel& model, Optimizer& optimizer);

/// The optimizer's steps that the moments in a checkpoint have seen; more than its step after a warm start with them.
std::int64_t optimizer_steps(const Manifest& checkpoint);

}  // namespace emox
