#include "tests/support/agreement.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

namespace emox::test {

double relative(double got, double want) { return std::abs(got - want) / std::max(std::abs(want), 1e-30); }

double loss_deviation(const std::vector<nlohmann::json>& got, const std::vector<nlohmann::json>& want) {
  double worst = got.empty() ? 1e9 : 0;
  for (std::size_t i = 0; i < std::min(got.size(), want.size()); ++i)
    worst = std::max(worst, relative(got[i].at("loss").get<double>(), want[i].at("loss").get<double>()));
  return worst;
}

Deviation tensor_deviation(const NamedValues& got, const NamedValues& want) {
  Deviation worst;
  if (got.size() != want.size()) return {1e9, "the number of tensors"};
  for (const auto& [name, values] : want) {
    const auto found = got.find(name);
    if (found == got.end() || found->second.size() != values.size()) return {1e9, name};
    double difference = 0, scale = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (!std::isfinite(values[i]) || !std::isfinite(found->second[i])) return {1e9, name};
      difference = std::max(difference, std::abs(double{values[i]} - double{found->second[i]}));
      scale = std::max(scale, std::abs(double{values[i]}));
    }
    const double d = difference == 0 ? 0 : difference / scale;
    if (d > worst.largest) worst = {d, name};
  }
  return worst;
}

SeriesAgreement series_agreement(const TrainingRun& got, const TrainingRun& want) {
  SeriesAgreement r;
  bool flipped = false;
  const auto note = [&](bool ok, const std::string& text) {
    r.ok = r.ok && ok;
    r.text += (ok ? "" : "NOT ALLOWED: ") + text + "\n";
  };
  for (std::size_t s = 0; s < want.steps.size(); ++s) {
    if (!flipped && s < want.routing.size()) {
      const Routing &a = got.routing[s], &b = want.routing[s];
      const std::size_t places = b.choice_gap.size(), k = b.ids.size() / places, n = b.p.size() / places;
      const std::size_t layer = places / 2;  // two layers: only the first one that differs shows its gap
      std::size_t first = places;
      for (std::size_t i = 0; i < places; ++i) {
        if (std::equal(a.ids.begin() + i * k, a.ids.begin() + (i + 1) * k, b.ids.begin() + i * k)) continue;
        if (first == places) first = i;
        if (i / layer != first / layer) break;
        bool pool_differs = false;
        for (std::size_t e = 0; e < n; ++e) pool_differs = pool_differs || (a.p[i * n + e] > 0) != (b.p[i * n + e] > 0);
        const double gap = pool_differs ? b.pool_gap[i] : b.choice_gap[i];
        note(gap < 1e-5, fmt::format("step {}: layer {}, token {}: another {}, the gap was {:.2g}", s + 1, i / layer,
                                     i % layer, pool_differs ? "pool" : "expert", gap));
      }
      flipped = first != places;
    }
    const double d = relative(got.steps[s].loss(), want.steps[s].loss());
    r.largest = std::max(r.largest, d);
    if (!(d <= (flipped ? 1e-4 : 1e-5)))
      note(false,
           fmt::format("step {}: loss {} and {}, {:.2g} apart", s + 1, got.steps[s].loss(), want.steps[s].loss(), d));
  }
  r.text += fmt::format("largest difference of losses {:.2g}", r.largest);
  return r;
}

void expect_same_step(const TrainingRun& got, const TrainingRun& want, bool moe) {
  const StepMetrics &a = got.steps[0], &b = want.steps[0];
  EXPECT_LE(relative(a.loss(), b.loss()), 1e-6);
  EXPECT_LE(relative(a.ce, b.ce), 1e-6);
  EXPECT_LE(relative(a.lm_z, b.lm_z), 1e-6);
  EXPECT_LE(relative(a.grad_norm, b.grad_norm), 1e-5);
  const Deviation d = tensor_deviation(got.gradients, want.gradients);
  EXPECT_LE(d.largest, 1e-5) << d.name;
  EXPECT_EQ(got.draws, want.draws);
  std::printf("  loss %.1e, gradients %.1e (%s)\n", relative(a.loss(), b.loss()), d.largest, d.name.c_str());
  if (!moe) return;
  EXPECT_LE(relative(a.router_z, b.router_z), 1e-6);
  EXPECT_LE(std::abs(a.lb - b.lb), 1e-6 * b.lb);
  EXPECT_EQ(a.load_max_over_mean, b.load_max_over_mean);
  EXPECT_EQ(a.experts_per_document, b.experts_per_document);
  EXPECT_EQ(a.pool_mean, b.pool_mean);
  EXPECT_EQ(got.routing[0].ids, want.routing[0].ids);
}

}  // namespace emox::test
