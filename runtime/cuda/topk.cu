// Softmax and top-k inside the pools, and their backward.
//
// A warp has a token, its row in registers (router_rows.h): mask, softmax, selection and gates are one pass over
// memory. The k picks are k times a maximum over the warp, of numbers in the order of the scores (ordered_bits), by the
// warp's integer reductions: 2 of them and about 3 instructions a column and lane for each pick. Wider rows than
// kRegisterColumns keep scores and numbers in scratch, for as many warps as fit on the device.
#include <cfloat>
#include <climits>

#include "runtime/cuda/documents.h"
#include "runtime/cuda/kernels.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/router_rows.h"
#include "runtime/cuda/scratch_arrays.h"

namespace emox::cuda {
namespace {

using ops::Op;
using ops::TopkResult;

constexpr int kTopkThreads = 256;

struct TopkArguments {
  float *p, *lse, *gates;
  std::int32_t* ids;
  const float* logits;
  const std::uint8_t* pool;  ///< null: all experts
  const std::int32_t* segments;
  const float* bias;                ///< null: none
  const std::uint8_t* free_tokens;  ///< null: none
  std::int64_t tokens, width;       ///< of the rows of logits and p
  int documents, n, k;
  bool normalize;
  double* fault;
  float* scores;      ///< [warps, scratch_width] for wide rows
  unsigned* numbers;  ///< the same
  int scratch_width;
};

/// A pool that holds less than k experts is a fault.
template <int kSlots>
__device__ inline void check_pool(const TopkArguments& a, std::int64_t document) {
  int members = 0;
  for_columns<kSlots>(a.n, [&](int, int column) { members += a.pool[document * a.n + column] != 0 ? 1 : 0; });
  members = over_warp(members, Plus());
  if (members < a.k && threadIdx.x % kWarp == 0) report_fault(a.fault, Op::masked_topk, 3, document);
}

/// The k largest numbers by falling order, ties to the lowest column, taken out one by one: 0 is not there. Too small a
/// pool, which check_pool reports, ends with picks of column 0. Writes the token's ids and gates.
template <int kSlots>
__device__ __forceinline__ void pick_experts(const TopkArguments& a, std::int64_t token,
                                             LaneColumns<unsigned, kSlots>& number, LaneColumns<float, kSlots>& p) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  std::int32_t* const ids = a.ids + token * a.k;
  float* const gates = a.gates + token * a.k;
  // Pick j is kept by lane j % 32 until 32 of them can be written.
  int pick = 0;
  float gate = 0, sum = 0;
  for (int j = 0; j < a.k; ++j) {
    unsigned best = 0, at = UINT_MAX;
    for_columns<kSlots>(a.n, [&](int i, int) { best = number[i] > best ? number[i] : best; });
    best = __reduce_max_sync(kAllLanes, best);
    for_columns<kSlots>(a.n, [&](int i, int column) {
      if (number[i] == best && static_cast<unsigned>(column) < at) at = static_cast<unsigned>(column);
    });
    at = __reduce_min_sync(kAllLanes, at);
    float g = 0;
    for_columns<kSlots>(a.n, [&](int i, int column) {
      if (static_cast<unsigned>(column) != at) return;
      g = p[i];
      number[i] = 0;
    });
    g = __shfl_sync(kAllLanes, g, static_cast<int>(at) % kWarp);
    sum += g;
    if (lane == j % kWarp) pick = static_cast<int>(at), gate = g;
    if (j % kWarp == kWarp - 1 && j + 1 < a.k) ids[j + 1 - kWarp + lane] = pick, gates[j + 1 - kWarp + lane] = gate;
  }
  const int last = (a.k - 1) / kWarp * kWarp;
  if (lane < a.k - last) ids[last + lane] = pick, gates[last + lane] = a.normalize ? gate / sum : gate;
  if (a.normalize)
    for (int j = lane; j < last; j += kWarp) gates[j] /= sum;
}

template <int kSlots>
__global__ void __launch_bounds__(kTopkThreads) masked_topk_kernel(TopkArguments a) {
  const std::int64_t first = warp_of_grid(), rounds = a.tokens > a.documents ? a.tokens : a.documents;
  const std::int64_t own = kSlots > 0 ? 0 : first * a.scratch_width;
  for (std::int64_t t = first; t < rounds; t += warps_of_grid()) {
    if (t < a.documents) check_pool<kSlots>(a, t);
    if (t >= a.tokens) continue;
    const float* const row = a.logits + t * a.width;
    const std::uint8_t* mask = nullptr;
    if (a.documents > 0 && (a.free_tokens == nullptr || a.free_tokens[t] == 0))
      mask = a.pool + static_cast<std::int64_t>(document_of_warp(a.segments, a.documents, t)) * a.n;
    const auto allowed = [&](int column) { return mask == nullptr || mask[column] != 0; };
    LaneColumns<float, kSlots> p(a.p + t * a.width), score(a.scores + own);
    LaneColumns<unsigned, kSlots> number(a.numbers + own);
    for_columns<kSlots>(a.n, [&](int i, int column) {
      const bool member = allowed(column);
      number[i] = member ? 1 : 0;
      score[i] = member ? row[column] : -INFINITY;
    });
    const float lse = softmax_of_row<kSlots>(
        p, [&](int i, int) { return score[i]; }, a.n);
    // By logit, not by p: the same order, but experts outside the pool stay below p = 0 inside it. NaN and -infinity
    // count as the lowest number.
    for_columns<kSlots>(a.n, [&](int i, int column) {
      const float s = a.bias == nullptr ? score[i] : __fadd_rn(p[i], a.bias[column]);
      if (number[i] != 0) number[i] = ordered_bits(s > -FLT_MAX ? s : -FLT_MAX);
      if constexpr (kSlots > 0) a.p[t * a.width + column] = p[i];
    });
    if (threadIdx.x % kWarp == 0) a.lse[t] = lse;
    if (a.k > 0) pick_experts<kSlots>(a, t, number, p);
  }
}

struct TopkBackwardArguments {
  float* dlogits;
  const float *dgates, *p, *lse, *gates;
  const std::int32_t* ids;
  const float* balance;  ///< null: none
  std::int64_t tokens, width;
  int n, k;
  float z_grad;
  bool normalize;
  double* fault;
};

template <int kSlots>
__global__ void __launch_bounds__(kTopkThreads) masked_topk_backward_kernel(TopkBackwardArguments a) {
  const std::int64_t t = warp_of_grid();
  if (t >= a.tokens) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const float* const p = a.p + t * a.width;
  const std::int32_t* const ids = a.ids + t * a.k;
  const float *const gates = a.gates + t * a.k, *const dgates = a.dgates + t * a.k;
  const auto fits = [&](std::int32_t id) { return id >= 0 && id < a.n; };
  LaneColumns<float, kSlots> dp(a.dlogits + t * a.width);
  for_columns<kSlots>(a.n, [&](int i, int column) { dp[i] = a.balance == nullptr ? 0.0F : a.balance[column]; });
  // Renormalised gates g_j = p_j / s with s = sum p: dp_j = (dg_j - <g, dg>) / s.
  float inverse = 1.0F, mean = 0.0F;
  if (a.normalize) {
    float s = 0;
    for (int j = lane; j < a.k; j += kWarp) {
      if (fits(ids[j])) s += p[ids[j]];
      mean += gates[j] * dgates[j];
    }
    mean = over_warp(mean, Plus());
    inverse = 1.0F / over_warp(s, Plus());
  }
  for (int base = 0; base < a.k; base += kWarp) {
    const int j = base + lane, picks = a.k - base < kWarp ? a.k - base : kWarp;
    int id = -1;
    float d = 0;
    if (j < a.k) {
      id = ids[j];
      if (!fits(id)) report_fault(a.fault, Op::masked_topk_backward, 3, t * a.k + j), id = -1;
      d = (dgates[j] - mean) * inverse;
    }
    for (int from = 0; from < picks; ++from) {
      const int column_of_pick = __shfl_sync(kAllLanes, id, from);
      const float dp_of_pick = __shfl_sync(kAllLanes, d, from);
      if constexpr (kSlots == 0) {
        if (column_of_pick >= 0 && column_of_pick % kWarp == lane) dp[column_of_pick / kWarp] += dp_of_pick;
      } else {
        for_columns<kSlots>(a.n, [&](int i, int column) { dp[i] += column == column_of_pick ? dp_of_pick : 0.0F; });
      }
    }
  }
  float dot = 0;
  for_columns<kSlots>(a.n, [&](int i, int column) { dot += p[column] * dp[i]; });
  dot = over_warp(dot, Plus());
  const float z = 2.0F * a.z_grad * a.lse[t];
  float* const out = a.dlogits + t * a.width;
  for_columns<kSlots>(a.n, [&](int i, int column) { out[column] = p[column] * (dp[i] - dot + z); });
  for (std::int64_t column = a.n + lane; column < a.width; column += kWarp) out[column] = 0.0F;
}

}  // namespace

