#include "launch/analysis/report/html.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "launch/analysis/report/figures.h"
#include "launch/analysis/report/page.h"
#include "launch/analysis/report/paper.h"
#include "launch/analysis/report/plot.h"
#include "launch/analysis/report/training.h"

namespace emox {
namespace {

constexpr const char* kShareLabel = "share of the experts kept";
constexpr const char* kRiseLabel = "rise of the loss, nats a token";
constexpr FigureStyle kPlain{"±"};
constexpr FigureStyle kSigned{"±", true};
constexpr FigureStyle kPercent{"±", true, 100, 1, " %"};
constexpr FigureStyle kRatio{"±", false, 100, 1, " %"};

/// What all parts of the page are made from.
struct Page {
  const std::vector<RetentionRow>& rows;
  const StudyNotes& notes;
  const Curves c{rows};

  std::vector<std::string> share_head(const std::string& first, const std::string& selection) const {
    std::vector<std::string> head{first};
    for (const double share : c.shares(selection)) head.push_back(percent_text(share));
    return head;
  }

  /// Whether the model has a part of its experts anywhere: a dense one has none.
  bool has_curve(const std::string& model, const std::string& selection) const {
    const auto& shares = c.shares(selection);
    return std::any_of(shares.begin(), shares.end(), [&](double share) {
      return share < 1 && std::any_of(c.domains().begin(), c.domains().end(), [&](const std::string& domain) {
               return !c.rises(model, selection, share, domain).empty();
             });
    });
  }

  /// One line a model; `domain` empty: mean over domains.
  Plot plot_of(const std::string& selection, const std::string& domain) const {
    Plot plot{domain.empty() ? "mean over domains" : domain, kShareLabel, kRiseLabel, c.shares(selection), {}};
    for (const std::string& model : c.models()) {
      if (!has_curve(model, selection)) continue;
      PlotLine line{notes.label(model), {}};
      for (const double share : plot.shares) {
        const auto r = c.rise(model, selection, share, domain);
        line.points.push_back(r ? std::optional(PlotPoint{share, r->mean, r->low, r->high}) : std::nullopt);
      }
      plot.lines.push_back(std::move(line));
    }
    return plot;
  }

  std::string rise_rows(const std::string& selection, const std::string& domain) const {
    std::string html;
    for (const std::string& model : c.models()) {
      if (!has_curve(model, selection)) continue;
      std::vector<std::string> cells{notes.label(model)};
      for (const double share : c.shares(selection))
        cells.push_back(figure_text(c.rise(model, selection, share, domain), kSigned));
      html += table_row(cells);
    }
    return html;
  }

  std::string models() const {
    if (notes.models.empty()) return "";
    std::string html;
    for (const ModelNote& m : notes.models)
      html += table_row({m.label, m.model, fmt::format("{}", m.parameters), fmt::format("{}", m.active), m.differs});
    return heading("The models") + table("One recipe, each model with its own values where they differ",
                                         {"model", "cell", "parameters", "of these active", "differs from emo in"},
                                         html);
  }

  std::string full_models() const {
    std::vector<std::string> head{"domain"};
    for (const std::string& model : c.models()) head.push_back(notes.label(model));
    std::string html;
    for (const std::string& domain : c.domains()) {
      std::vector<std::string> cells{domain};
      for (const std::string& model : c.models()) cells.push_back(figure_text(c.full_loss(model, domain), kPlain));
      html += table_row(cells);
    }
    std::vector<std::string> mean{"mean"};
    for (const std::string& model : c.models()) mean.push_back(figure_text(c.full_loss(model), kPlain));
    std::string page =
        heading("All experts") + table("Held-out loss of the full models, nats a token", head, html + table_row(mean));
    if (c.seeds().size() > 1)
      page += paragraph(
          "± is the 95 % interval of the mean over seeds (Student's t). It holds the luck of initial values and data "
          "order, not that of the held-out documents, which are the same for all.");
    return page;
  }

