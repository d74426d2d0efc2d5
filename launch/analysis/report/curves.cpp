#include "launch/analysis/report/curves.h"

#include <algorithm>
#include <cmath>

#include "model/modularity/student.h"

namespace emox {
namespace {

const std::string kFull = kSelections[0];

template <typename T>
void add_new(std::vector<T>& list, const T& value) {
  if (std::find(list.begin(), list.end(), value) == list.end()) list.push_back(value);
}

int rank_of(const std::string& model) { return model == "emo" ? 0 : model == "standard" ? 1 : 2; }

}  // namespace

std::optional<OverSeeds> over_seeds(const BySeed& values, std::int64_t missing) {
  if (values.empty()) return std::nullopt;
  OverSeeds result;
  result.seeds = static_cast<std::int64_t>(values.size()), result.missing = missing;
  result.low = result.high = values.begin()->second;
  const auto n = static_cast<double>(values.size());
  for (const auto& [seed, value] : values) {
    result.mean += value / n;
    result.low = std::min(result.low, value), result.high = std::max(result.high, value);
  }
  if (values.size() < 2) return result;
  double squares = 0;
  for (const auto& [seed, value] : values) squares += (value - result.mean) * (value - result.mean);
  result.half = student_quantile(result.seeds - 1) * std::sqrt(squares / (n - 1) / n);
  return result;
}

BySeed paired(const BySeed& first, const BySeed& second, const std::function<double(double, double)>& f) {
  BySeed both;
  for (const auto& [seed, value] : first)
    if (const auto other = second.find(seed); other != second.end()) both[seed] = f(value, other->second);
  return both;
}

Curves::Curves(const std::vector<RetentionRow>& rows) {
  std::map<std::string, std::set<double, std::greater<>>> shares;
  for (const RetentionRow& r : rows) {
    add_new(models_, r.model);
    add_new(domains_, r.domain);
    seeds_.insert(r.seed);
    experts_[r.model] = r.experts_total;
    losses_[{r.model, r.seed, r.domain, r.selection, r.share()}] = r.loss;
    if (r.selection != kFull) shares[r.selection].insert(r.share());
  }
  std::sort(models_.begin(), models_.end(), [](const std::string& a, const std::string& b) {
    return std::pair(rank_of(a), a) < std::pair(rank_of(b), b);
  });
  for (const char* selection : kSelections) {
    if (!shares.contains(selection)) continue;
    selections_.emplace_back(selection);
    shares_[selection] = {1.0};
    shares_[selection].insert(shares_[selection].end(), shares[selection].begin(), shares[selection].end());
  }
}

const std::vector<double>& Curves::shares(const std::string& selection) const { return shares_.at(selection); }

bool Curves::has(const std::string& model) const {
  return std::find(models_.begin(), models_.end(), model) != models_.end();
}

std::int64_t Curves::experts(const std::string& model) const {
  const auto found = experts_.find(model);
  return found == experts_.end() ? 0 : found->second;
}

std::optional<double> Curves::one(const std::string& model, std::int64_t seed, const std::string& domain,
                                  const std::string& selection, double share) const {
  const auto found = losses_.find({model, seed, domain, share < 1 ? selection : kFull, share});
  return found == losses_.end() ? std::nullopt : std::optional(found->second);
}

BySeed Curves::by_seed(const std::string& domain,
                       const std::function<std::optional<double>(std::int64_t, const std::string&)>& figure) const {
  const std::vector<std::string> named{domain}, &over = domain.empty() ? domains_ : named;
  BySeed values;
  for (const std::int64_t seed : seeds_) {
    double sum = 0;
    const bool whole = std::all_of(over.begin(), over.end(), [&](const std::string& d) {
      const std::optional<double> value = figure(seed, d);
      sum += value.value_or(0);
      return value.has_value();
    });
    if (whole) values[seed] = sum / static_cast<double>(over.size());
  }
  return values;
}

BySeed Curves::losses(const std::string& model, const std::string& selection, double share,
                      const std::string& domain) const {
  return by_seed(domain,
                 [&](std::int64_t seed, const std::string& d) { return one(model, seed, d, selection, share); });
}

BySeed Curves::rises(const std::string& model, const std::string& selection, double share,
                     const std::string& domain) const {
  return by_seed(domain, [&](std::int64_t seed, const std::string& d) -> std::optional<double> {
    const auto full = one(model, seed, d, kFull, 1.0), kept = one(model, seed, d, selection, share);
    return full && kept ? std::optional(*kept - *full) : std::nullopt;
  });
}

std::optional<OverSeeds> Curves::summary(const BySeed& values) const {
  return over_seeds(values, static_cast<std::int64_t>(seeds_.size() - values.size()));
}

std::optional<OverSeeds> Curves::full_loss(const std::string& model, const std::string& domain) const {
  return loss(model, kFull, 1.0, domain);
}

std::optional<OverSeeds> Curves::loss(const std::string& model, const std::string& selection, double share,
                                      const std::string& domain) const {
  return summary(losses(model, selection, share, domain));
}

std::optional<OverSeeds> Curves::rise(const std::string& model, const std::string& selection, double share,
                                      const std::string& domain) const {
  return summary(rises(model, selection, share, domain));
}

}  // namespace emox
