#include "launch/analysis/report/figures.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

namespace emox {

std::string figure_text(const std::optional<OverSeeds>& f, const FigureStyle& style) {
  if (!f) return kMissing;
  const double mean = style.factor * f->mean;
  std::string text =
      style.sign ? fmt::format("{:+.{}f}", mean, style.digits) : fmt::format("{:.{}f}", mean, style.digits);
  if (f->seeds > 1) text += fmt::format(" {} {:.{}f}", style.plus_minus, style.factor * f->half, style.digits);
  text += style.unit;
  if (f->seeds + f->missing == 1) return text;
  return text +
         fmt::format(" ({}{} seeds)", f->seeds, f->missing > 0 ? fmt::format(" of {}", f->seeds + f->missing) : "");
}

Compared compare(const Curves& c, const std::string& first, const std::string& second) {
  const auto of = [&](const std::string& model) { return c.losses(model, kSelections[0], 1.0); };
  Compared result;
  result.nats = paired(of(first), of(second), [](double a, double b) { return a - b; });
  result.relative = paired(of(first), of(second), [](double a, double b) { return a / b - 1; });
  if (c.selections().empty()) return result;
  const std::string& selection = c.selections().front();
  for (const double share : c.shares(selection)) {
    if (share == 1) continue;
    BySeed others = c.rises(second, selection, share);
    std::erase_if(others, [](const auto& entry) { return entry.second <= 0; });
    BySeed ratio = paired(c.rises(first, selection, share), others, [](double a, double b) { return a / b; });
    if (!ratio.empty()) result.rises.push_back({share, std::move(ratio)});
  }
  return result;
}

std::vector<ChanceSpread> chance_spreads(const std::vector<ChanceRow>& rows) {
  using Group = std::tuple<std::string, double, std::int64_t, std::string>;  // model, share, seed, domain
  std::map<Group, std::vector<double>> groups;
  for (const ChanceRow& r : rows)
    groups[{r.model, static_cast<double>(r.experts_kept) / static_cast<double>(r.experts_total), r.seed, r.domain}]
        .push_back(r.loss);
  struct Sum {
    double squares = 0, freedom = 0;
    std::int64_t draws = 0;
  };
  std::map<std::pair<std::string, double>, Sum> sums;
  for (const auto& [group, losses] : groups) {
    Sum& s = sums[{std::get<0>(group), std::get<1>(group)}];
    const auto n = static_cast<double>(losses.size());
    double mean = 0;
    for (const double loss : losses) mean += loss / n;
    for (const double loss : losses) s.squares += (loss - mean) * (loss - mean);
    s.freedom += n - 1;
    const auto draws = static_cast<std::int64_t>(losses.size());
    s.draws = s.draws == 0 ? draws : std::min(s.draws, draws);
  }
  std::vector<ChanceSpread> spreads;
  for (auto at = sums.rbegin(); at != sums.rend(); ++at)  // shares falling
    spreads.push_back({at->first.first, at->first.second,
                       at->second.freedom > 0 ? std::sqrt(at->second.squares / at->second.freedom) : 0,
                       at->second.draws});
  std::stable_sort(spreads.begin(), spreads.end(), [](const auto& a, const auto& b) { return a.model < b.model; });
  return spreads;
}

std::vector<RoundingSpread> rounding_spreads(const std::vector<RetentionRow>& rows,
                                             const std::vector<RetentionRow>& repeats) {
  const auto full = [](const std::vector<RetentionRow>& all) {
    std::map<std::pair<std::string, std::int64_t>, std::map<std::string, double>> losses;
    for (const RetentionRow& r : all)
      if (r.selection == kSelections[0]) losses[{r.model, r.seed}][r.domain] = r.loss;
    return losses;
  };
  const auto runs = full(rows);
  std::vector<RoundingSpread> spreads;
  for (const auto& [run, losses] : full(repeats)) {
    const auto first = runs.find(run);
    if (first == runs.end()) continue;
    double sum = 0, domains = 0;
    for (const auto& [domain, loss] : losses)
      if (const auto other = first->second.find(domain); other != first->second.end())
        sum += loss - other->second, ++domains;
    if (domains > 0) spreads.push_back({run.first, run.second, sum / domains});
  }
  return spreads;
}

}  // namespace emox
