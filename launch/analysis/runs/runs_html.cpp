// The page of a report of runs.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "launch/analysis/report/figures.h"
#include "launch/analysis/report/page.h"
#include "launch/analysis/report/plot.h"
#include "launch/analysis/runs/run_report.h"
#include "runtime/core/idx.h"
#include "runtime/telemetry/json_text.h"

namespace emox {
namespace {

constexpr std::size_t kCurvePoints = 100, kMostCurves = 12;

/// With so many digits, and no power of ten where a person would write none.
std::string number(double x, int digits = 4) {
  if (!std::isfinite(x)) return kMissing;
  return std::abs(x) >= 1e4 && std::abs(x) < 1e7 ? fmt::format("{:.0f}", x) : fmt::format("{:.{}g}", x, digits);
}
std::string fixed(double x, int digits) {
  return std::isfinite(x) ? fmt::format("{:.{}f}", x, digits) : std::string(kMissing);
}
std::string between(const MedianInterval& m, int digits) {
  return std::isfinite(m.value)
             ? fmt::format("{} ({} to {})", number(m.value, digits), number(m.low, digits), number(m.high, digits))
             : std::string(kMissing);
}
std::string percent(double x) { return std::isfinite(x) ? fmt::format("{:.1f} %", 100 * x) : std::string(kMissing); }

std::string overview(const RunReport& r) {
  std::string rows;
  for (std::size_t i = 0; i < r.figures.size(); ++i) {
    const RunFigures& f = r.figures[i];
    rows += table_row({f.name, fmt::format("{}", f.ranks), fmt::format("{}", f.nodes), r.runs[i].jobs.back().device,
                       f.finished ? fmt::format("{}", f.steps) : fmt::format("{} of {}", f.steps, f.of_steps),
                       fmt::format("{}", f.tokens), number(f.parameters), fixed(f.train_loss, 4), fixed(f.held_out, 4),
                       fixed(f.bits_per_byte, 4), fmt::format("{}", f.restarts), fmt::format("{}", f.changes)});
  }
  return heading("The runs") +
         table(
             "Training loss: mean of the last twentieth of the steps. Held out: the last evaluation, mean over domains",
             {"run", "ranks", "nodes", "device", "steps", "tokens", "active parameters without embeddings",
              "training loss", "held-out loss", "bits a byte", "restarts", "changes"},
             rows);
}

/// Means over equal stretches of a run's steps.
PlotLine curve(const RunHistory& run, const std::string& label, double StepRecord::*figure) {
  PlotLine line{label, {}};
  const std::size_t n = run.steps.size(), points = std::min(kCurvePoints, n);
  for (std::size_t p = 0; p < points; ++p) {
    const std::size_t begin = p * n / points, end = (p + 1) * n / points;
    double sum = 0, tokens = 0;
    for (std::size_t i = begin; i < end; ++i)
      sum += run.steps[i].*figure, tokens += static_cast<double>(run.steps[i].tokens);
    const auto count = static_cast<double>(end - begin);
    const double y = sum / count;
    line.points.push_back(std::isfinite(y) ? std::optional(PlotPoint{tokens / count / 1e6, y, y, y}) : std::nullopt);
  }
  return line;
}

std::string curves(const RunReport& r, const char* title, const char* y_label, double StepRecord::*figure,
                   bool from_zero) {
  Plot plot{title, "millions of tokens", y_label, {}, {}};
  plot.from_zero = from_zero, plot.markers = false;
  for (std::size_t i = 0; i < std::min(kMostCurves, r.runs.size()); ++i)
    plot.lines.push_back(curve(r.runs[i], r.figures[i].name, figure));
  std::string html = to_svg(plot);
  if (r.runs.size() > kMostCurves)
    html += paragraph(fmt::format("The first {} of {} runs; the tables hold all.", kMostCurves, r.runs.size()));
  return html;
}

std::string speed(const RunReport& r) {
  std::string rows, phases;
  for (const RunFigures& f : r.figures) {
    rows += table_row({f.name, between(f.step_s, 4), between(f.tokens_per_s, 4), number(f.tokens_per_s.value / f.ranks),
                       percent(f.gemm_floor_fraction), fmt::format("{}", f.counted), fmt::format("{}", f.left_out)});
    std::vector<std::string> line{f.name};
    for (const double s : f.phase_s) line.push_back(percent(s / f.step_s.value));
    phases += table_row(line);
  }
  std::vector<std::string> head{"run"};
  for (const char* name : kPhases) head.emplace_back(name);
  return heading("Speed") + curves(r, "throughput", "tokens/s", &StepRecord::tokens_per_s, true) +
         table(
             "Medians over usual steps, with the interval that holds the true median with 95 %. Left out: the first "
             "two "
             "steps of a job, steps that saved or evaluated, and those on other numbers of ranks",
             {"run", "step, s", "tokens/s", "tokens/s a rank", "of the product rate", "steps counted", "left out"},
             rows) +
         table("Phases, of the median step (dispatch and combine are parts of forward and backward)", head, phases);
}

std::string balance_and_traffic(const RunReport& r) {
  std::string rows;
  for (const RunFigures& f : r.figures)
    rows +=
        table_row({f.name, fixed(f.load_max_over_mean, 3), fixed(f.rows_sent_per_token, 3), fixed(f.nodes_per_token, 3),
                   number(f.bytes_intra_node / 1048576), number(f.bytes_inter_node / 1048576), number(f.exposed_comm_s),
                   percent(f.load_balance), percent(f.communication_efficiency), percent(f.parallel_efficiency)});
  return heading("Balance and traffic") +
         table(
             "Medians. Load balance: mean over maximum of the ranks' useful time; communication efficiency: that "
             "maximum over "
             "the step; parallel efficiency: their product (POP). Below 80 % wants a look",
             {"run", "expert load max/mean", "rows sent a token", "nodes a token", "MiB inside nodes",
              "MiB between nodes", "exposed communication, s", "load balance", "communication efficiency",
              "parallel efficiency"},
             rows);
}

std::string scaling(const RunReport& r) {
  std::string html;
  for (const Scaling& s : r.scaling) {
    Plot plot{s.strong ? "strong scaling" : "weak scaling", "ranks", "speed-up", {}, {}};
    plot.log_x = true;
    PlotLine measured{"measured", {}}, ideal{"ideal", {}};
    std::string rows;
    for (const Scaling::Point& p : s.points) {
      const double more = static_cast<double>(p.ranks) / s.points.front().ranks;
      measured.points.emplace_back(PlotPoint{static_cast<double>(p.ranks), p.speed_up, p.low * more, p.high * more});
      ideal.points.emplace_back(PlotPoint{static_cast<double>(p.ranks), more, more, more});
      std::string names;
      for (const std::string& name : p.runs) names += (names.empty() ? "" : ", ") + name;
      rows += table_row({fmt::format("{}", p.ranks), fmt::format("{}", p.nodes), between(p.tokens_per_s, 4),
                         fixed(p.speed_up, 3),
                         fmt::format("{} ({} to {})", percent(p.efficiency), percent(p.low), percent(p.high)), names});
    }
    plot.lines = {std::move(measured), std::move(ideal)};
    html += to_svg(plot) + table(fmt::format("{}, against {} rank(s): runs that differ in their ranks only, {}",
                                             s.strong ? "Strong scaling" : "Weak scaling", s.points.front().ranks,
                                             s.strong ? "with one batch" : "with one share of the batch for each rank"),
                                 {"ranks", "nodes", "tokens/s", "speed-up", "efficiency", "runs"}, rows);
  }
  return html.empty() ? "" : heading("Scaling") + html;
}

std::string law(const RunReport& r) {
  if (!r.law.refused.empty())
    return heading("Scaling law") + paragraph(fmt::format("No law is fitted: {}.", r.law.refused));
  const LawFit& f = r.law;
  std::string rows, points;
  for (const auto& [name, x] :
       {std::pair<const char*, LawFigure>{"E", f.e}, {"A", f.a}, {"alpha", f.alpha}, {"B", f.b}, {"beta", f.beta}})
    rows += table_row({name, number(x.value), number(x.low), number(x.high)});
  std::size_t at = 0;
  for (const RunFigures& run : r.figures) {
    if (!run.finished) continue;
    const LawPoint& p = r.law_points[at];
    const bool far = std::find(f.outliers.begin(), f.outliers.end(), at) != f.outliers.end();
    points += table_row({run.name, number(p.parameters), number(p.tokens), fixed(p.loss, 4),
                         fixed(f.at(p.parameters, p.tokens), 4), far ? "counts less: far from the others" : ""});
    ++at;
  }
  return heading("Scaling law") +
         paragraph(fmt::format(
             "L = E + A / N^alpha + B / D^beta, fitted to the {} of {} finished runs; N: active parameters without "
             "embeddings, D: tokens. Spread around it: {:.2f} %.",
             r.law_held_out ? "held-out losses" : "training losses", r.law_points.size(), 100 * f.spread)) +
         table("95 % intervals", {"", "value", "low", "high"}, rows) +
         table("The runs", {"run", "N", "D", "loss", "by the law", ""}, points);
}

std::string history(const RunReport& r) {
  std::string rows;
  for (std::size_t i = 0; i < r.runs.size(); ++i)
    for (const JobRecord& j : r.runs[i].jobs) {
      std::string changes;
      for (const std::string& c : j.changes) changes += (changes.empty() ? "" : "; ") + c;
      rows += table_row({r.figures[i].name, j.started, j.host, j.device, fmt::format("{} x {}", j.ranks, j.threads),
                         fmt::format("{}", j.from_step), changes});
    }
  return heading("Jobs") + table("Every start of every run",
                                 {"run", "started", "host", "device", "ranks x threads", "from step", "changes"}, rows);
}

std::string comparison(const RunReport& r) {
  if (r.against.empty()) return "";
  std::string rows;
  for (const SetDifference& d : compare_sets(r.figures, r.against))
    rows += table_row({d.figure, fmt::format("{} ({})", number(d.first, 5), d.first_runs),
                       fmt::format("{} ({})", number(d.second, 5), d.second_runs), fmt::format("{:+.4g}", d.difference),
                       std::isfinite(d.half) ? fmt::format("± {:.3g}", d.half) : "one run says nothing of others"});
  return heading("Against the other set") +
         table("Means over runs (how many); the 95 % interval of the difference (Welch)",
               {"", "these", "those", "difference", "interval"}, rows);
}

}  // namespace

std::string runs_html(const RunReport& r, const std::string& title) {
  // No markup can begin inside of a script that holds no < and no &.
  std::string data;
  for (const char c : json_text(runs_json(r))) {
    if (c == '<')
      data += "\\u003c";
    else if (c == '&')
      data += "\\u0026";
    else
      data += c;
  }
  return page_html(title, overview(r) + heading("Loss") +
                              curves(r, "cross entropy of the training text", "nats a token", &StepRecord::ce, false) +
                              speed(r) + scaling(r) + balance_and_traffic(r) + law(r) + comparison(r) + history(r) +
                              fmt::format("<script type=\"application/json\" id=\"figures\">{}</script>\n", data));
}

}  // namespace emox
