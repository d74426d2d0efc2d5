// Trains and measures cells one after another: what a study and a tuning have in common.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "data/loader/identity.h"
#include "launch/analysis/study/cells.h"
#include "launch/run/lease.h"
#include "launch/run/session.h"

namespace emox {

struct CellsRequest {
  Recipe base;
  CellOptions options;
  std::vector<StudyCell> cells;
  std::vector<std::string> command;  ///< for the cells' run.json
  LeaseTiming timing = {};
  std::vector<std::filesystem::path> look_in = {};  ///< as TrainOptions::look_in
  /// Called on every rank when a cell's loss is not finite any more, and the next cell follows; empty: the error ends
  /// it.
  std::function<void(const StudyCell&)> diverged = {};
};

/// Collective. Trains every cell that is not finished, and measures its retention (cell_retention.h). The lease of
/// base.run.dir is held meanwhile: TryAgainError while another job has it. `begin` runs on rank 0 when it is held (it
/// is given what the data are), and `write` there after each cell is trained or measured. UsageError, before anything
/// is trained, when base.run.dir holds a training run, when a source has no held-out documents, or when a cell that is
/// there was made by a recipe of other values or from other data. False: stopped; the same call goes on.
bool run_cells(Session& session, const CellsRequest& request, const std::function<void(const DataIdentity&)>& begin,
               const std::function<void()>& write);

/// On one rank. UsageError unless what is there of the cell was made by this recipe from these data.
void check_cell(const StudyCell& cell, const DataIdentity& data);

}  // namespace emox