  std::string training() const {
    const Plot plot = training_plot(notes);
    if (plot.lines.empty()) return "";
    return heading("Training") + to_svg(plot) +
           paragraph(fmt::format(
               "Every point is the mean of {} steps and of all seeds. A model with pools is trained inside them, and "
               "evaluated with all experts: its curve lies above what the full model would show.",
               training_window(notes)));
  }

  /// EMO less the standard MoE, seed by seed.
  std::string seed_by_seed() const {
    const Compared both = compare(c, "emo", "standard");
    if (both.nats.empty()) return "";
    std::vector<std::string> head{""};
    for (const auto& [seed, value] : both.nats) head.push_back(fmt::format("seed {}", seed));
    head.emplace_back("mean");
    const auto line = [&](const std::string& name, const BySeed& values, const FigureStyle& style) {
      std::vector<std::string> cells{name};
      for (const auto& [seed, value] : both.nats) {
        const auto found = values.find(seed);
        cells.push_back(found == values.end() ? kMissing : figure_text(over_seeds({*found}), style));
      }
      cells.push_back(figure_text(over_seeds(values), style));
      return table_row(cells);
    };
    std::string html = line("full model: difference, nats a token", both.nats, kSigned) +
                       line("full model: difference", both.relative, kPercent);
    for (const Compared::Rise& rise : both.rises)
      html += line(fmt::format("rise with {} kept, of the other's", percent_text(rise.share)), rise.ratio, kRatio);
    return heading("Seed by seed") +
           table(fmt::format("{}, against {}", notes.label("emo"), notes.label("standard")), head, html);
  }

  std::string rounding() const {
    const auto spreads = rounding_spreads(rows, notes.repeats);
    if (spreads.empty())
      return paragraph("How far two runs are apart that differ in rounding only was not measured (--repeat-rounding).");
    std::string html;
    for (const RoundingSpread& s : spreads)
      html += table_row({notes.label(s.model), fmt::format("{}", s.seed), fmt::format("{:+.4f}", s.full)});
    return table("Repeated with the same seed, differing in rounding only: loss of the full model, nats a token",
                 {"model", "seed", "repeat less run"}, html);
  }

  /// Subsets beside models that were trained with so few experts.
  std::string same_memory() const {
    if (c.selections().empty() || !c.has("emo")) return "";
    const std::string& selection = c.selections().front();
    std::string html;
    bool any = false;
    for (const double share : c.shares(selection)) {
      const std::int64_t kept = std::llround(share * static_cast<double>(c.experts("emo")));
      std::vector<std::string> cells{fmt::format("{}", kept)};
      for (const char* model : {"emo", "standard"})
        cells.push_back(figure_text(c.loss(model, selection, share), kPlain));
      std::string trained = share == 1 ? "" : kMissing;
      for (const std::string& model : c.models())
        if (share < 1 && c.experts(model) == kept) trained = figure_text(c.full_loss(model), kPlain), any = true;
      cells.push_back(trained);
      html += table_row(cells);
    }
    if (!any) return "";
    return heading("The same memory") +
           table(
               fmt::format("Held-out loss, nats a token, mean over domains: subsets chosen by {} for each domain, and "
                           "standard MoEs trained with so few experts for all domains",
                           selection),
               {"experts a layer", notes.label("emo"), notes.label("standard"), "trained with as many"}, html);
  }

  std::string chance() const {
    std::string html;
    std::int64_t draws = 0;
    for (const ChanceSpread& s : chance_spreads(notes.chance)) {
      html += table_row({notes.label(s.model), percent_text(s.share), fmt::format("{:.4f}", s.deviation)});
      draws = draws == 0 ? s.draws : std::min(draws, s.draws);
    }
    if (html.empty()) return "";
    return paragraph(fmt::format("Every figure is a mean of {} random subsets of each domain.", draws)) +
           table("Standard deviation between the draws of one domain, nats a token",
                 {"model", "experts kept", "deviation"}, html);
  }

