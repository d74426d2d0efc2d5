// How the loss of a study's models fell while they were trained.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "launch/analysis/report/notes.h"
#include "launch/analysis/report/plot.h"

namespace emox {

/// The cross entropy of every step that has one, from the text of a metrics.jsonl, in its order. Lines that are no
/// record of a step are passed over: a job may have ended in the middle of one.
std::vector<std::pair<std::int64_t, double>> training_losses(const std::string& metrics);

/// One line a model: mean over a fiftieth of the steps, then over the seeds: nothing where a seed has none. Without
/// lines when there are no losses.
Plot training_plot(const StudyNotes& notes);
/// Steps whose mean is one point of the plot; 0 when there are none.
std::int64_t training_window(const StudyNotes& notes);

}  // namespace emox
