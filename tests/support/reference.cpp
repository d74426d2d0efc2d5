#include "tests/support/reference.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <stdexcept>

#include "tests/support/support.h"

namespace emox::test::ref {
namespace {

std::int64_t size(const Vec& v) { return static_cast<std::int64_t>(v.size()); }
std::int64_t count(const Ids& v) { return static_cast<std::int64_t>(v.size()); }

Vec part(const Vec& v, std::int64_t begin, std::int64_t end) { return {v.begin() + begin, v.begin() + end}; }

double log_sum_exp(const Vec& z) {
  const double top = *std::max_element(z.begin(), z.end());
  double sum = 0;
  for (double x : z) sum += std::exp(x - top);
  return top + std::log(sum);
}

// The `k` experts of the largest score that may be picked; equal scores: the lowest index.
Ids picks(const Vec& score, const Vec& allowed, std::int64_t k) {
  Ids order;
  for (std::int32_t i = 0; i < size(score); ++i) {
    if (allowed[i] > 0) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) { return score[a] > score[b]; });
  order.resize(k);
  return order;
}

}  // namespace

Vec doubles(const TensorView& t) {
  if (t.dtype() == DType::F64) return values_of<double>(t);
  const std::vector<float> values = values_of<float>(t);
  return Vec(values.begin(), values.end());
}

double largest(const Vec& x) {
  double most = 0;
  for (double v : x) most = std::max(most, std::abs(v));
  return most;
}

Vec absolute(Vec x) {
  for (double& v : x) v = std::abs(v);
  return x;
}

double dot(const Vec& a, const Vec& b) {
  double s = 0;
  for (std::int64_t i = 0; i < size(a); ++i) s += a[i] * b.at(i);
  return s;
}

Vec plus(Vec a, const Vec& b) {
  for (std::int64_t i = 0; i < size(a); ++i) a[i] += b.at(i);
  return a;
}

Vec matmul(Product product, const Vec& a, const Vec& b, Extents e) {
  Vec c(e.m * e.n);
  for (std::int64_t i = 0; i < e.m; ++i) {
    for (std::int64_t j = 0; j < e.n; ++j) {
      for (std::int64_t l = 0; l < e.k; ++l) {
        c[i * e.n + j] += (product == Product::TN ? a[l * e.m + i] : a[i * e.k + l]) *
                          (product == Product::NT ? b[j * e.k + l] : b[l * e.n + j]);
      }
    }
  }
  return c;
}

Vec grouped_matmul(Product product, const Vec& a, const Vec& b, const Offsets& offsets, Extents e) {
  Vec c;
  for (std::size_t g = 0; g + 1 < offsets.size(); ++g) {
    const std::int64_t begin = offsets[g], end = offsets[g + 1], at = static_cast<std::int64_t>(g) * e.n * e.k;
    Vec block;
    if (product == Product::TN) {
      block =
          matmul(product, part(a, begin * e.m, end * e.m), part(b, begin * e.n, end * e.n), {e.m, e.n, end - begin});
    } else {
      block = matmul(product, part(a, begin * e.k, end * e.k), part(b, at, at + e.n * e.k), {end - begin, e.n, e.k});
    }
    c.insert(c.end(), block.begin(), block.end());
  }
  return c;
}

Vec embedding(const Ids& ids, const Vec& table, std::int64_t width) {
  Vec y;
  for (std::int32_t id : ids) y.insert(y.end(), table.begin() + id * width, table.begin() + (id + 1) * width);
  return y;
}

Norm rms_norm(const Vec& x, const Vec& scale, double eps) {
  const std::int64_t width = size(scale);
  Norm r{x, {}};
  for (std::int64_t at = 0; at < size(x); at += width) {
    double squares = 0;
    for (std::int64_t d = 0; d < width; ++d) squares += x[at + d] * x[at + d];
    r.rstd.push_back(1.0 / std::sqrt(squares / static_cast<double>(width) + eps));
    for (std::int64_t d = 0; d < width; ++d) r.y[at + d] *= r.rstd.back() * scale[d];
  }
  return r;
}

Vec rope(Vec qkv, const Ids& positions, std::int64_t width, int heads, double theta, bool inverse) {
  const std::int64_t dim = width / heads;
  for (std::int64_t t = 0; t < count(positions); ++t) {
    for (std::int64_t head = 0; head < 2 * heads; ++head) {  // the query heads, then the key heads
      double* x = qkv.data() + t * 3 * width + head * dim;
      for (std::int64_t i = 0; i < dim / 2; ++i) {
        const double frequency = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
        const double angle = positions[t] * frequency * (inverse ? -1.0 : 1.0);
        const double first = x[i], second = x[i + dim / 2];
        x[i] = first * std::cos(angle) - second * std::sin(angle);
        x[i + dim / 2] = second * std::cos(angle) + first * std::sin(angle);
      }
    }
  }
  return qkv;
}

