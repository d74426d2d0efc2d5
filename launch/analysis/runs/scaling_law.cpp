#include "launch/analysis/runs/scaling_law.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "model/modularity/student.h"

namespace emox {
namespace {

constexpr std::size_t kUnknowns = 5;
using Vector = std::array<double, kUnknowns>;
using Matrix = std::array<Vector, kUnknowns>;

/// Gaussian elimination with pivots of the first n unknowns; false where the matrix is singular.
bool solve(Matrix m, Vector& x, std::size_t n) {
  for (std::size_t c = 0; c < n; ++c) {
    std::size_t pivot = c;
    for (std::size_t r = c + 1; r < n; ++r)
      if (std::abs(m[r][c]) > std::abs(m[pivot][c])) pivot = r;
    if (std::abs(m[pivot][c]) < 1e-300) return false;
    std::swap(m[c], m[pivot]), std::swap(x[c], x[pivot]);
    for (std::size_t r = c + 1; r < n; ++r) {
      const double f = m[r][c] / m[c][c];
      for (std::size_t k = c; k < n; ++k) m[r][k] -= f * m[c][k];
      x[r] -= f * x[c];
    }
  }
  for (std::size_t c = n; c-- > 0;) {
    for (std::size_t k = c + 1; k < n; ++k) x[c] -= m[c][k] * x[k];
    x[c] /= m[c][c];
  }
  return true;
}

/// Sizes relative to their geometric means, so that A and B are losses at the middle of the points.
class Problem {
 public:
  explicit Problem(const std::vector<LawPoint>& points) : points_(points), weights_(points.size(), 1.0) {
    for (const LawPoint& p : points) log_n_ += std::log(p.parameters), log_d_ += std::log(p.tokens);
    log_n_ /= static_cast<double>(points.size()), log_d_ /= static_cast<double>(points.size());
    for (const LawPoint& p : points)
      n_.push_back(std::log(p.parameters) - log_n_), d_.push_back(std::log(p.tokens) - log_d_);
  }
  double log_n() const { return log_n_; }
  double log_d() const { return log_d_; }

  struct Linear {
    double e = 0, a = 0, b = 0, cost = std::numeric_limits<double>::infinity();
  };
  /// The best E, A, B >= 0 for these exponents, by trying every set of those that are not 0.
  Linear linear(double alpha, double beta) const {
    Linear best;
    for (unsigned kept = 1; kept < 8; ++kept) {
      std::array<std::size_t, 3> which{};
      std::size_t n = 0;
      for (std::size_t i = 0; i < 3; ++i)
        if ((kept >> i & 1U) != 0) which[n++] = i;
      Matrix m{};
      Vector x{};
      for (std::size_t i = 0; i < points_.size(); ++i) {
        const auto f = features(i, alpha, beta);
        for (std::size_t r = 0; r < n; ++r) {
          x[r] += weights_[i] * f[which[r]];
          for (std::size_t c = 0; c < n; ++c) m[r][c] += weights_[i] * f[which[r]] * f[which[c]];
        }
      }
      if (!solve(m, x, n)) continue;
      std::array<double, 3> eab{};
      bool allowed = true;
      for (std::size_t r = 0; r < n; ++r) eab[which[r]] = x[r], allowed = allowed && x[r] >= 0;
      if (!allowed) continue;
      Linear l{eab[0], eab[1], eab[2], 0};
      for (std::size_t i = 0; i < points_.size(); ++i) {
        const double r = residual(i, l, alpha, beta);
        l.cost += weights_[i] * r * r;
      }
      if (l.cost < best.cost) best = l;
    }
    return best;
  }
  /// Relative: predicted / loss - 1.
  double residual(std::size_t i, const Linear& l, double alpha, double beta) const {
    const auto f = features(i, alpha, beta);
    return l.e * f[0] + l.a * f[1] + l.b * f[2] - 1;
  }
  /// Of the relative residual by E, log A, log B, alpha, beta.
  Vector slope(std::size_t i, const Linear& l, double alpha, double beta) const {
    const auto f = features(i, alpha, beta);
    return {f[0], l.a * f[1], l.b * f[2], -n_[i] * l.a * f[1], -d_[i] * l.b * f[2]};
  }
  std::vector<double>& weights() { return weights_; }

