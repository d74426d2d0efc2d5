// What a finished cell of a study loses when it keeps a part of its experts (spec 6).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "launch/report/retention.h"
#include "launch/study/cells.h"
#include "launch/train/session.h"

namespace emox {

/// Experts a layer, shared included, that are half, a quarter and an eighth of all, rounded half up: falling, without
/// repetition, at least one routed one, never all of them.
std::vector<std::int64_t> kept_numbers(const ModelConfig& model);

/// The cell's rows that are measured: "full" of each domain, from its final evaluation, and what measure_retention()
/// has written. Empty while there is no final evaluation.
std::vector<RetentionRow> cell_rows(const StudyCell& cell);
/// Whether the cell is trained and every row of it is there.
bool cell_is_complete(const StudyCell& cell);

/// Collective; the cell is trained. Domain by domain, the held-out loss with kept_numbers() of the experts: chosen by
/// greedy layerwise selection from training documents of the domain, from one of them, and at random. Adds each
/// domain's rows to retention-step-NNNNNNNN.csv in the cell's directory when it is done with it, and does not repeat
/// those that are there. `go_on`, asked before each domain, is collective too; false: stops there. Returns false, and
/// measures nothing, when the newest intact checkpoint is not that of the last step: the final evaluation was of
/// another model.
bool measure_retention(Session& session, const StudyCell& cell, const std::function<bool()>& go_on);

}  // namespace emox
