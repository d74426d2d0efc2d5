#include "launch/report/curves.h"

#include <algorithm>
#include <functional>
#include <set>

namespace emox {
namespace {

const std::string kFull = kSelections[0];

template <typename T>
void add_new(std::vector<T>& list, const T& value) {
  if (std::find(list.begin(), list.end(), value) == list.end()) list.push_back(value);
}

int rank_of(const std::string& model) { return model == "emo" ? 0 : model == "standard" ? 1 : 2; }

}  // namespace

Curves::Curves(const std::vector<RetentionRow>& rows) {
  std::map<std::string, std::set<double, std::greater<>>> shares;
  for (const RetentionRow& r : rows) {
    add_new(models_, r.model);
    add_new(domains_, r.domain);
    seeds_.insert(r.seed);
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

std::optional<double> Curves::loss(const std::string& model, std::int64_t seed, const std::string& domain,
                                   const std::string& selection, double share) const {
  const auto found = losses_.find({model, seed, domain, selection, share});
  return found == losses_.end() ? std::nullopt : std::optional(found->second);
}

template <typename Figure>
std::optional<OverSeeds> Curves::over_seeds(const std::string& domain, const Figure& figure) const {
  const std::vector<std::string> one{domain}, &over = domain.empty() ? domains_ : one;
  OverSeeds result;
  for (const std::int64_t seed : seeds_) {
    double sum = 0;
    const bool whole = std::all_of(over.begin(), over.end(), [&](const std::string& d) {
      const std::optional<double> value = figure(seed, d);
      sum += value.value_or(0);
      return value.has_value();
    });
    if (!whole) {
      ++result.missing;
      continue;
    }
    const double value = sum / static_cast<double>(over.size());
    result.low = result.seeds == 0 ? value : std::min(result.low, value);
    result.high = result.seeds == 0 ? value : std::max(result.high, value);
    result.mean += value;
    ++result.seeds;
  }
  if (result.seeds == 0) return std::nullopt;
  result.mean /= static_cast<double>(result.seeds);
  return result;
}

std::optional<OverSeeds> Curves::full_loss(const std::string& model, const std::string& domain) const {
  return over_seeds(domain, [&](std::int64_t seed, const std::string& d) { return loss(model, seed, d, kFull, 1.0); });
}

std::optional<Pair> Curves::full_losses(const std::string& first, const std::string& second) const {
  const auto both = [&](const std::string& model) {
    return over_seeds("", [&](std::int64_t seed, const std::string& d) -> std::optional<double> {
      const auto a = loss(first, seed, d, kFull, 1.0), b = loss(second, seed, d, kFull, 1.0);
      return a && b ? loss(model, seed, d, kFull, 1.0) : std::nullopt;
    });
  };
  const auto a = both(first), b = both(second);
  return a ? std::optional(Pair{a->mean, b->mean, a->seeds}) : std::nullopt;
}

std::optional<OverSeeds> Curves::rise(const std::string& model, const std::string& selection, double share,
                                      const std::string& domain) const {
  return over_seeds(domain, [&](std::int64_t seed, const std::string& d) -> std::optional<double> {
    const auto full = loss(model, seed, d, kFull, 1.0);
    const auto kept = share < 1 ? loss(model, seed, d, selection, share) : full;
    if (!full || !kept) return std::nullopt;
    return *kept - *full;
  });
}

}  // namespace emox
