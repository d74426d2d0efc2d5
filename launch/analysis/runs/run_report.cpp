#include "launch/analysis/runs/run_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "launch/analysis/report/csv.h"
#include "runtime/core/idx.h"
#include "runtime/telemetry/json_text.h"

namespace emox {
namespace {

/// What the table for other programs holds, in its order.
using RunColumns = std::vector<std::pair<const char*, double>>;
RunColumns columns_of(const RunFigures& f) {
  RunColumns c = {{"ranks", f.ranks},
                  {"nodes", f.nodes},
                  {"steps", static_cast<double>(f.steps)},
                  {"of_steps", static_cast<double>(f.of_steps)},
                  {"tokens", static_cast<double>(f.tokens)},
                  {"tokens_per_step", static_cast<double>(f.tokens_per_step)},
                  {"active_parameters_without_embeddings", f.parameters},
                  {"train_loss", f.train_loss},
                  {"held_out_loss", f.held_out},
                  {"bits_per_byte", f.bits_per_byte},
                  {"step_s", f.step_s.value},
                  {"step_s_low", f.step_s.low},
                  {"step_s_high", f.step_s.high},
                  {"tokens_per_s", f.tokens_per_s.value},
                  {"tokens_per_s_low", f.tokens_per_s.low},
                  {"tokens_per_s_high", f.tokens_per_s.high},
                  {"gemm_floor_fraction", f.gemm_floor_fraction},
                  {"load_max_over_mean", f.load_max_over_mean},
                  {"rows_sent_per_token", f.rows_sent_per_token},
                  {"nodes_per_token", f.nodes_per_token},
                  {"bytes_intra_node", f.bytes_intra_node},
                  {"bytes_inter_node", f.bytes_inter_node},
                  {"exposed_comm_s", f.exposed_comm_s},
                  {"load_balance", f.load_balance},
                  {"communication_efficiency", f.communication_efficiency},
                  {"parallel_efficiency", f.parallel_efficiency},
                  {"counted_steps", static_cast<double>(f.counted)},
                  {"left_out_steps", static_cast<double>(f.left_out)},
                  {"restarts", static_cast<double>(f.restarts)},
                  {"changes", static_cast<double>(f.changes)}};
  for (std::size_t p = 0; p < kPhases.size(); ++p) c.emplace_back(kPhases[p], f.phase_s[p]);
  return c;
}

void name_apart(std::vector<RunFigures>& figures, const std::vector<RunHistory>& runs) {
  std::map<std::string, int> times;
  for (const RunFigures& f : figures) ++times[f.name];
  for (std::size_t i = 0; i < figures.size(); ++i)
    if (times[figures[i].name] > 1) figures[i].name += " (" + runs[i].directory.string() + ")";
}

}  // namespace

RunReport make_report(std::vector<RunHistory> runs, const std::vector<RunHistory>& against) {
  RunReport r;
  r.runs = std::move(runs);
  for (const RunHistory& run : r.runs) r.figures.push_back(figures_of(run));
  name_apart(r.figures, r.runs);
  for (const RunHistory& run : against) r.against.push_back(figures_of(run));
  r.scaling = scaling_of(r.runs, r.figures);
  r.law_held_out = std::all_of(r.figures.begin(), r.figures.end(),
                               [](const RunFigures& f) { return !f.finished || std::isfinite(f.held_out); });
  for (const RunFigures& f : r.figures)
    if (f.finished)
      r.law_points.push_back({f.parameters, static_cast<double>(f.tokens), r.law_held_out ? f.held_out : f.train_loss});
  r.law = fit_scaling_law(r.law_points);
  return r;
}

std::string runs_csv(const RunReport& report) {
  std::vector<std::string> head{"run", "directory"};
  for (const auto& [name, value] : columns_of({})) head.emplace_back(name);
  std::string text = csv_line(head);
  for (std::size_t i = 0; i < report.figures.size(); ++i) {
    std::vector<std::string> line{report.figures[i].name, report.runs[i].directory.string()};
    for (const auto& [name, value] : columns_of(report.figures[i]))
      line.push_back(std::isfinite(value) ? fmt::format("{:.9g}", value) : "");
    text += csv_line(line);
  }
  return text;
}

std::string runs_text(const RunReport& report) {
  std::string text =
      fmt::format("{:<28}{:>6}{:>12}{:>12}{:>12}{:>9}\n", "run", "ranks", "steps", "tokens/s", "loss", "held out");
  for (const RunFigures& f : report.figures) {
    const std::string name = f.name.size() > 27 ? f.name.substr(0, 24) + "..." : f.name;
    text += fmt::format("{:<28}{:>6}{:>12}{:>12.0f}{:>12.4f}{:>9}\n", name, f.ranks,
                        f.finished ? fmt::format("{}", f.steps) : fmt::format("{}/{}", f.steps, f.of_steps),
                        f.tokens_per_s.value, f.train_loss,
                        std::isfinite(f.held_out) ? fmt::format("{:.4f}", f.held_out) : "-");
  }
  for (const Scaling& s : report.scaling) {
    text += s.strong ? "strong scaling (efficiency against the smallest):"
                     : "weak scaling (efficiency against the smallest):";
    for (const Scaling::Point& p : s.points) text += fmt::format(" {}: {:.0f} %", p.ranks, 100 * p.efficiency);
    text += "\n";
  }
  if (report.law.refused.empty())
    text += fmt::format("L = {:.3f} + {:.4g} / N^{:.3f} + {:.4g} / D^{:.3f}\n", report.law.e.value, report.law.a.value,
                        report.law.alpha.value, report.law.b.value, report.law.beta.value);
  return text;
}

nlohmann::ordered_json runs_json(const RunReport& report) {
  auto runs = nlohmann::ordered_json::array();
  for (std::size_t i = 0; i < report.figures.size(); ++i) {
    nlohmann::ordered_json one = {{"run", report.figures[i].name}, {"directory", report.runs[i].directory.string()}};
    for (const auto& [name, value] : columns_of(report.figures[i]))
      one[name] = std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json(nullptr);
    runs.push_back(std::move(one));
  }
  return runs;
}

}  // namespace emox