Attention attention(const Vec& qkv, const Ids& segments, std::int64_t width, int heads) {
  const std::int64_t tokens = size(qkv) / (3 * width), dim = width / heads;
  Attention r{Vec(tokens * width), Vec(heads * tokens)};
  for (std::int64_t s = 0; s + 1 < count(segments); ++s) {
    for (std::int64_t t = segments[s]; t < segments[s + 1]; ++t) {
      for (std::int64_t h = 0; h < heads; ++h) {
        const double* query = qkv.data() + t * 3 * width + h * dim;
        Vec scores;
        for (std::int64_t u = segments[s]; u <= t; ++u) {
          const double* key = qkv.data() + u * 3 * width + width + h * dim;
          double score = 0;
          for (std::int64_t d = 0; d < dim; ++d) score += query[d] * key[d];
          scores.push_back(score / std::sqrt(static_cast<double>(dim)));
        }
        const double lse = r.lse[h * tokens + t] = log_sum_exp(scores);
        for (std::int64_t u = segments[s]; u <= t; ++u) {
          const double weight = std::exp(scores[u - segments[s]] - lse);
          const double* value = qkv.data() + u * 3 * width + 2 * width + h * dim;
          for (std::int64_t d = 0; d < dim; ++d) r.out[t * width + h * dim + d] += weight * value[d];
        }
      }
    }
  }
  return r;
}

Vec swiglu(const Vec& h, const Vec& gates, std::int64_t width) {
  Vec a;
  for (std::int64_t r = 0; r * 2 * width < size(h); ++r) {
    for (std::int64_t f = 0; f < width; ++f) {
      const double x = h[r * 2 * width + f];
      a.push_back((gates.empty() ? 1.0 : gates[r]) * x / (1.0 + std::exp(-x)) * h[r * 2 * width + width + f]);
    }
  }
  return a;
}

Vec softmax(const Vec& logits, std::int64_t n) {
  Vec p = logits;
  for (std::int64_t at = 0; at < size(p); at += n) {
    const double lse = log_sum_exp(part(logits, at, at + n));
    for (std::int64_t i = 0; i < n; ++i) p[at + i] = std::exp(p[at + i] - lse);
  }
  return p;
}

Vec document_scores(const Vec& p, const Ids& segments, std::int64_t n) {
  Vec scores((count(segments) - 1) * n);
  for (std::int64_t s = 0; s + 1 < count(segments); ++s) {
    for (std::int64_t t = segments[s]; t < segments[s + 1]; ++t) {
      for (std::int64_t i = 0; i < n; ++i) scores[s * n + i] += p[t * n + i];
    }
  }
  return scores;
}

Flags document_pools(const Vec& scores, const Ids& sizes, std::int64_t n) {
  Flags pool(scores.size());
  for (std::int64_t s = 0; s < count(sizes); ++s) {
    const auto kept = std::min<std::int64_t>(sizes[s], n);
    for (std::int32_t i : picks(part(scores, s * n, (s + 1) * n), Vec(n, 1.0), kept)) pool[s * n + i] = 1;
  }
  return pool;
}

Topk masked_topk(const Vec& logits, const TopkInputs& in, const Ids& ids) {
  Topk r;
  for (std::int64_t t = 0, doc = 0; t * in.n < size(logits); ++t) {
    const Vec z = part(logits, t * in.n, (t + 1) * in.n);
    Vec allowed(in.n, 1.0);
    if (!in.pool.empty()) {
      while (t >= in.segments.at(doc + 1)) ++doc;
      const bool limited = in.free_tokens.empty() || in.free_tokens[t] == 0;
      for (std::int64_t i = 0; limited && i < in.n; ++i) allowed[i] = in.pool[doc * in.n + i];
    }
    Vec inside;
    for (std::int64_t i = 0; i < in.n; ++i) {
      if (allowed[i] > 0) inside.push_back(z[i]);
    }
    r.lse.push_back(log_sum_exp(inside));
    Vec p(in.n), score = z;  // the order of p is that of the logits
    for (std::int64_t i = 0; i < in.n; ++i) {
      p[i] = allowed[i] > 0 ? std::exp(z[i] - r.lse.back()) : 0.0;
      if (!in.bias.empty()) score[i] = p[i] + in.bias[i];
    }
    const Ids chosen =
        ids.empty() ? picks(score, allowed, in.k) : Ids(ids.begin() + t * in.k, ids.begin() + (t + 1) * in.k);
    double mass = 0;
    for (std::int32_t i : chosen) mass += p[i];
    for (std::int32_t i : chosen) r.gates.push_back(in.normalize ? p[i] / mass : p[i]);
    r.ids.insert(r.ids.end(), chosen.begin(), chosen.end());
    r.p.insert(r.p.end(), p.begin(), p.end());
  }
  return r;
}

