// The report of a study for a terminal.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "launch/analysis/report/figures.h"
#include "launch/analysis/report/html.h"
#include "launch/analysis/report/plot.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

/// EMO against the standard MoE.
std::string comparison(const Curves& c, const StudyNotes& notes) {
  const Compared both = compare(c, "emo", "standard");
  if (both.nats.empty()) return "";
  const auto nats = over_seeds(both.nats), relative = over_seeds(both.relative);
  const std::string seeds = nats->seeds > 1 ? fmt::format(" ({} seeds)", nats->seeds) : "";
  const std::string half = nats->seeds > 1 ? fmt::format(" +- {:.4f}", nats->half) : "";
  std::string text = fmt::format("{}, less {}, of the same seeds:\n", notes.label("emo"), notes.label("standard"));
  text += fmt::format("  full model: {:+.4f}{} nats, {:+.1f} %{}\n", nats->mean, half, 100 * relative->mean, seeds);
  for (const Compared::Rise& rise : both.rises)
    text += fmt::format("  rise with {} kept: {} of the other's\n", percent_text(rise.share),
                        figure_text(over_seeds(rise.ratio), {.factor = 100, .digits = 1, .unit = " %"}));
  return text;
}

std::string rounding(const std::vector<RetentionRow>& rows, const StudyNotes& notes) {
  const auto spreads = rounding_spreads(rows, notes.repeats);
  if (spreads.empty()) return "";
  double most = 0;
  for (const RoundingSpread& s : spreads) most = std::max(most, std::abs(s.full));
  return fmt::format("Full models of one seed that differ in rounding only: up to {:.4f} nats apart\n({} pair(s)).\n",
                     most, spreads.size());
}

}  // namespace

std::string report_summary(const std::vector<RetentionRow>& rows, const StudyNotes& notes) {
  require<UsageError>(!rows.empty(), "the report of a study without any results: nothing has been evaluated yet");
  const Curves c(rows);
  std::size_t width = 8;
  for (const std::string& model : c.models()) width = std::max(width, notes.label(model).size());
  std::string text = fmt::format("Held-out loss, nats a token, mean over {} domain(s){}\n", c.domains().size(),
                                 c.seeds().size() > 1 ? "; +- 95 % over seeds" : "");
  for (const std::string& model : c.models())
    text += fmt::format("  {:<{}}  {}\n", notes.label(model), width, figure_text(c.full_loss(model)));
  text += comparison(c, notes) + rounding(rows, notes);
  if (c.selections().empty()) return text + "No experts were left out yet: no retention to show.\n";
  for (const std::string& selection : c.selections()) {
    text += fmt::format("Rise of the loss with experts chosen by: {}\n", selection);
    for (const double share : c.shares(selection)) {
      if (share == 1) continue;
      for (const std::string& model : c.models())
        if (c.experts(model) > 1 && !c.rises(model, selection, share).empty())
          text += fmt::format("  {:>7} kept  {:<{}}  {}\n", percent_text(share), notes.label(model), width,
                              figure_text(c.rise(model, selection, share), {.sign = true}));
    }
  }
  for (const std::string& remark : notes.remarks) text += fmt::format("{}\n", remark);
  return text;
}

}  // namespace emox
