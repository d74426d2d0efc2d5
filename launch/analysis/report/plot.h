// Line plots as inline SVG: labelled axes, a label at the end of every line. Deterministic text.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace emox {

struct PlotPoint {
  double x = 0;
  double y = 0, low = 0, high = 0;  ///< low = high: no whisker
};

struct PlotLine {
  std::string label;
  std::vector<std::optional<PlotPoint>> points;  ///< one that is missing breaks the line
};

struct Plot {
  std::string title, x_label, y_label;
  /// Of the experts kept, falling: the x axis, halves equally far apart. Empty: x is a number that counts up from 0.
  std::vector<double> shares;
  std::vector<PlotLine> lines;
  bool log_x = false;  ///< x on a scale of powers, with a tick at every value that a point has
  double width = 720, height = 380;
  bool from_zero = true;  ///< the y axis; false: from where the points begin
  bool markers = true;    ///< at every point, and whiskers; false: the lines only
};

/// Colours, dashes and markers are those of classes s0 .. s11, which plot_style() defines for light and dark pages.
std::string to_svg(const Plot& plot);
std::string plot_style();
/// The same as a file of its own: with its style, and a background for light and dark pages.
std::string svg_file(const Plot& plot);

/// & < > " as entities; bytes that are no UTF-8, and control characters, as U+FFFD: XML can hold neither.
std::string escape_markup(const std::string& text);
/// 100 %, 12.5 %
std::string percent_text(double share);

}  // namespace emox
