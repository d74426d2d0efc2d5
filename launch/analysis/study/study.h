// Runs the cells of a study one after another and reports what they found (design section 5, "Study").
#pragma once

#include <string>
#include <vector>

#include "launch/analysis/report/notes.h"
#include "launch/analysis/report/retention.h"
#include "launch/analysis/study/run_cells.h"

namespace emox {

struct StudyOutcome {
  std::vector<RetentionRow> rows;  ///< on rank 0: of all finished cells, those of earlier calls, too
  StudyNotes notes;                ///< there, too
  bool complete = false;           ///< on all ranks; false: stopped, the same call goes on
};

/// Collective: run_cells() in base.run.dir/cells. Writes base.run.dir/retention.csv, chance.csv (the draws behind the
/// rows "random"), repeats.csv (the rows of repeated cells), retention.svg, loss.svg and report.html after each: of all
/// cells of this recipe and these settings that are there, whichever call made them.
StudyOutcome run_study_cells(Session& session, const CellsRequest& request);

}  // namespace emox