 private:
  std::array<double, 3> features(std::size_t i, double alpha, double beta) const {
    const double loss = points_[i].loss;
    return {1 / loss, std::exp(-alpha * n_[i]) / loss, std::exp(-beta * d_[i]) / loss};
  }
  const std::vector<LawPoint>& points_;
  std::vector<double> weights_, n_, d_;
  double log_n_ = 0, log_d_ = 0;
};

struct Exponents {
  double alpha = 0, beta = 0, cost = std::numeric_limits<double>::infinity();
};

constexpr double kLeast = 0.005, kMost = 2.0;

/// A grid, then Nelder and Mead's simplex from its best place.
Exponents search(const Problem& p) {
  const auto at = [&](double alpha, double beta) {
    alpha = std::clamp(alpha, kLeast, kMost), beta = std::clamp(beta, kLeast, kMost);
    return Exponents{alpha, beta, p.linear(alpha, beta).cost};
  };
  Exponents best;
  for (double alpha = 0.05; alpha < 1.3; alpha *= 1.25)
    for (double beta = 0.05; beta < 1.3; beta *= 1.25)
      if (const Exponents e = at(alpha, beta); e.cost < best.cost) best = e;
  for (int round = 0; round < 3; ++round) {  // begun anew: a simplex may have shrunk too early
    std::array<Exponents, 3> s{best, at(best.alpha * 1.1, best.beta), at(best.alpha, best.beta * 1.1)};
    for (int i = 0; i < 400; ++i) {
      std::sort(s.begin(), s.end(), [](const Exponents& x, const Exponents& y) { return x.cost < y.cost; });
      if (std::hypot(s[2].alpha - s[0].alpha, s[2].beta - s[0].beta) < 1e-10) break;
      const double ca = (s[0].alpha + s[1].alpha) / 2, cb = (s[0].beta + s[1].beta) / 2;
      const auto moved = [&](double f) { return at(ca + f * (s[2].alpha - ca), cb + f * (s[2].beta - cb)); };
      const Exponents mirrored = moved(-1);
      if (mirrored.cost < s[0].cost) {
        const Exponents further = moved(-2);
        s[2] = further.cost < mirrored.cost ? further : mirrored;
      } else if (mirrored.cost < s[1].cost) {
        s[2] = mirrored;
      } else if (const Exponents inside = moved(mirrored.cost < s[2].cost ? -0.5 : 0.5);
                 inside.cost < std::min(mirrored.cost, s[2].cost)) {
        s[2] = inside;
      } else {
        for (std::size_t k : {1U, 2U}) s[k] = at((s[k].alpha + s[0].alpha) / 2, (s[k].beta + s[0].beta) / 2);
      }
    }
    best =
        *std::min_element(s.begin(), s.end(), [](const Exponents& x, const Exponents& y) { return x.cost < y.cost; });
  }
  return best;
}

std::string why_not(const std::vector<LawPoint>& points) {
  std::set<double> parameters, tokens;
  for (const LawPoint& p : points) {
    if (!(p.parameters > 0 && p.tokens > 0 && p.loss > 0 && std::isfinite(p.loss)))
      return "a run has no loss, tokens or parameters";
    parameters.insert(p.parameters), tokens.insert(p.tokens);
  }
  if (points.size() < 6) return fmt::format("{} finished runs: five unknowns need 6 or more", points.size());
  if (parameters.size() < 3 || tokens.size() < 3)
    return fmt::format("{} different numbers of parameters and {} of tokens: 3 of each are needed", parameters.size(),
                       tokens.size());
  return "";
}

}  // namespace

double LawFit::at(double parameters, double tokens) const {
  return e.value + a.value * std::pow(parameters, -alpha.value) + b.value * std::pow(tokens, -beta.value);
}

LawFit fit_scaling_law(const std::vector<LawPoint>& points) {
  LawFit fit;
  fit.refused = why_not(points);
  if (!fit.refused.empty()) return fit;
  Problem problem(points);
  constexpr double kHuber = 2.5;  // robust deviations within which a point counts in full
  Exponents x;
  Problem::Linear l;
  std::vector<double> sizes(points.size());
  for (int round = 0; round < 4; ++round) {
    x = search(problem);
    l = problem.linear(x.alpha, x.beta);
    for (std::size_t i = 0; i < points.size(); ++i) sizes[i] = std::abs(problem.residual(i, l, x.alpha, x.beta));
    std::vector<double> sorted = sizes;
    std::nth_element(sorted.begin(), sorted.begin() + std::ssize(sorted) / 2, sorted.end());
    // Five of the residuals' degrees are the fit's own.
    const double freedom = static_cast<double>(points.size() - kUnknowns) / static_cast<double>(points.size());
    const double robust = std::max(1.4826 * sorted[sorted.size() / 2] / std::sqrt(freedom), 1e-9);
    bool same = true;
    fit.outliers.clear();
    for (std::size_t i = 0; i < points.size(); ++i) {
      const double weight = sizes[i] <= kHuber * robust ? 1 : kHuber * robust / sizes[i];
      same = same && std::abs(weight - problem.weights()[i]) < 1e-3;
      problem.weights()[i] = weight;
      if (weight < 1) fit.outliers.push_back(i);
    }
    if (same) break;
  }
  double squares = 0, counted = 0;
  for (std::size_t i = 0; i < points.size(); ++i)
    squares += problem.weights()[i] * sizes[i] * sizes[i], counted += problem.weights()[i];
  const std::size_t degrees = points.size() - kUnknowns;
  const double variance = squares / static_cast<double>(degrees);
  fit.spread = std::sqrt(variance);
  Matrix information{};
  for (std::size_t i = 0; i < points.size(); ++i) {
    const Vector s = problem.slope(i, l, x.alpha, x.beta);
    for (std::size_t r = 0; r < kUnknowns; ++r)
      for (std::size_t c = 0; c < kUnknowns; ++c) information[r][c] += problem.weights()[i] * s[r] * s[c];
  }
  /// Half the interval of a combination of E, log A, log B, alpha, beta.
  const auto half = [&](const Vector& combination) {
    Vector y = combination;
    if (!solve(information, y, kUnknowns)) return std::numeric_limits<double>::infinity();
    double v = 0;
    for (std::size_t i = 0; i < kUnknowns; ++i) v += combination[i] * y[i];
    return student_quantile(std::ssize(points) - std::int64_t{kUnknowns}) * std::sqrt(std::max(0.0, v) * variance);
  };
  const auto plain = [&](double value, const Vector& combination) {
    const double h = half(combination);
    return LawFigure{value, value - h, value + h};
  };
  // A itself is what it is at the middle times N^alpha there.
  const auto scaled = [&](double at_middle, double exponent, double log_middle, const Vector& combination) {
    const double value = at_middle * std::exp(exponent * log_middle), h = half(combination);
    return LawFigure{value, value * std::exp(-h), value * std::exp(h)};
  };
  fit.e = plain(l.e, {1, 0, 0, 0, 0});
  fit.e.low = std::max(0.0, fit.e.low);
  fit.alpha = plain(x.alpha, {0, 0, 0, 1, 0});
  fit.beta = plain(x.beta, {0, 0, 0, 0, 1});
  fit.a = scaled(l.a, x.alpha, problem.log_n(), {0, 1, 0, problem.log_n(), 0});
  fit.b = scaled(l.b, x.beta, problem.log_d(), {0, 0, 1, 0, problem.log_d()});
  return fit;
}

}  // namespace emox
