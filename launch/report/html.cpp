#include "launch/report/html.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "launch/report/curves.h"
#include "launch/report/paper.h"
#include "launch/report/plot.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

constexpr const char* kMissing = "missing";
constexpr const char* kShareLabel = "share of the experts kept";
constexpr const char* kRiseLabel = "rise of the loss, nats a token";

/// 0.1230; 0.1230 (0.1200 to 0.1270, 3 seeds); 0.1230 (1 of 2 seeds)
std::string figure_text(const std::optional<OverSeeds>& f, const char* sign = "") {
  if (!f) return kMissing;
  const auto number = [&](double x) { return *sign == '+' ? fmt::format("{:+.4f}", x) : fmt::format("{:.4f}", x); };
  if (f->seeds + f->missing == 1) return number(f->mean);
  return fmt::format("{} ({}{}{} seeds)", number(f->mean),
                     f->seeds > 1 ? fmt::format("{} to {}, ", number(f->low), number(f->high)) : "", f->seeds,
                     f->missing > 0 ? fmt::format(" of {}", f->seeds + f->missing) : "");
}

/// Which seeds a comparison is over, where there are more than one.
std::string seeds_text(const Pair& pair) { return pair.seeds > 1 ? fmt::format(" ({} seeds)", pair.seeds) : ""; }

std::string cell(const std::string& text, const char* tag = "td") {
  return fmt::format("<{0}{1}>{2}</{0}>", tag, text == kMissing ? " class=\"missing\"" : "", escape_markup(text));
}

std::string row(const std::vector<std::string>& cells, const char* tag = "td") {
  std::string html = "<tr>";
  for (std::size_t i = 0; i < cells.size(); ++i) html += cell(cells[i], i == 0 ? "th" : tag);
  return html + "</tr>\n";
}

std::string table(const std::string& caption, const std::vector<std::string>& head, const std::string& rows) {
  return fmt::format("<table><caption>{}</caption>\n<thead>{}</thead>\n<tbody>\n{}</tbody></table>\n",
                     escape_markup(caption), row(head, "th"), rows);
}

std::string paragraph(const std::string& text) { return fmt::format("<p>{}</p>\n", escape_markup(text)); }
std::string heading(const std::string& text) { return fmt::format("<h2>{}</h2>\n", escape_markup(text)); }

std::vector<std::string> share_head(const Curves& c, const std::string& first, const std::string& selection) {
  std::vector<std::string> head{first};
  for (const double share : c.shares(selection)) head.push_back(percent_text(share));
  return head;
}

/// One line a model; `domain` empty: mean over domains.
Plot plot_of(const Curves& c, const std::string& selection, const std::string& domain) {
  Plot plot{domain.empty() ? "mean over domains" : domain, kShareLabel, kRiseLabel, c.shares(selection), {}};
  for (const std::string& model : c.models()) {
    PlotLine line{model, {}};
    for (const double share : plot.shares) {
      const auto r = c.rise(model, selection, share, domain);
      line.points.push_back(r ? std::optional(PlotPoint{share, r->mean, r->low, r->high}) : std::nullopt);
    }
    plot.lines.push_back(std::move(line));
  }
  return plot;
}

std::string rise_rows(const Curves& c, const std::string& selection, const std::string& domain) {
  std::string rows;
  for (const std::string& model : c.models()) {
    std::vector<std::string> cells{model};
    for (const double share : c.shares(selection))
      cells.push_back(figure_text(c.rise(model, selection, share, domain), "+"));
    rows += row(cells);
  }
  return rows;
}

std::string full_models(const Curves& c) {
  std::vector<std::string> head{"domain"};
  head.insert(head.end(), c.models().begin(), c.models().end());
  std::string rows;
  for (const std::string& domain : c.domains()) {
    std::vector<std::string> cells{domain};
    for (const std::string& model : c.models()) cells.push_back(figure_text(c.full_loss(model, domain)));
    rows += row(cells);
  }
  std::vector<std::string> mean{"mean"};
  for (const std::string& model : c.models()) mean.push_back(figure_text(c.full_loss(model)));
  return heading("All experts") + table("Held-out loss of the full models, nats a token", head, rows + row(mean));
}

std::string curves_of(const Curves& c, const std::string& selection) {
  std::string html = heading(fmt::format("Fewer experts, chosen by: {}", selection));
  html += to_svg(plot_of(c, selection, ""));
  html += table("Rise of the loss over that of the same seed's full model, mean over domains, nats a token",
                share_head(c, "model", selection), rise_rows(c, selection, ""));
  html += fmt::format("<details><summary>{}</summary>\n", "By domain");
  for (const std::string& domain : c.domains()) {
    Plot plot = plot_of(c, selection, domain);
    plot.width = 560, plot.height = 280;
    html += to_svg(plot) + table(fmt::format("{}: rise of the loss, nats a token", domain),
                                 share_head(c, "model", selection), rise_rows(c, selection, domain));
  }
  return html + "</details>\n";
}

