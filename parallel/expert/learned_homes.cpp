#include "parallel/expert/learned_homes.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <utility>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

constexpr double kRate = 0.08;

/// Spreads neighbouring numbers over all bits: an odd multiplier and shifts, twice.
std::uint64_t spread(std::uint64_t x) {
  for (int i = 0; i < 2; ++i) {
    x ^= x >> 31;
    x *= 0xD6E8FEB86659FD93ULL;
  }
  return x ^ (x >> 32);
}

}  // namespace

LearnedHomes::LearnedHomes(int ranks, std::int64_t buckets) : ranks_(ranks), buckets_(idx(buckets)) {
  require<ShapeError>(ranks >= 1 && buckets >= 1, "homes of {} ranks by {} buckets", ranks, buckets);
  weights_.assign(buckets_ * idx(ranks), 0);
  seen_.assign(buckets_, 0);
  errors_.assign(buckets_ * idx(ranks) + buckets_ + 1, 0);
}

std::vector<LearnedHomes::Feature> LearnedHomes::features(std::span<const std::int32_t> tokens) const {
  std::vector<std::size_t> hit;
  hit.reserve(3 * tokens.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    std::uint64_t hash = 0;
    for (std::size_t back = 0; back < 3 && back <= i; ++back) {
      hash = spread(hash + static_cast<std::uint64_t>(tokens[i - back]) + 1);
      hit.push_back(hash % buckets_);
    }
  }
  std::sort(hit.begin(), hit.end());
  std::vector<Feature> found;
  double square = 0;
  for (std::size_t i = 0, end = 0; i < hit.size(); i = end) {
    for (end = i; end < hit.size() && hit[end] == hit[i];) ++end;
    // Roots: what is said often says little more.
    found.push_back({hit[i], std::sqrt(static_cast<double>(end - i))});
    square += static_cast<double>(end - i);
  }
  for (Feature& f : found) f.value /= std::sqrt(square);
  return found;
}

std::vector<double> LearnedHomes::scores(std::span<const std::int32_t> tokens) const {
  std::vector<double> score(idx(ranks_), 1.0 / ranks_);
  for (const Feature& f : features(tokens))
    for (std::size_t r = 0; r < score.size(); ++r) score[r] += f.value * weights_[f.bucket * score.size() + r];
  return score;
}

void LearnedHomes::observe(std::span<const std::int32_t> tokens, std::span<const double> picks) {
  require<ShapeError>(picks.size() == idx(ranks_), "picks on {} ranks, homes are of {}", picks.size(), ranks_);
  const double all = std::accumulate(picks.begin(), picks.end(), 0.0);
  if (all <= 0) return;
  std::vector<double> error = scores(tokens);
  double square = 0;
  for (std::size_t r = 0; r < error.size(); ++r) {
    error[r] = picks[r] / all - error[r];
    square += error[r] * error[r];
  }
  for (const Feature& f : features(tokens)) {
    for (std::size_t r = 0; r < error.size(); ++r) errors_[f.bucket * error.size() + r] += f.value * error[r];
    errors_[weights_.size() + f.bucket] += f.value * f.value * square;
  }
  errors_.back() += 1;
}

void LearnedHomes::apply() {
  if (errors_.back() > 0) {
    const auto n = idx(ranks_);
    for (std::size_t b = 0; b < buckets_; ++b) {
      const double square = errors_[weights_.size() + b];
      if (square <= 0) continue;
      seen_[b] += square;
      const double rate = kRate / std::sqrt(seen_[b]);
      for (std::size_t r = 0; r < n; ++r) weights_[b * n + r] += rate * errors_[b * n + r];
    }
  }
  std::fill(errors_.begin(), errors_.end(), 0.0);
}

std::vector<double> LearnedHomes::state() const {
  std::vector<double> all = weights_;
  all.insert(all.end(), seen_.begin(), seen_.end());
  return all;
}

void LearnedHomes::restore(std::span<const double> state) {
  require<ShapeError>(state.size() == weights_.size() + seen_.size(), "a state of {} numbers, homes have {}",
                      state.size(), weights_.size() + seen_.size());
  std::copy_n(state.begin(), weights_.size(), weights_.begin());
  std::copy_n(state.begin() + static_cast<std::ptrdiff_t>(weights_.size()), seen_.size(), seen_.begin());
  std::fill(errors_.begin(), errors_.end(), 0.0);
}

