// The report of runs beside each other: one HTML file that needs nothing else, a table for other programs, and a few
// lines of text.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "launch/analysis/runs/run_figures.h"
#include "launch/analysis/runs/scaling_law.h"

namespace emox {

/// What is known of a set of runs. Names are made unique: of two runs called alike the directories are added.
struct RunReport {
  std::vector<RunHistory> runs;
  std::vector<RunFigures> figures;
  std::vector<Scaling> scaling;
  LawFit law;                        ///< of finished runs, by held-out loss where all have one
  std::vector<LawPoint> law_points;  ///< what it is fitted to
  bool law_held_out = false;
  std::vector<RunFigures> against;  ///< the other set, if any
};
RunReport make_report(std::vector<RunHistory> runs, const std::vector<RunHistory>& against = {});

/// A pure function: the same runs give the same bytes. Well-formed as XML, too. The figures are inside as JSON
/// (script#figures) and as tables.
std::string runs_html(const RunReport& report, const std::string& title);
/// A line a run, a header first.
std::string runs_csv(const RunReport& report);
/// The same, for the page.
nlohmann::ordered_json runs_json(const RunReport& report);
/// For a terminal of 80 columns.
std::string runs_text(const RunReport& report);

}  // namespace emox
