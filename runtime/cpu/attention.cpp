// Causal attention inside segments, block by block (the online softmax of FlashAttention, Dao et al. 2022).
//
// A strip of queries, two registers wide, meets a block of keys at a time. The block of scores is kept transposed, keys
// by queries: a register then holds one key's scores of many queries, and maxima and sums over keys need no work across
// lanes. What lies above the diagonal is skipped in groups of kGroup queries or keys, so that short documents, which
// are nearly all diagonal, cost little more than their causal half. Heads are copied to contiguous scratch first: rows
// of qkv lie a multiple of 4 KiB apart in large models, where a few of them fill their part of the cache. On the way
// queries and keys are rotated to their positions, and their gradients back: no pass over memory of its own.
#include <algorithm>
#include <cmath>
#include <limits>

#include "runtime/cpu/attention_rows.h"
#include "runtime/cpu/block_product.h"
#include "runtime/cpu/kernels.h"
#include "runtime/cpu/parallel.h"
#include "runtime/cpu/prefetch.h"
#include "runtime/cpu/segments.h"
#include "runtime/telemetry/spans.h"

namespace emox::cpu {
namespace {

constexpr std::int64_t kKeys = 64;  // keys of one block
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// 2 * products * head_dim * n(n+1)/2 FLOPs a segment and head.
double flops(const Segments& s, std::int64_t width, double products) {
  double pairs = 0;
  for (std::int64_t i = 0; i < s.count; ++i) {
    const double n = s.at[i + 1] - s.at[i];
    pairs += n * (n + 1) / 2;
  }
  return 2.0 * products * static_cast<double>(width) * pairs;
}

// A strip of queries against a block of keys, both within one segment.
struct Block {
  std::int64_t q0, nq;  // the queries
  std::int64_t k0, nk;  // the keys: whole groups, the last of which may run beyond the segment

  std::int64_t registers() const { return (nq + kLanes - 1) / kLanes; }
  // Keys that any of the queries [first, first + count) of the strip sees, as a multiple of kGroup; may be negative.
  std::int64_t seen(std::int64_t first, std::int64_t count) const { return std::min(nk, q0 + first + count - k0); }
  // Keys that all queries from `first` on see.
  std::int64_t seen_by_all(std::int64_t first) const { return std::min(nk, q0 + first + 1 - k0); }
  // The first query of the strip that sees a key of the group at `key`.
  std::int64_t first_query(std::int64_t key) const { return std::max<std::int64_t>(0, k0 + key - q0); }
};

// Asks for rows that the next strip reads and this one writes while this one computes. A head's rows are short pieces
// of long rows, which the processor does not foresee: without this, waiting for them takes half as long as the
// products.
class RowFetch {
 public:
  // `calls` of advance() at least.
  explicit RowFetch(std::int64_t calls) : at_once_(std::max<std::int64_t>(2, (kStrip + calls - 1) / calls)) {}
  void to_read(Rows<const float> rows, std::int64_t count) { read_[reads_++] = {rows, count}; }
  void to_write(Rows<float> rows, std::int64_t count) { write_[writes_++] = {rows, count}; }
  // Called before each group of a product.
  void advance(const HeadShape& p) {
    if (at_ >= kStrip) return;
    for (int i = 0; i < reads_; ++i)
      for (std::int64_t row = at_; row < std::min(at_ + at_once_, read_[i].count); ++row)
        fetch_to_read(read_[i].rows.at + row * read_[i].rows.row, p.head_dim);
    for (int i = 0; i < writes_; ++i)
      for (std::int64_t row = at_; row < std::min(at_ + at_once_, write_[i].count); ++row)
        fetch_to_write(write_[i].rows.at + row * write_[i].rows.row, p.head_dim);
    at_ += at_once_;
  }

 private:
  template <typename T>
  struct Piece {
    Rows<T> rows;
    std::int64_t count;
  };
  Piece<const float> read_[5];
  Piece<float> write_[3];
  int reads_ = 0, writes_ = 0;
  const std::int64_t at_once_;
  std::int64_t at_ = 0;
};

// The strip after this one: of the same head or the first of the next one. After the last head that is some other
// memory, which costs a little and harms nothing.
struct Following {
  std::int64_t row, column, count;

