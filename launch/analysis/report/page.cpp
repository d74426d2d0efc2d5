#include "launch/analysis/report/page.h"

#include <fmt/format.h>

#include "launch/analysis/report/figures.h"
#include "launch/analysis/report/plot.h"

namespace emox {
namespace {

constexpr const char* kPageStyle =
    ":root{color-scheme:light dark}body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;"
    "background:#fff;color:#1a1a1a}@media (prefers-color-scheme:dark){body{background:#16181c;color:#e6e6e6}}"
    "table{border-collapse:collapse;margin:1em 0;font-size:14px;font-variant-numeric:tabular-nums;display:block;"
    "overflow-x:auto}caption{text-align:left;font-weight:bold}th,td{padding:.2em .7em;text-align:right;"
    "border-bottom:1px solid "
    "#8886}th:first-child{text-align:left;white-space:nowrap}.missing{font-style:italic;opacity:.7}"
    "pre{white-space:pre-wrap}@media print{body{margin:0;max-width:none;background:#fff;color:#000}"
    "table{display:table;overflow:visible}svg,tr{break-inside:avoid}h2{break-after:avoid}}\n";

std::string cell(const std::string& text, const char* tag) {
  return fmt::format("<{0}{1}>{2}</{0}>", tag, text == kMissing ? " class=\"missing\"" : "", escape_markup(text));
}

}  // namespace

std::string table_row(const std::vector<std::string>& cells, const char* tag) {
  std::string html = "<tr>";
  for (std::size_t i = 0; i < cells.size(); ++i) html += cell(cells[i], i == 0 ? "th" : tag);
  return html + "</tr>\n";
}

std::string table(const std::string& caption, const std::vector<std::string>& head, const std::string& rows) {
  return fmt::format("<table><caption>{}</caption>\n<thead>{}</thead>\n<tbody>\n{}</tbody></table>\n",
                     escape_markup(caption), table_row(head, "th"), rows);
}

std::string paragraph(const std::string& text) { return fmt::format("<p>{}</p>\n", escape_markup(text)); }
std::string heading(const std::string& text) { return fmt::format("<h2>{}</h2>\n", escape_markup(text)); }

std::string page_html(const std::string& title, const std::string& body) {
  return fmt::format(
      "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">\n<head><meta charset=\"utf-8\"/>\n"
      "<meta name=\"viewport\" content=\"width=device-width\"/>\n<title>{0}</title>\n<style>{1}{2}</style></head>\n"
      "<body>\n<h1>{0}</h1>\n{3}</body>\n</html>\n",
      escape_markup(title), kPageStyle, plot_style(), body);
}

}  // namespace emox
