// The loss curve of a study: from the lines of metrics.jsonl to the points of a plot.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "launch/analysis/report/html.h"
#include "launch/analysis/report/training.h"

namespace emox {
namespace {

using Losses = std::vector<std::pair<std::int64_t, double>>;

/// a - b * step for steps 1 .. last, so that a mean of steps is the value in their middle.
Losses falling(double a, double b, std::int64_t last) {
  Losses losses;
  for (std::int64_t step = 1; step <= last; ++step) losses.emplace_back(step, a - b * static_cast<double>(step));
  return losses;
}

TEST(TrainingCurve, LinesThatAreNoRecordOfAStepArePassedOver) {
  EXPECT_EQ(training_losses("{\"step\": 1, \"loss\": 9, \"ce\": 5.5}\nnot json\n{\"step\": 2, \"ce\": null}\n[3]\n"
                            "{\"ce\": 4}\n{\"step\": 3, \"ce\": 5}\n{\"step\": 4, \"c"),
            (Losses{{1, 5.5}, {3, 5}}));
  EXPECT_EQ(training_losses(""), Losses{});
}

TEST(TrainingCurve, APointIsTheMeanOfItsStepsAndOfTheSeeds) {
  StudyNotes notes;
  notes.models = {{"emo", "EMO, <free>", 1, 1, ""}};
  notes.training = {
      {"emo", 1, falling(5, 0.01, 204)}, {"standard", 1, falling(4, 0.02, 204)}, {"emo", 2, falling(6, 0.01, 204)}};
  EXPECT_EQ(training_window(notes), 4);
  const Plot plot = training_plot(notes);
  ASSERT_EQ(plot.lines.size(), 2U);
  EXPECT_EQ(plot.lines[0].label, "EMO, <free>");
  EXPECT_EQ(plot.lines[1].label, "standard");
  ASSERT_EQ(plot.lines[0].points.size(), 51U);
  for (std::size_t i = 0; i < 51; ++i) {
    const double middle =
        4 * static_cast<double>(i) + 2;  // of the steps 4 i + 1 .. 4 i + 4 as stretches: 4 i .. 4 i + 4
    ASSERT_TRUE(plot.lines[0].points[i] && plot.lines[1].points[i]) << i;
    EXPECT_EQ(plot.lines[0].points[i]->x, middle);
    EXPECT_NEAR(plot.lines[0].points[i]->y, 5.5 - 0.01 * (middle + 0.5), 1e-12);
    EXPECT_NEAR(plot.lines[1].points[i]->y, 4 - 0.02 * (middle + 0.5), 1e-12);
  }
  const std::string svg = training_svg(notes);
  EXPECT_NE(svg.find(">EMO, &lt;free&gt;</text>"), std::string::npos) << svg;
  EXPECT_EQ(svg.find("<circle"), std::string::npos);
}

// A run that is not so far yet, or lost steps to a loss that was not finite: its model's line stops, and is not drawn
// from other seeds.
TEST(TrainingCurve, WhatASeedLacksBreaksTheLine) {
  StudyNotes notes;
  Losses gap = falling(5, 0, 100);
  gap.erase(gap.begin() + 10);
  notes.training = {{"emo", 1, falling(5, 0, 100)}, {"emo", 2, gap}, {"standard", 1, falling(4, 0, 50)}};
  const Plot plot = training_plot(notes);
  for (std::size_t i = 0; i < 50; ++i) {
    EXPECT_EQ(plot.lines[0].points[i].has_value(), i != 5) << i;
    EXPECT_EQ(plot.lines[1].points[i].has_value(), i < 25) << i;
  }
}

TEST(TrainingCurve, TheAxesSpanTheStepsAndTheLosses) {
  Plot plot{"t", "step", "y", {}, {{"a", {PlotPoint{0, 3, 3, 3}, PlotPoint{1000, 1.2, 1.2, 1.2}}}}};
  plot.from_zero = plot.markers = false;
  const std::string svg = to_svg(plot);
  // From 1 to 3 in steps of 0.5, from step 0 to 1000.
  EXPECT_NE(svg.find("d=\"M62.0 30.0L592.0 303.6\""), std::string::npos) << svg;
  EXPECT_NE(svg.find("x=\"56.0\" y=\"338.0\">1.0</text>"), std::string::npos) << svg;
  EXPECT_NE(svg.find("text-anchor=\"middle\" x=\"168.0\" y=\"351.0\">200</text>"), std::string::npos) << svg;
  EXPECT_NE(svg.find("text-anchor=\"middle\" x=\"592.0\" y=\"351.0\">1000</text>"), std::string::npos) << svg;
}

// A line that ends before a round number: the axis goes on to it. A long label has room.
TEST(TrainingCurve, TheAxisEndsAtATickAndLabelsFit) {
  Plot plot{"t", "step", "y", {}, {{std::string(24, 'm'), {PlotPoint{0, 1, 1, 1}, PlotPoint{1980, 0, 0, 0}}}}};
  const std::string svg = to_svg(plot);
  EXPECT_NE(svg.find(">2000</text>"), std::string::npos) << svg;
  const std::size_t name = svg.find("<text class=\"name");
  ASSERT_NE(name, std::string::npos);
  EXPECT_LE(std::stod(svg.substr(svg.find("x=\"", name) + 3)) + 24 * 6.5, plot.width) << svg;
}

TEST(TrainingCurve, WithoutLossesThereIsNoPlot) {
  EXPECT_TRUE(training_plot({}).lines.empty());
  EXPECT_EQ(training_svg({}), "");
}

}  // namespace
}  // namespace emox