Vec combine_rows(const Vec& y, const Vec& rows, const Ids& slots, std::int64_t width, double beta) {
  Vec r = y;
  const std::int64_t tokens = width == 0 ? 0 : size(y) / width, m = tokens == 0 ? 0 : count(slots) / tokens;
  for (double& v : r) v = beta == 0.0 ? 0.0 : beta * v;
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t j = 0; j < m; ++j) {
      const std::int64_t row = slots[t * m + j];
      for (std::int64_t d = 0; row >= 0 && d < width; ++d) r[t * width + d] += rows[row * width + d];
    }
  }
  return r;
}

LmLoss lm_loss(const Vec& x, const Vec& weight, const Ids& labels, std::int64_t width) {
  LmLoss r;
  const std::int64_t vocab = size(weight) / width;
  for (std::int64_t t = 0; t < count(labels); ++t) {
    r.token_loss.push_back(0);
    if (labels[t] < 0) continue;
    const Vec logits = matmul(Product::NT, part(x, t * width, (t + 1) * width), weight, {1, vocab, width});
    const double lse = log_sum_exp(logits);
    r.token_loss.back() = lse - logits.at(labels[t]);
    r.cross_entropy += r.token_loss.back();
    r.squared_lse += lse * lse;
  }
  return r;
}

AdamState adamw(AdamState s, double grad, const AdamOptions& o, std::int64_t step) {
  const double g = grad * o.grad_scale, t = static_cast<double>(step);
  s.p -= o.learning_rate * o.weight_decay * s.p;
  s.m = o.beta1 * s.m + (1 - o.beta1) * g;
  s.v = o.beta2 * s.v + (1 - o.beta2) * g * g;
  s.p -= o.learning_rate * (s.m / (1 - std::pow(o.beta1, t))) / (std::sqrt(s.v / (1 - std::pow(o.beta2, t))) + o.eps);
  return s;
}

double directional_difference(const Scalar& f, const Vec& x, const Vec& direction) {
  // Central differences err by h^2 f'''/6 + 2^-53 |f| / h: far below float32 rounding for functions of order 1.
  const double h = 1e-5;
  Vec up = x, down = x;
  for (std::int64_t i = 0; i < size(x); ++i) {
    up[i] += h * direction[i];
    down[i] -= h * direction[i];
  }
  return (f(up) - f(down)) / (2 * h);
}

Vec central_differences(const Scalar& f, const Vec& x) {
  Vec g, unit(x.size());
  for (std::int64_t i = 0; i < size(x); ++i) {
    unit[i] = 1;
    g.push_back(directional_difference(f, x, unit));
    unit[i] = 0;
  }
  return g;
}

::testing::AssertionResult is_gradient(const std::vector<float>& got, const Scalar& f, const Vec& x, double tolerance) {
  if (got.size() != x.size()) return ::testing::AssertionFailure() << got.size() << " gradients of " << x.size();
  if (got.size() <= 400) return all_close(got, central_differences(f, x), tolerance);
  std::mt19937 gen(17);
  std::vector<float> some;
  Vec want, direction(x.size());
  for (int n = 0; n < 150; ++n) {
    const std::size_t i = gen() % x.size();
    direction[i] = 1;
    some.push_back(got[i]);
    want.push_back(directional_difference(f, x, direction));
    direction[i] = 0;
  }
  if (const auto result = all_close(some, want, tolerance); !result) return result;
  for (int n = 0; n < 3; ++n) {
    for (double& d : direction) d = gen() % 2 == 0 ? 1.0 : -1.0;
    const double sum = dot(Vec(got.begin(), got.end()), direction), want_sum = directional_difference(f, x, direction);
    if (!(std::abs(sum - want_sum) <= tolerance * static_cast<double>(x.size()))) {
      return ::testing::AssertionFailure() << "random direction " << n << ": " << sum << ", expected " << want_sum;
    }
  }
  return ::testing::AssertionSuccess();
}

}  // namespace emox::test::ref
