#include "launch/analysis/report/training.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "runtime/core/idx.h"

namespace emox {
namespace {

constexpr std::int64_t kPoints = 50;  // of a line

using Points = std::vector<std::optional<double>>;

std::int64_t last_step(const StudyNotes& notes) {
  std::int64_t last = 0;
  for (const TrainingLoss& run : notes.training)
    for (const auto& [step, loss] : run.losses) last = std::max(last, step);
  return last;
}

/// Mean over each `window` steps, the first of which is 1; nothing where one is missing.
Points windows(const TrainingLoss& run, std::int64_t window, std::int64_t count) {
  std::vector<double> sums(idx(count));
  std::vector<std::int64_t> steps(sums.size());
  for (const auto& [step, loss] : run.losses) {
    const std::int64_t at = (step - 1) / window;
    if (step < 1 || at >= count) continue;
    sums[idx(at)] += loss;
    ++steps[idx(at)];
  }
  Points points;
  for (std::size_t at = 0; at < sums.size(); ++at)
    points.push_back(steps[at] == window ? std::optional(sums[at] / static_cast<double>(window)) : std::nullopt);
  return points;
}

}  // namespace

std::vector<std::pair<std::int64_t, double>> training_losses(const std::string& metrics) {
  std::vector<std::pair<std::int64_t, double>> losses;
  std::istringstream in(metrics);
  for (std::string line; std::getline(in, line);) {
    const nlohmann::json record = nlohmann::json::parse(line, nullptr, false);
    if (!record.is_object()) continue;
    const auto step = record.find("step"), loss = record.find("ce");
    if (step != record.end() && step->is_number_integer() && loss != record.end() && loss->is_number())
      losses.emplace_back(step->get<std::int64_t>(), loss->get<double>());
  }
  return losses;
}

std::int64_t training_window(const StudyNotes& notes) {
  const std::int64_t last = last_step(notes);
  return last == 0 ? 0 : std::max<std::int64_t>(1, last / kPoints);
}

Plot training_plot(const StudyNotes& notes) {
  Plot plot{"cross entropy of the training text", "step", "nats a token", {}, {}};
  plot.from_zero = false;
  plot.markers = false;
  const std::int64_t window = training_window(notes);
  if (window == 0) return plot;
  const std::int64_t count = last_step(notes) / window;
  std::vector<std::string> models;  // in the order of the cells
  std::map<std::string, std::vector<Points>> runs;
  for (const TrainingLoss& run : notes.training) {
    if (!runs.contains(run.model)) models.push_back(run.model);
    runs[run.model].push_back(windows(run, window, count));
  }
  for (const std::string& model : models) {
    PlotLine line{notes.label(model), {}};
    for (std::size_t at = 0; at < idx(count); ++at) {
      double sum = 0;
      bool all = true;
      for (const Points& run : runs[model])
        if (run[at])
          sum += *run[at];
        else
          all = false;
      const double mean = sum / static_cast<double>(runs[model].size());
      const double middle = (static_cast<double>(at) + 0.5) * static_cast<double>(window);
      line.points.push_back(all ? std::optional(PlotPoint{middle, mean, mean, mean}) : std::nullopt);
    }
    plot.lines.push_back(std::move(line));
  }
  return plot;
}

}  // namespace emox
