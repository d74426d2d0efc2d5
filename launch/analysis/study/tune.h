// Choosing each model's settings on a part of the held-out documents that no report reads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launch/analysis/study/run_cells.h"

namespace emox {

/// What one cell of a tuning found.
struct TuneRow {
  std::string model;
  std::int64_t seed = 0;
  std::string settings;  ///< "train.learning_rate=0.008"
  std::int64_t steps = 0;
  double loss = 0;  ///< of the full model, nats a token, mean over domains of the tuning part; infinite: it diverged
  std::int64_t experts_kept = 0;  ///< the fewest of kept_numbers(); 0: the model has no part of its experts to keep
  double rise = 0;                ///< of the loss with so many, chosen for each domain from its training documents
};

/// tune.csv: model,seed,settings,steps,loss,experts_kept,rise; the last two are empty where there is no such part. The
/// loss of a run that diverged is the word `diverged`.
std::string write_tune(const std::vector<TuneRow>& rows);
std::vector<TuneRow> read_tune(const std::string& text, const std::string& name);

/// A table, model by model, the best loss (mean over seeds) first, and what --set would take it over.
std::string tune_summary(const std::vector<TuneRow>& rows);

struct TuneOutcome {
  std::vector<TuneRow> rows;  ///< on rank 0: of the finished cells of this call, and of those that diverged
  bool complete = false;      ///< on all ranks
};

/// Collective: run_cells() of tuning_cells(). Writes base.run.dir/tune.csv after each. A row of another call stays in
/// it if its run is there and was made by this recipe with the row's settings and length, from the same data; the log
/// names the others. A cell that diverges is a result, too; the same call tries it again.
TuneOutcome run_tuning(Session& session, const CellsRequest& request);

}  // namespace emox
