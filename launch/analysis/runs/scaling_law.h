// L = E + A / N^alpha + B / D^beta: how the loss of finished runs falls with parameters and tokens (Hoffmann et al.,
// arXiv:2203.15556, equation 2).
#pragma once

#include <array>
#include <string>
#include <vector>

namespace emox {

/// One finished run.
struct LawPoint {
  double parameters = 0;  ///< active, without embeddings
  double tokens = 0;
  double loss = 0;  ///< nats a token
};

struct LawFigure {
  double value = 0, low = 0, high = 0;  ///< with its 95 % interval
};

struct LawFit {
  std::string refused;  ///< why there is no fit; everything below is then 0
  LawFigure e, a, b, alpha, beta;
  double spread = 0;                  ///< relative standard deviation of the losses around the law
  std::vector<std::size_t> outliers;  ///< points that count less, being far from the others
  double at(double parameters, double tokens) const;
};

/// For given exponents E, A and B are a least-squares problem with three unknowns that are not negative, so only two
/// are searched for (variable projection). Points far off count as Huber's loss has it. Intervals: from the curvature
/// at the minimum, Student's t with points - 5 degrees of freedom, on a logarithmic scale for A and B.
/// Refused for fewer than 6 points, or than 3 different values of parameters or tokens: something would be fitted that
/// the points do not say.
LawFit fit_scaling_law(const std::vector<LawPoint>& points);

}  // namespace emox