void masked_topk(Context& ctx, TopkResult out, TensorView logits, TensorView pool, TensorView segments, TensorView bias,
                 bool normalize, TensorView free_tokens) {
  Queue& q = queue_of(ctx);
  const std::int64_t tokens = logits.dim(0), n = out.experts();
  const std::int64_t documents = pool.null() ? 0 : pool.dim(0), rounds = tokens > documents ? tokens : documents;
  TopkArguments a{};
  a.p = out.p.data<float>(), a.lse = out.lse.data<float>(), a.gates = out.gates.data<float>();
  a.ids = out.ids.data<std::int32_t>();
  a.logits = logits.data<float>();
  if (documents > 0) a.pool = pool.data<std::uint8_t>(), a.segments = segments.data<std::int32_t>();
  if (!bias.null()) a.bias = bias.data<float>();
  if (!free_tokens.null()) a.free_tokens = free_tokens.data<std::uint8_t>();
  a.tokens = tokens, a.width = logits.dim(1);
  a.documents = static_cast<int>(documents), a.n = static_cast<int>(n), a.k = static_cast<int>(out.ids.dim(1));
  a.normalize = normalize;
  a.fault = q.fault_word(ctx);
  dim3 blocks = blocks_of(rounds * kWarp, kTopkThreads);
  if (n > kRegisterColumns) {
    const auto most = static_cast<unsigned>(2048 / kTopkThreads * q.processors());
    blocks.x = blocks.x < most ? blocks.x : most;
    a.scratch_width = static_cast<int>((n + kWarp - 1) / kWarp * kWarp);
    const std::int64_t elements = static_cast<std::int64_t>(blocks.x) * (kTopkThreads / kWarp) * a.scratch_width;
    const auto [scores, numbers] = scratch_arrays<float, unsigned>(q, elements, elements);
    a.scores = scores, a.numbers = numbers;
  }
  by_columns(n, [&](auto slots) {
    launch(q, Op::masked_topk, masked_topk_kernel<decltype(slots)::value>, {blocks, kTopkThreads}, a);
  });
}

void masked_topk_backward(Context& ctx, TensorView dlogits, TensorView dgates, const TopkResult& fwd,
                          TensorView balance_grad, float z_grad, bool normalize) {
  Queue& q = queue_of(ctx);
  TopkBackwardArguments a{};
  a.dlogits = dlogits.data<float>();
  a.dgates = dgates.data<float>(), a.p = fwd.p.data<float>(), a.lse = fwd.lse.data<float>();
  a.gates = fwd.gates.data<float>(), a.ids = fwd.ids.data<std::int32_t>();
  if (!balance_grad.null()) a.balance = balance_grad.data<float>();
  a.tokens = dlogits.dim(0), a.width = dlogits.dim(1);
  a.n = static_cast<int>(fwd.experts()), a.k = static_cast<int>(fwd.ids.dim(1));
  a.z_grad = z_grad, a.normalize = normalize;
  a.fault = q.fault_word(ctx);
  by_columns(a.n, [&](auto slots) {
    launch(q, Op::masked_topk_backward, masked_topk_backward_kernel<decltype(slots)::value>,
           {blocks_of(a.tokens * kWarp, kTopkThreads), kTopkThreads}, a);
  });
}

}  // namespace emox::cuda