  Following(const HeadShape& p, std::int64_t n, std::int64_t end)
      : row(end < n ? end : 0), column(end < n ? 0 : p.head_dim), count(std::min(kStrip, n - row)) {}
  Rows<const float> of(Rows<const float> rows, std::int64_t part) const {
    return {rows.at + row * rows.row + column + part, rows.row};
  }
};

// to[key, query] = <rows of left, columns of right>, but for registers of queries that see none of a group's keys.
void transposed_scores(const HeadShape& p, const Block& b, float* to, const float* left, const float* right,
                       RowFetch& fetch) {
  for (std::int64_t g = 0; g < b.nk; g += kGroup) {
    const std::int64_t first = b.first_query(g) / kLanes * kLanes;
    fetch.advance(p);
    product_group({to + g * kStrip + first, kStrip}, {left + (b.k0 + g) * p.padded_dim, p.padded_dim, 1},
                  {right + first, kStrip}, p.head_dim, b.registers() * kLanes - first, false);
  }
}

// to[query, :] += sum over keys of weights[key, query] rows[key, :]
void add_keys(const HeadShape& p, const Block& b, float* to, const float* weights, const float* rows, RowFetch& fetch) {
  for (std::int64_t g = 0; g < b.nq; g += kGroup) {
    const std::int64_t seen = b.seen(g, kGroup);
    fetch.advance(p);
    if (seen > 0)
      product_group({to + g * p.padded_dim, p.padded_dim}, {weights + g, 1, kStrip},
                    {rows + b.k0 * p.padded_dim, p.padded_dim}, seen, p.padded_dim, b.k0 > 0);
  }
}

// to[key, :] += sum over queries of weights[key, query] rows[query, :]. The strip on the diagonal is the first to touch
// a key's row.
void add_queries(const HeadShape& p, const Block& b, float* to, const float* weights, const float* rows,
                 RowFetch& fetch) {
  for (std::int64_t g = 0; g < b.nk; g += kGroup) {
    const std::int64_t first = b.first_query(g);
    fetch.advance(p);
    product_group({to + (b.k0 + g) * p.padded_dim, p.padded_dim}, {weights + g * kStrip + first, kStrip, 1},
                  {rows + first * p.padded_dim, p.padded_dim}, b.nq - first, p.padded_dim, b.k0 + g < b.q0);
  }
}

// Lanes of the queries from `first` on that do not see the key.
IntLanes hidden(const Block& b, std::int64_t first, std::int64_t key) {
  return lane_numbers() < static_cast<std::int32_t>(b.k0 + key - b.q0 - first);
}

// Scores of one register of queries -> exp(score - maximum). Returns by how much earlier sums and outputs shrink.
Lanes softmax_register(const Block& b, std::int64_t first, float* scores, float* high, float* sum) {
  constexpr int kWays = 4;  // independent chains, or the latency of one operation is the pace
  static_assert(kGroup % kWays == 0);
  const std::int64_t seen = b.seen(first, kLanes);
  const Lanes before = load(high + first);
  if (seen <= 0) return all_lanes(1.0F);
  for (std::int64_t k = std::max<std::int64_t>(0, b.seen_by_all(first)); k < seen; ++k) {
    float* s = scores + k * kStrip + first;
    store(s, hidden(b, first, k) ? all_lanes(-kInfinity) : load(s));
  }
  Lanes most[kWays];
  for (int w = 0; w < kWays; ++w) most[w] = before;
  for (std::int64_t k = 0; k < seen; k += kWays)
    for (int w = 0; w < kWays; ++w) most[w] = larger(load(scores + (k + w) * kStrip + first), most[w]);
  const Lanes now = larger(larger(most[0], most[1]), larger(most[2], most[3]));
  Lanes total[kWays] = {};
  for (std::int64_t k = 0; k < seen; k += kWays) {
    for (int w = 0; w < kWays; ++w) {
      float* s = scores + (k + w) * kStrip + first;
      const Lanes e = exp_nonpositive(load(s) - now);
      store(s, e);
      total[w] += e;
    }
  }
  const Lanes shrink = exp_nonpositive(before - now);
  store(high + first, now);
  store(sum + first, load(sum + first) * shrink + ((total[0] + total[1]) + (total[2] + total[3])));
  return shrink;
}

void scale_row(const HeadShape& p, float* row, float factor) {
  for (std::int64_t d = 0; d < p.padded_dim; d += kLanes) store(row + d, load(row + d) * factor);
}

// One segment and head: out and lse of n tokens.
struct ForwardTask {
  Rows<const float> qkv;
  Rows<float> out;
  float* lse;
  std::int64_t n;
  Angles angles;
};

void forward_segment(const HeadShape& p, const ForwardTask& t) {
  thread_local Scratch memory;
  const std::int64_t rows = round_up(t.n, kGroup), d = p.padded_dim;
  float* const keys = memory.floats((2 * rows + 3 * kStrip) * d);
  float *values = keys + rows * d, *query = values + rows * d, *query_t = query + kStrip * d;
  float* out = query_t + kStrip * d;
  alignas(64) float scores[kKeys * kStrip], high[kStrip], sum[kStrip], shrink[kStrip];
  for (std::int64_t q0 = 0; q0 < t.n; q0 += kStrip) {
    const std::int64_t nq = std::min(kStrip, t.n - q0), groups = round_up(nq, kGroup), end = q0 + groups;
    const std::int64_t queries = round_up(nq, kLanes);
    const Rows<const float> qkv{t.qkv.at + q0 * t.qkv.row, t.qkv.row};
    const Angles angles = t.angles.from(q0);
    pack_rotated(p, query, qkv, nq, queries, angles);
    pack_rotated(p, keys + q0 * d, {qkv.at + p.width, qkv.row}, nq, groups, angles);
    pack(p, values + q0 * d, {qkv.at + 2 * p.width, qkv.row}, nq, groups);
    transpose_strip(p, query_t, query, queries, p.scale);
    RowFetch fetch((end + groups) / kGroup);
    const Following next(p, t.n, q0 + nq);
    for (std::int64_t part = 0; part < 3; ++part) fetch.to_read(next.of(t.qkv, part * p.width), next.count);
    fetch.to_write({t.out.at + q0 * t.out.row, t.out.row}, nq);
    std::fill_n(high, kStrip, -kInfinity);
    std::fill_n(sum, kStrip, 0.0F);
    for (std::int64_t k0 = 0; k0 < end; k0 += kKeys) {
      const Block b{q0, nq, k0, std::min(kKeys, end - k0)};
      transposed_scores(p, b, scores, keys, query_t, fetch);
      for (std::int64_t i = 0; i < b.registers(); ++i)
        store(shrink + i * kLanes, softmax_register(b, i * kLanes, scores, high, sum));
      for (std::int64_t i = 0; k0 > 0 && i < nq; ++i)
        if (shrink[i] != 1.0F) scale_row(p, out + i * d, shrink[i]);
      add_keys(p, b, out, scores, values, fetch);
    }
    for (std::int64_t i = 0; i < nq; ++i) scale_row(p, out + i * d, 1.0F / sum[i]);
    for (std::int64_t i = 0; i < nq; ++i) t.lse[q0 + i] = high[i] + std::log(sum[i]);
    unpack(p, {t.out.at + q0 * t.out.row, t.out.row}, out, nq);
  }
}

// One segment and head: the gradient of n rows of qkv.
struct BackwardTask {
  Rows<const float> qkv, out, dout;
  const float* lse;
  Rows<float> dqkv;
  std::int64_t n;
  Angles angles;
};

// Scores -> softmax weights, and their gradients before the softmax -> those of the scores, times the scale:
// ds = weight (dweight - delta), delta = <dout, out>.
void softmax_backward(const HeadShape& p, const Block& b, float* weights, float* grads, const float* lse,
                      const float* delta) {
  for (std::int64_t first = 0; first < b.nq; first += kLanes) {
    const Lanes l = load(lse + first), dl = load(delta + first);
    const std::int64_t seen = b.seen(first, kLanes), all = b.seen_by_all(first);
    for (std::int64_t k = 0; k < seen; ++k) {
      float *w = weights + k * kStrip + first, *g = grads + k * kStrip + first;
      Lanes weight = exp_nonpositive(load(w) - l);
      if (k >= all) weight = hidden(b, first, k) ? Lanes{} : weight;
      store(w, weight);
      store(g, weight * (load(g) - dl) * p.scale);
    }
  }
}

void backward_segment(const HeadShape& p, const BackwardTask& t) {
  thread_local Scratch memory;
  const std::int64_t rows = round_up(t.n, kGroup), d = p.padded_dim, w = p.width;
  float* const keys = memory.floats((4 * rows + 5 * kStrip) * d);
  float *values = keys + rows * d, *dkeys = values + rows * d, *dvalues = dkeys + rows * d;
  float *query = dvalues + rows * d, *dout = query + kStrip * d, *dquery = dout + kStrip * d;
  float *query_t = dquery + kStrip * d, *dout_t = query_t + kStrip * d;
  alignas(64) float weights[kKeys * kStrip], grads[kKeys * kStrip], lse[kStrip] = {}, delta[kStrip] = {};
  for (std::int64_t q0 = 0; q0 < t.n; q0 += kStrip) {
    const std::int64_t nq = std::min(kStrip, t.n - q0), groups = round_up(nq, kGroup), end = q0 + groups;
    const std::int64_t queries = round_up(nq, kLanes);
    const Rows<const float> qkv{t.qkv.at + q0 * t.qkv.row, t.qkv.row};
    const Angles angles = t.angles.from(q0);
    pack_rotated(p, query, qkv, nq, queries, angles);
    pack_rotated(p, keys + q0 * d, {qkv.at + w, qkv.row}, nq, groups, angles);
    pack(p, values + q0 * d, {qkv.at + 2 * w, qkv.row}, nq, groups);
    pack(p, dout, {t.dout.at + q0 * t.dout.row, t.dout.row}, nq, queries);
    transpose_strip(p, query_t, query, queries, p.scale);
    transpose_strip(p, dout_t, dout, queries, 1.0F);
    RowFetch fetch((4 * end + groups) / kGroup);
    const Following next(p, t.n, q0 + nq);
    for (std::int64_t part = 0; part < 3; ++part) {
      fetch.to_read(next.of(t.qkv, part * w), next.count);
      fetch.to_write({t.dqkv.at + q0 * t.dqkv.row + part * w, t.dqkv.row}, nq);
    }
    fetch.to_read(next.of(t.out, 0), next.count);
    fetch.to_read(next.of(t.dout, 0), next.count);
    for (std::int64_t i = 0; i < nq; ++i) {
      const float* o = t.out.at + (q0 + i) * t.out.row;
      float dot = 0;
#pragma omp simd reduction(+ : dot)
      for (std::int64_t j = 0; j < p.head_dim; ++j) dot += o[j] * dout[i * d + j];
      delta[i] = dot;
      lse[i] = t.lse[q0 + i];
    }
    for (std::int64_t k0 = 0; k0 < end; k0 += kKeys) {
      const Block b{q0, nq, k0, std::min(kKeys, end - k0)};
      transposed_scores(p, b, weights, keys, query_t, fetch);
      transposed_scores(p, b, grads, values, dout_t, fetch);
      softmax_backward(p, b, weights, grads, lse, delta);
      add_queries(p, b, dvalues, weights, dout, fetch);
      add_queries(p, b, dkeys, grads, query, fetch);
      add_keys(p, b, dquery, grads, keys, fetch);
    }
    unpack_rotated(p, {t.dqkv.at + q0 * t.dqkv.row, t.dqkv.row}, dquery, nq, angles);
  }
  unpack_rotated(p, {t.dqkv.at + w, t.dqkv.row}, dkeys, t.n, t.angles);
  unpack(p, {t.dqkv.at + 2 * w, t.dqkv.row}, dvalues, t.n);
}

}  // namespace

void attention(Context& ctx, TensorView out, TensorView lse, TensorView qkv, TensorView segments, int heads,
               const ops::Rotation& rotation) {
  const HeadShape p = describe(qkv, heads);
  const Segments s = checked_segments("attention", segments, qkv.dim(0));
  const Angles angles = checked_angles("attention", rotation);
  const Span span(ctx, "attention", flops(s, p.width, 2), static_cast<double>(qkv.bytes() + out.bytes()));
  const std::int64_t tokens = qkv.dim(0);
  auto *po = out.data<float>(), *pl = lse.data<float>();
  const auto* pq = qkv.data<float>();
  parallel_tasks(ctx, s.count * heads, [&](std::int64_t task) {
    const std::int64_t h = task % heads, begin = s.at[task / heads], n = s.at[task / heads + 1] - begin;
    const std::int64_t column = h * p.head_dim;
    forward_segment(p, {{pq + begin * p.stride + column, p.stride},
                        {po + begin * p.width + column, p.width},
                        pl + h * tokens + begin,
                        n,
                        angles.from(begin)});
  });
}

void attention_backward(Context& ctx, TensorView dqkv, TensorView dout, TensorView out, TensorView lse, TensorView qkv,
                        TensorView segments, int heads, const ops::Rotation& rotation) {
  const HeadShape p = describe(qkv, heads);
  const Segments s = checked_segments("attention_backward", segments, qkv.dim(0));
  const Angles angles = checked_angles("attention_backward", rotation);
  const Span span(ctx, "attention_backward", flops(s, p.width, 4),
                  static_cast<double>(2 * qkv.bytes() + 2 * out.bytes()));
  const std::int64_t tokens = qkv.dim(0);
  const auto *pq = qkv.data<float>(), *po = out.data<float>(), *pd = dout.data<float>(), *pl = lse.data<float>();
  auto* pdq = dqkv.data<float>();
  parallel_tasks(ctx, s.count * heads, [&](std::int64_t task) {
    const std::int64_t h = task % heads, begin = s.at[task / heads], n = s.at[task / heads + 1] - begin;
    const std::int64_t column = h * p.head_dim;
    backward_segment(p, {{pq + begin * p.stride + column, p.stride},
                         {po + begin * p.width + column, p.width},
                         {pd + begin * p.width + column, p.width},
                         pl + h * tokens + begin,
                         {pdq + begin * p.stride + column, p.stride},
                         n,
                         angles.from(begin)});
  });
}

}  // namespace emox::cpu
