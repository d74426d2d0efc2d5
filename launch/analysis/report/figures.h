// Figures of a study as text, and what is compared in it: for report.html and for a terminal.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "launch/analysis/report/curves.h"
#include "launch/analysis/report/notes.h"

namespace emox {

inline constexpr const char* kMissing = "missing";

/// How numbers are written; `plus_minus` is "+-" on a terminal.
struct FigureStyle {
  const char* plus_minus = "+-";
  bool sign = false;  ///< +0.1230
  double factor = 1;  ///< 100: percent
  int digits = 4;
  const char* unit = "";  ///< behind the interval
};
/// 0.1230; 0.1230 +- 0.0110 (3 seeds); 0.1230 (1 of 2 seeds); missing
std::string figure_text(const std::optional<OverSeeds>& figure, const FigureStyle& style = {});

/// Two models, seed by seed, over the seeds that both have.
struct Compared {
  BySeed nats;      ///< loss of the full model, first less second, mean over domains
  BySeed relative;  ///< the same as a share of the second's
  struct Rise {
    double share = 1;
    BySeed ratio;  ///< rise of the first / rise of the second; without the seeds in which the second's does not rise
  };
  std::vector<Rise> rises;  ///< by the first selection, for every share below 1
};
Compared compare(const Curves& curves, const std::string& first, const std::string& second);

/// Standard deviation between the draws of one domain, pooled over domains and seeds, by model and share of the
/// experts.
struct ChanceSpread {
  std::string model;
  double share = 1, deviation = 0;
  std::int64_t draws = 0;  ///< of every domain and seed; the smallest number
};
std::vector<ChanceSpread> chance_spreads(const std::vector<ChanceRow>& rows);

}  // namespace emox
