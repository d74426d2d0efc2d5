// Runs the cells of a study one after another and reports what they found (design section 5, "Study").
#pragma once

#include <string>
#include <vector>

#include "launch/config/recipe.h"
#include "launch/report/retention.h"
#include "launch/study/cells.h"
#include "launch/train/lease.h"
#include "launch/train/session.h"

namespace emox {

struct StudyOutcome {
  std::vector<RetentionRow> rows;  ///< on rank 0: of all finished cells, those of earlier calls, too
  bool complete = false;           ///< on all ranks; false: stopped, the same call goes on
};

/// Collective. Trains every cell that is not finished on all ranks of the session, into base.run.dir/cells/NAME,
/// measures its retention (cell_retention.h), and writes base.run.dir/retention.csv and report.html after each: of all
/// cells of this recipe that are there, whichever call made them. The directory's lease is held meanwhile:
/// TryAgainError while another job has it. UsageError, before anything is trained, when base.run.dir holds a training
/// run, when a source has no held-out documents, or when a cell that is there was made by a recipe of other values.
StudyOutcome run_study_cells(Session& session, const Recipe& base, const std::vector<StudyCell>& cells,
                             const std::vector<std::string>& command, const LeaseTiming& timing = {});

}  // namespace emox
