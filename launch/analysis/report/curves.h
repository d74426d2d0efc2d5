// From the rows of a study to curves: how much the loss rises when fewer experts are kept.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "launch/analysis/report/retention.h"

namespace emox {

/// A figure of each seed that has it.
using BySeed = std::map<std::int64_t, double>;

/// A figure over the seeds of a model.
struct OverSeeds {
  double mean = 0, low = 0, high = 0;  ///< low, high: the smallest and largest of the seeds
  std::int64_t seeds = 0;              ///< that have the figure
  std::int64_t missing = 0;            ///< of those of the study that do not
  /// The 95 % interval of the mean is mean +- half: Student's t, the seeds taken for independent draws. Infinite for
  /// one seed, which says nothing about others.
  double half = std::numeric_limits<double>::infinity();
};
/// Nothing without any value.
std::optional<OverSeeds> over_seeds(const BySeed& values, std::int64_t missing = 0);

/// f(first, second) of the seeds that both have.
BySeed paired(const BySeed& first, const BySeed& second, const std::function<double(double, double)>& f);

/// What the rows say, and which of it is missing. A figure over domains exists only where every domain has it: a mean
/// of other domains would be another figure. `domain` empty: mean over domains.
class Curves {
 public:
  explicit Curves(const std::vector<RetentionRow>& rows);
  const std::vector<std::string>& models() const { return models_; }          ///< emo, standard, the others by name
  const std::vector<std::string>& domains() const { return domains_; }        ///< in the order of the rows
  const std::vector<std::string>& selections() const { return selections_; }  ///< without "full", as in kSelections
  const std::vector<double>& shares(const std::string& selection) const;      ///< falling, beginning with 1
  const std::set<std::int64_t>& seeds() const { return seeds_; }              ///< of any model
  bool has(const std::string& model) const;
  /// Of its whole model, a layer; 0 for a model that is not there.
  std::int64_t experts(const std::string& model) const;

  /// Loss with that share of the experts.
  BySeed losses(const std::string& model, const std::string& selection, double share,
                const std::string& domain = "") const;
  /// The same less that of the same seed's full model; 0 for share 1.
  BySeed rises(const std::string& model, const std::string& selection, double share,
               const std::string& domain = "") const;

  std::optional<OverSeeds> full_loss(const std::string& model, const std::string& domain = "") const;
  std::optional<OverSeeds> loss(const std::string& model, const std::string& selection, double share,
                                const std::string& domain = "") const;
  std::optional<OverSeeds> rise(const std::string& model, const std::string& selection, double share,
                                const std::string& domain = "") const;

 private:
  std::optional<double> one(const std::string& model, std::int64_t seed, const std::string& domain,
                            const std::string& selection, double share) const;
  BySeed by_seed(const std::string& domain,
                 const std::function<std::optional<double>(std::int64_t, const std::string&)>& figure) const;
  std::optional<OverSeeds> summary(const BySeed& values) const;

  std::vector<std::string> models_, domains_, selections_;
  std::set<std::int64_t> seeds_;
  std::map<std::string, std::int64_t> experts_;
  std::map<std::string, std::vector<double>> shares_;
  std::map<std::tuple<std::string, std::int64_t, std::string, std::string, double>, double> losses_;
};

}  // namespace emox
