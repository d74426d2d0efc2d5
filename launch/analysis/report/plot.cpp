#include "launch/analysis/report/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <utility>

namespace emox {
namespace {

constexpr int kStyles = 12;       // one for each model that a study may have
constexpr double kLabelGap = 14;  // between the lines' labels
constexpr double kMargin = 0.04;  // below the lowest point
constexpr double kLeft = 62, kTop = 30, kBottom = 46;
constexpr double kLabelShift = 10;                          // right of a line's end
constexpr double kLeastRight = 128, kCharacterWidth = 6.6;  // for the labels; of 12 px sans-serif, on average

/// Room for the longest label.
double right_margin(const Plot& plot) {
  std::size_t longest = 0;
  for (const PlotLine& line : plot.lines) longest = std::max(longest, line.label.size());
  return std::clamp(kLabelShift + kCharacterWidth * static_cast<double>(longest), kLeastRight, plot.width / 2);
}

/// 1, 2 or 5 times a power of ten, so that about five ticks fit.
double tick_step(double range) {
  const double raw = range / 5, power = std::pow(10.0, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (raw <= factor * power) return factor * power;
  return 10 * power;
}

/// What is written at a tick of the x axis, and where it is.
struct XTick {
  double value;
  std::string text;
};

/// Where values are on the page.
class Scale {
 public:
  explicit Scale(const Plot& plot) : plot_(plot) {
    bool first = !plot.from_zero;
    for (const PlotLine& line : plot.lines)
      for (const auto& p : line.points) {
        if (!p) continue;
        if (std::exchange(first, false)) low_ = p->low, high_ = p->high;
        low_ = std::min(low_, p->low), high_ = std::max(high_, p->high);
        right_ = std::max(right_, p->x);
        values_.insert(p->x);
      }
    if (right_ <= 0) right_ = 1;
    if (!plot.log_x) right_ = std::ceil(right_ / tick_step(right_)) * tick_step(right_);
    if (high_ - low_ < 1e-6) high_ = low_ + 0.1;
    step_ = tick_step(high_ - low_);
    high_ = std::ceil(high_ / step_) * step_;
    if (!plot.from_zero)
      low_ = std::floor(low_ / step_) * step_;
    else if (low_ < 0)
      low_ -= kMargin * (high_ - low_);  // not down to a tick: a rise is rarely far below 0
  }
  double x(double value) const {
    double part = value / right_;
    if (!plot_.shares.empty()) {
      const double least = std::log2(plot_.shares.back());
      part = least < 0 ? std::log2(value) / least : 0;
    } else if (plot_.log_x) {
      const double least = *values_.begin();
      part = right_ > least ? std::log(value / least) / std::log(right_ / least) : 0;
    }
    return kLeft + part * (plot_.width - kLeft - right_margin(plot_));
  }
  std::vector<XTick> x_ticks() const {
    std::vector<XTick> ticks;
    for (const double share : plot_.shares) ticks.push_back({share, percent_text(share)});
    if (plot_.log_x)
      for (const double value : values_) ticks.push_back({value, fmt::format("{:g}", value)});
    if (!plot_.shares.empty() || plot_.log_x) return ticks;
    const double step = tick_step(right_);
    for (int i = 0; i * step <= right_; ++i) ticks.push_back({i * step, fmt::format("{:g}", i * step)});
    return ticks;
  }
  double y(double value) const {
    return plot_.height - kBottom - (value - low_) / (high_ - low_) * (plot_.height - kTop - kBottom);
  }
  std::vector<double> ticks() const {
    std::vector<double> ticks;
    const auto last = std::lround(high_ / step_);
    for (auto i = std::lround(std::ceil(low_ / step_)); i <= last; ++i) ticks.push_back(static_cast<double>(i) * step_);
    return ticks;
  }
  int digits() const { return std::max(0, static_cast<int>(std::ceil(-std::log10(step_) - 1e-9))); }

 private:
  const Plot& plot_;
  double low_ = 0, high_ = 0, step_ = 1;
  double right_ = 1;         // the last x, where it is a number
  std::set<double> values_;  // of x
};

std::string axes(const Plot& plot, const Scale& scale) {
  const double right = plot.width - right_margin(plot), bottom = plot.height - kBottom;
  std::string svg =
      fmt::format("<text class=\"title\" x=\"{:.1f}\" y=\"16\">{}</text>\n", kLeft, escape_markup(plot.title));
  for (const double tick : scale.ticks()) {
    const double y = scale.y(tick);
    svg += fmt::format("<line class=\"grid\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>\n", kLeft, right,
                       y, y);
    svg += fmt::format("<text class=\"tick\" text-anchor=\"end\" x=\"{:.1f}\" y=\"{:.1f}\">{:.{}f}</text>\n", kLeft - 6,
                       y + 4, tick, scale.digits());
  }
  for (const XTick& tick : scale.x_ticks()) {
    svg += fmt::format("<line class=\"axis\" x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1:.1f}\" y2=\"{2:.1f}\"/>\n",
                       scale.x(tick.value), bottom, bottom + 4);
    svg += fmt::format("<text class=\"tick\" text-anchor=\"middle\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n",
                       scale.x(tick.value), bottom + 17, tick.text);
  }
  svg += fmt::format("<line class=\"axis\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>\n", kLeft, right,
                     bottom, bottom);
  svg += fmt::format("<text class=\"label\" text-anchor=\"middle\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n",
                     (kLeft + right) / 2, plot.height - 8, escape_markup(plot.x_label));
  const double middle = (kTop + bottom) / 2;
  return svg + fmt::format(
                   "<text class=\"label\" text-anchor=\"middle\" transform=\"rotate(-90 14 {:.1f})\" x=\"14\" "
                   "y=\"{:.1f}\">{}</text>\n",
                   middle, middle, escape_markup(plot.y_label));
}

std::string marker(int style, double x, double y) {
  switch (style % 3) {
    case 0:
      return fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\"/>\n", x, y);
    case 1:
      return fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"7\" height=\"7\"/>\n", x - 3.5, y - 3.5);
    default:
      return fmt::format("<path d=\"M{:.1f} {:.1f}l5 9h-10z\"/>\n", x, y - 6);
  }
}

std::string line_of(const PlotLine& line, const Scale& scale, int style, bool markers) {
  std::string path, marks;
  bool pen_down = false;
  for (const auto& p : line.points) {
    if (p) {
      const double x = scale.x(p->x), y = scale.y(p->y);
      path += fmt::format("{}{:.1f} {:.1f}", pen_down ? "L" : "M", x, y);
      if (markers && p->high > p->low)
        marks += fmt::format("<line class=\"whisker\" x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1:.1f}\" y2=\"{2:.1f}\"/>\n",
                             x, scale.y(p->low), scale.y(p->high));
      if (markers) marks += marker(style, x, y);
    }
    pen_down = p.has_value();
  }
  if (path.empty()) return "";
  return fmt::format("<g class=\"s{}\"><path class=\"line\" d=\"{}\"/>\n{}</g>\n", style, path, marks);
}

/// At the last point of every line, moved apart where they would overlap.
std::string labels(const Plot& plot, const Scale& scale) {
  struct Label {
    double x, y;
    std::size_t line;
  };
  std::vector<Label> ends;
  for (std::size_t i = 0; i < plot.lines.size(); ++i) {
    const auto& points = plot.lines[i].points;
    const auto last = std::find_if(points.rbegin(), points.rend(), [](const auto& p) { return p.has_value(); });
    if (last != points.rend()) ends.push_back({scale.x((*last)->x), scale.y((*last)->y), i});
  }
  std::stable_sort(ends.begin(), ends.end(), [](const Label& a, const Label& b) { return a.y > b.y; });
  double free = plot.height;
  std::string svg;
  for (const Label& end : ends) {
    const double y = std::min(end.y, free - kLabelGap);
    free = y;
    svg += fmt::format("<text class=\"name s{}\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n",
                       static_cast<int>(end.line) % kStyles, end.x + kLabelShift, y + 4,
                       escape_markup(plot.lines[end.line].label));
  }
  return svg;
}

/// Bytes of the character at `at` if it is one of UTF-8 that XML may hold, else 0.
std::size_t character_length(const std::string& text, std::size_t at) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(at);
  if (first < 0x80) return first >= 0x20 || first == '\n' || first == '\t' ? 1 : 0;
  const std::size_t length = first >= 0xC2 && first < 0xE0   ? 2
                             : first >= 0xE0 && first < 0xF0 ? 3
                             : first >= 0xF0 && first < 0xF5 ? 4
                                                             : 0;
  if (length == 0 || at + length > text.size()) return 0;
  std::uint32_t code = first & (0xFFU >> (length + 1));
  for (std::size_t i = at + 1; i < at + length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
    code = code << 6 | (byte(i) & 0x3FU);
  }
  const bool too_long = code < (length == 2 ? 0x80U : length == 3 ? 0x800U : 0x10000U);
  return too_long || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000) || code == 0xFFFE || code == 0xFFFF ? 0
                                                                                                              : length;
}

}  // namespace