  std::string curves_of(const std::string& selection) const {
    std::string html = heading(fmt::format("Fewer experts, chosen by: {}", selection));
    html += to_svg(plot_of(selection, ""));
    if (c.seeds().size() > 1) html += paragraph("Whiskers in the plots: the smallest and the largest seed.");
    html += table("Rise of the loss over that of the same seed's full model, mean over domains, nats a token",
                  share_head("model", selection), rise_rows(selection, ""));
    if (selection == "random") html += chance();
    html += fmt::format("<details><summary>{}</summary>\n", "By domain");
    for (const std::string& domain : c.domains()) {
      Plot plot = plot_of(selection, domain);
      plot.width = 560, plot.height = 280;
      html += to_svg(plot) + table(fmt::format("{}: rise of the loss, nats a token", domain),
                                   share_head("model", selection), rise_rows(selection, domain));
    }
    return html + "</details>\n";
  }

  /// Rise in percent of the full model's loss.
  std::string relative_text(const std::string& model, const std::string& selection, double share) const {
    const auto full = c.full_loss(model), rise = c.rise(model, selection, share);
    return full && rise ? fmt::format("{:+.1f} %", 100 * rise->mean / full->mean) : kMissing;
  }

  std::string beside_the_paper() const {
    const std::string selection = c.selections().empty() ? "" : c.selections().front();
    std::string html;
    for (const PublishedAccuracy& p : kPublished) {
      const double share = static_cast<double>(p.kept) / kPublishedExperts;
      std::vector<std::string> cells{percent_text(share)};
      for (const char* model : {"emo", "standard"})
        cells.push_back(selection.empty() ? kMissing : relative_text(model, selection, share));
      for (const double x :
           {p.emo_mmlu, p.standard_mmlu, p.emo_mmlu_pro, p.standard_mmlu_pro, p.emo_gsm8k, p.standard_gsm8k})
        cells.push_back(fmt::format("{:.1f}", x));
      html += table_row(cells);
    }
    return heading("Beside the paper") +
           paragraph(
               "Here: the held-out loss of small models, rise in percent. There: accuracy in percent on three "
               "benchmarks, models of 14B parameters and 1T tokens. The figures are of different kinds: what can be "
               "compared is how much of the full model each family keeps, not the numbers.") +
           table(selection.empty() ? "No experts were left out in this study"
                                   : fmt::format("Experts here chosen by: {}", selection),
                 {"experts kept", fmt::format("loss here: {}", notes.label("emo")),
                  fmt::format("loss here: {}", notes.label("standard")), "MMLU: EMO", "MMLU: standard", "MMLU-Pro: EMO",
                  "MMLU-Pro: standard", "GSM8K: EMO", "GSM8K: standard"},
                 html) +
           paragraph(fmt::format("Source: {}. Chance is 25 for MMLU and 10 for MMLU-Pro.", kPublishedSource));
  }
};

}  // namespace

std::string report_html(const std::vector<RetentionRow>& rows, const std::string& title, const StudyNotes& notes) {
  const std::string summary = report_summary(rows, notes);
  const Page page{rows, notes};
  std::string html = fmt::format("<pre>{}</pre>\n", escape_markup(summary));
  html +=
      page.models() + page.full_models() + page.training() + page.seed_by_seed() + page.rounding() + page.same_memory();
  for (const std::string& selection : page.c.selections()) html += page.curves_of(selection);
  return page_html(title, html + page.beside_the_paper());
}

std::string retention_svg(const std::vector<RetentionRow>& rows, const StudyNotes& notes) {
  const Page page{rows, notes};
  const auto selections = page.c.selections();
  return selections.empty() ? "" : svg_file(page.plot_of(selections.front(), ""));
}

std::string training_svg(const StudyNotes& notes) {
  const Plot plot = training_plot(notes);
  return plot.lines.empty() ? "" : svg_file(plot);
}

}  // namespace emox
