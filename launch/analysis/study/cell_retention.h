// What a finished cell of a study loses when it keeps a part of its experts (spec 6).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "launch/analysis/report/retention.h"
#include "launch/analysis/study/cells.h"
#include "launch/run/session.h"

namespace emox {

/// The cell's rows that are measured: "full" of each domain, from its final evaluation, and what measure_retention()
/// has written. Empty while there is no final evaluation. A domain whose held-out part had no token to score has none.
std::vector<RetentionRow> cell_rows(const StudyCell& cell);
/// The losses that the rows "random" are the means of.
std::vector<ChanceRow> cell_chance(const StudyCell& cell);
/// Its cross entropy, step by step, from its metrics.jsonl; empty when there is none.
std::vector<std::pair<std::int64_t, double>> cell_training(const StudyCell& cell);
/// Whether the cell is trained and every row of it is there.
bool cell_is_complete(const StudyCell& cell);

/// Collective; the cell is trained. Domain by domain, the held-out loss with the numbers of experts of the cell's plan:
/// chosen by greedy layerwise selection from training documents of the domain, from one of them, and the mean over
/// random subsets, which are drawn for every domain anew. Adds each domain's rows to retention-step-NNNNNNNN.csv and
/// chance-step-NNNNNNNN.csv in the cell's directory when it is done with it, and does not repeat those that are there.
/// `go_on`, asked before each domain, is collective too; false: stops there. Returns false, and measures nothing, when
/// the newest intact checkpoint is not that of the last step: the final evaluation was of another model.
bool measure_retention(Session& session, const StudyCell& cell, const std::function<bool()>& go_on);

}  // namespace emox