std::string escape_markup(const std::string& text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = character_length(text, at);
    const char c = text[at];
    if (length == 0)
      out += "\xEF\xBF\xBD";
    else if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else
      out += text.substr(at, length);
    at += std::max<std::size_t>(length, 1);
  }
  return out;
}

std::string percent_text(double share) { return fmt::format("{:.4g} %", 100 * share); }

std::string to_svg(const Plot& plot) {
  const Scale scale(plot);
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" "
      "height=\"{1:.0f}\">\n<title>{2}</title>\n",
      plot.width, plot.height, escape_markup(plot.title));
  svg += axes(plot, scale);
  for (std::size_t i = 0; i < plot.lines.size(); ++i)
    svg += line_of(plot.lines[i], scale, static_cast<int>(i) % kStyles, plot.markers);
  return svg + labels(plot, scale) + "</svg>\n";
}

std::string plot_style() {
  // Okabe and Ito's colours, which people with colour-blindness tell apart; lighter ones on a dark page.
  constexpr const char* kLight[kStyles] = {"#0072B2", "#D55E00", "#007A5A", "#A3508A", "#8A6D00", "#444444",
                                           "#B0203A", "#5B4FC0", "#2E6B1F", "#9A4B00", "#006D77", "#7A1F5C"};
  constexpr const char* kDark[kStyles] = {"#56B4E9", "#F08A3C", "#2FC79A", "#E39AC6", "#F0E442", "#BBBBBB",
                                          "#FF8F9C", "#A9A1FF", "#9BD67F", "#FFC08A", "#7FDDE6", "#F0A0D8"};
  constexpr const char* kDash[kStyles] = {"none",        "8 4", "3 3",  "10 3 3 3", "1 4", "14 4",
                                          "6 2 2 2 2 2", "5 2", "12 2", "2 2 8 2",  "4 6", "16 3 2 3"};
  std::string light, dark, rules;
  for (int i = 0; i < kStyles; ++i) {
    light += fmt::format("--c{}:{};", i, kLight[i]);
    dark += fmt::format("--c{}:{};", i, kDark[i]);
    rules += fmt::format(".s{0}{{color:var(--c{0})}}.s{0} .line{{stroke-dasharray:{1}}}\n", i, kDash[i]);
  }
  return fmt::format(
      ":root{{{}}}\n@media (prefers-color-scheme:dark){{:root{{{}}}}}\n{}"
      "svg{{max-width:100%;height:auto}}svg text{{font:12px sans-serif;fill:currentColor}}"
      "svg .title{{font-weight:bold;font-size:13px}}svg .tick{{font-size:11px}}"
      ".grid{{stroke:currentColor;opacity:.15}}.axis{{stroke:currentColor}}"
      ".line{{fill:none;stroke:currentColor;stroke-width:2}}.whisker{{stroke:currentColor;stroke-width:1.5}}"
      "svg g circle,svg g rect,svg g path{{fill:currentColor}}svg g path.line{{fill:none}}\n",
      light, dark, rules);
}

std::string svg_file(const Plot& plot) {
  constexpr const char* kBackground =
      "svg{background:#fff;color:#1a1a1a}@media (prefers-color-scheme:dark){svg{background:#16181c;color:#e6e6e6}}\n";
  std::string svg = to_svg(plot);
  svg.insert(svg.find("<title>"), fmt::format("<style>{}{}</style>\n", plot_style(), kBackground));
  return svg;
}

}  // namespace emox