namespace {

/// Sequences to ranks, each rank `room` of them: the surest first, then exchanges.
std::vector<std::int32_t> assign_ranks(std::span<const double> scores, std::size_t ranks, std::size_t room) {
  const std::size_t n = scores.size() / ranks;
  const auto score = [&](std::size_t s, std::size_t r) { return scores[s * ranks + r]; };
  std::vector<double> lead(n, 0);
  for (std::size_t s = 0; s < n && ranks > 1; ++s) {
    std::vector<double> own(scores.begin() + static_cast<std::ptrdiff_t>(s * ranks),
                            scores.begin() + static_cast<std::ptrdiff_t>((s + 1) * ranks));
    std::nth_element(own.begin(), own.begin() + 1, own.end(), std::greater<>());
    lead[s] = *std::max_element(own.begin(), own.begin() + 1) - own[1];
  }
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return lead[a] > lead[b]; });
  std::vector<std::vector<std::size_t>> on(ranks);
  for (const std::size_t s : order) {
    std::size_t best = ranks;
    for (std::size_t r = 0; r < ranks; ++r)
      if (on[r].size() < room && (best == ranks || score(s, r) > score(s, best))) best = r;
    on[best].push_back(s);
  }
  // Of two ranks, those that gain most by going over change places.
  constexpr double kLeast = 1e-12;
  constexpr int kRounds = 16;
  bool better = true;
  for (int round = 0; better && round < kRounds; ++round) {
    better = false;
    for (std::size_t a = 0; a < ranks; ++a)
      for (std::size_t b = a + 1; b < ranks; ++b)
        for (std::size_t swaps = 0; swaps < room; ++swaps) {
          const auto most = [&](std::size_t from, std::size_t to) {
            return std::max_element(on[from].begin(), on[from].end(), [&](std::size_t x, std::size_t y) {
              return score(x, to) - score(x, from) < score(y, to) - score(y, from);
            });
          };
          const auto x = most(a, b), y = most(b, a);
          if (score(*x, b) - score(*x, a) + score(*y, a) - score(*y, b) <= kLeast) break;
          std::swap(*x, *y), better = true;
        }
  }
  std::vector<std::int32_t> rank(n);
  for (std::size_t r = 0; r < ranks; ++r)
    for (const std::size_t s : on[r]) rank[s] = static_cast<std::int32_t>(r);
  return rank;
}

}  // namespace

HomePlan plan_homes(std::span<const double> scores, int ranks, int cells) {
  require<UsageError>(ranks >= 1 && cells >= 1 && scores.size() % (idx(ranks) * idx(ranks) * idx(cells)) == 0,
                      "{} scores of sequences: {} ranks in {} micro-batches must have equally many sequences",
                      scores.size(), ranks, cells);
  const std::size_t places = idx(ranks), n = scores.size() / places, room = n / places / idx(cells);
  HomePlan plan{assign_ranks(scores, places, room * idx(cells)), std::vector<std::int32_t>(n, 0)};
  if (cells == 1) return plan;
  // Those that ask most of one rank first, each into the cell where the fullest rank stays the emptiest.
  std::vector<double> peak(n), load(idx(cells) * places, 0);
  std::vector<std::size_t> order(n), taken(idx(cells) * places, 0);
  for (std::size_t s = 0; s < n; ++s)
    for (std::size_t r = 0; r < places; ++r) peak[s] = std::max(peak[s], scores[s * places + r]);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return peak[a] > peak[b]; });
  for (const std::size_t s : order) {
    const auto home = idx(plan.rank[s]);
    std::size_t best = idx(cells);
    double least = 0;
    for (std::size_t c = 0; c < idx(cells); ++c) {
      if (taken[c * places + home] == room) continue;
      double fullest = 0;  // squares, so that the other ranks count where the fullest does not change
      for (std::size_t r = 0; r < places; ++r) {
        const double before = load[c * places + r], after = before + scores[s * places + r];
        fullest += after * after - before * before;
      }
      if (best == idx(cells) || fullest < least) best = c, least = fullest;
    }
    ++taken[best * places + home];
    plan.cell[s] = static_cast<std::int32_t>(best);
    for (std::size_t r = 0; r < places; ++r) load[best * places + r] += scores[s * places + r];
  }
  return plan;
}

}  // namespace emox