/// Rise in percent of the full model's loss.
std::string relative_text(const Curves& c, const std::string& model, const std::string& selection, double share) {
  if (std::find(c.models().begin(), c.models().end(), model) == c.models().end()) return kMissing;
  const auto full = c.full_loss(model), rise = c.rise(model, selection, share);
  return full && rise ? fmt::format("{:+.1f} %", 100 * rise->mean / full->mean) : kMissing;
}

std::string beside_the_paper(const Curves& c) {
  const std::string selection = c.selections().empty() ? "" : c.selections().front();
  std::string rows;
  for (const PublishedAccuracy& p : kPublished) {
    const double share = static_cast<double>(p.kept) / kPublishedExperts;
    std::vector<std::string> cells{percent_text(share)};
    for (const char* model : {"emo", "standard"})
      cells.push_back(selection.empty() ? kMissing : relative_text(c, model, selection, share));
    for (const double x :
         {p.emo_mmlu, p.standard_mmlu, p.emo_mmlu_pro, p.standard_mmlu_pro, p.emo_gsm8k, p.standard_gsm8k})
      cells.push_back(fmt::format("{:.1f}", x));
    rows += row(cells);
  }
  return heading("Beside the paper") +
         paragraph(
             "Here: the held-out loss of small models, rise in percent. There: accuracy in percent on three "
             "benchmarks, models of 14B parameters and 1T tokens. The figures are of different kinds: what can be "
             "compared is how much of the full model each family keeps, not the numbers.") +
         table(selection.empty() ? "No experts were left out in this study"
                                 : fmt::format("Experts here chosen by: {}", selection),
               {"experts kept", "loss here: emo", "loss here: standard", "MMLU: EMO", "MMLU: standard", "MMLU-Pro: EMO",
                "MMLU-Pro: standard", "GSM8K: EMO", "GSM8K: standard"},
               rows) +
         paragraph(fmt::format("Source: {}. Chance is 25 for MMLU and 10 for MMLU-Pro.", kPublishedSource));
}

constexpr const char* kPageStyle =
    ":root{color-scheme:light dark}body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;"
    "background:#fff;color:#1a1a1a}@media (prefers-color-scheme:dark){body{background:#16181c;color:#e6e6e6}}"
    "table{border-collapse:collapse;margin:1em 0;font-size:14px;font-variant-numeric:tabular-nums;display:block;"
    "overflow-x:auto}caption{text-align:left;font-weight:bold}th,td{padding:.2em .7em;text-align:right;"
    "border-bottom:1px solid #8886}th:first-child{text-align:left}.missing{font-style:italic;opacity:.7}"
    "pre{white-space:pre-wrap}\n";

}  // namespace

std::string report_html(const std::vector<RetentionRow>& rows, const std::string& title) {
  const std::string summary = report_summary(rows);
  const Curves c(rows);
  std::string html = fmt::format(
      "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">\n<head><meta charset=\"utf-8\"/>\n"
      "<meta name=\"viewport\" content=\"width=device-width\"/>\n<title>{0}</title>\n<style>{1}{2}</style></head>\n"
      "<body>\n<h1>{0}</h1>\n<pre>{3}</pre>\n",
      escape_markup(title), kPageStyle, plot_style(), escape_markup(summary));
  html += full_models(c);
  for (const std::string& selection : c.selections()) html += curves_of(c, selection);
  return html + beside_the_paper(c) + "</body>\n</html>\n";
}

std::string report_summary(const std::vector<RetentionRow>& rows) {
  require<UsageError>(!rows.empty(), "the report of a study without any results: nothing has been evaluated yet");
  const Curves c(rows);
  std::string text = fmt::format("Held-out loss, nats a token, mean over {} domain(s)\n", c.domains().size());
  for (const std::string& model : c.models())
    text += fmt::format("  {:<20} {}\n", model, figure_text(c.full_loss(model)));
  if (const auto pair = c.full_losses("emo", "standard"))
    text += fmt::format("All experts: EMO is {:.4f} nats ({:.1f} %) {} than the standard MoE{}.\n",
                        std::abs(pair->first - pair->second), 100 * std::abs(pair->first / pair->second - 1),
                        pair->first > pair->second ? "worse" : "better", seeds_text(*pair));
  if (c.selections().empty()) return text + "No experts were left out yet: no retention to show.\n";
  for (const std::string& selection : c.selections()) {
    text += fmt::format("Rise of the loss with experts chosen by: {}\n", selection);
    for (const double share : c.shares(selection)) {
      if (share == 1) continue;
      for (const std::string& model : c.models())
        text += fmt::format("  {:>7} kept  {:<20} {}\n", percent_text(share), model,
                            figure_text(c.rise(model, selection, share), "+"));
    }
  }
  return text;
}

}  // namespace emox
