#include "parallel/expert/expert_swaps.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "runtime/core/idx.h"

namespace emox {

std::vector<double> leads(std::span<const double> values, std::size_t columns) {
  std::vector<double> lead(values.size() / columns);
  for (std::size_t row = 0; row < lead.size(); ++row) {
    double best = 0, next = 0;
    for (const double v : values.subspan(row * columns, columns)) {
      if (v > best)
        next = std::exchange(best, v);
      else
        next = std::max(next, v);
    }
    lead[row] = best - next;
  }
  return lead;
}

std::vector<double> ExpertSwaps::loads() const {
  std::vector<double> l(parts, 0);
  for (std::size_t e = 0; e < part.size(); ++e) l[idx(part[e])] += load[e];
  return l;
}

double ExpertSwaps::excess() const {
  const std::vector<double> l = loads();
  double over = 0;
  for (std::size_t p = 0; p < parts; ++p) over += std::max(0.0, l[p] - limit[p]);
  return over;
}

// The expert that loses most by its second choice first.
void ExpertSwaps::greedy() {
  const std::size_t n = load.size();
  const std::vector<double> regret = leads(affinity, parts);
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return regret[a] > regret[b]; });
  std::vector<std::int64_t> left = room;
  part.assign(n, 0);
  for (const std::size_t e : order) {
    std::size_t chosen = parts;
    for (std::size_t p = 0; p < parts; ++p)
      if (left[p] > 0 && (chosen == parts || affinity[e * parts + p] > affinity[e * parts + chosen])) chosen = p;
    --left[chosen];
    part[e] = static_cast<std::int32_t>(chosen);
  }
}

bool ExpertSwaps::exchange(double price) {
  const std::size_t n = load.size();
  std::vector<double> l = loads();
  const auto above = [&](std::size_t p, double x) { return std::max(0.0, x - limit[p]); };
  constexpr double kLeast = 1e-9;
  for (std::size_t swaps = 0; swaps < 4 * n; ++swaps) {
    double best = kLeast;
    std::pair<std::size_t, std::size_t> which{n, n};
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = i + 1; j < n; ++j) {
        const auto a = idx(part[i]), b = idx(part[j]);
        if (a == b) continue;
        const double more = load[j] - load[i];
        const double gain = affinity[i * parts + b] - affinity[i * parts + a] + affinity[j * parts + a] -
                            affinity[j * parts + b] +
                            price * (above(a, l[a]) + above(b, l[b]) - above(a, l[a] + more) - above(b, l[b] - more));
        if (gain > best) best = gain, which = {i, j};
      }
    if (which.first == n) break;
    const auto [i, j] = which;
    const double more = load[j] - load[i];
    l[idx(part[i])] += more, l[idx(part[j])] -= more;
    std::swap(part[i], part[j]);
  }
  return excess() <= kLeast;
}

void ExpertSwaps::place() {
  greedy();
  if (parts < 2 || load.size() < 2) return;
  for (const double price : {1.0, 3.0, 10.0, 100.0, 1e4, 1e7})
    if (exchange(price)) return;
}

}  // namespace emox
