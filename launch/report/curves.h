// From the rows of a study to curves: how much the loss rises when fewer experts are kept.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "launch/report/retention.h"

namespace emox {

/// A figure over the seeds of a model.
struct OverSeeds {
  double mean = 0, low = 0, high = 0;  ///< low, high: the smallest and largest of the seeds
  std::int64_t seeds = 0;              ///< that have the figure
  std::int64_t missing = 0;            ///< of those of the study that do not
};

/// Two models over the same seeds: a study that is not finished has one seed more of the first.
struct Pair {
  double first = 0, second = 0;  ///< means
  std::int64_t seeds = 0;        ///< that have both
};

/// What the rows say, and which of it is missing. A figure over domains exists only where every domain has it: a mean
/// of other domains would be another figure.
class Curves {
 public:
  explicit Curves(const std::vector<RetentionRow>& rows);
  const std::vector<std::string>& models() const { return models_; }          ///< emo, standard, the others by name
  const std::vector<std::string>& domains() const { return domains_; }        ///< in the order of the rows
  const std::vector<std::string>& selections() const { return selections_; }  ///< without "full", as in kSelections
  const std::vector<double>& shares(const std::string& selection) const;      ///< falling, beginning with 1

  /// Loss of the full model; `domain` empty: mean over domains.
  std::optional<OverSeeds> full_loss(const std::string& model, const std::string& domain = "") const;
  /// Mean over domains of the full models; nothing when no seed has both.
  std::optional<Pair> full_losses(const std::string& first, const std::string& second) const;
  /// Loss with that share of the experts less that of the same seed's full model; 0 for share 1.
  std::optional<OverSeeds> rise(const std::string& model, const std::string& selection, double share,
                                const std::string& domain = "") const;

 private:
  std::optional<double> loss(const std::string& model, std::int64_t seed, const std::string& domain,
                             const std::string& selection, double share) const;
  template <typename Figure>
  std::optional<OverSeeds> over_seeds(const std::string& domain, const Figure& figure) const;

  std::vector<std::string> models_, domains_, selections_;
  std::set<std::int64_t> seeds_;  // of any model
  std::map<std::string, std::vector<double>> shares_;
  std::map<std::tuple<std::string, std::int64_t, std::string, std::string, double>, double> losses_;
};

}  // namespace emox
