// The router by its ops: logits, pools, picks, losses, gradients.
#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/ops/basic.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/moe.h"
#include "tests/support/golden.h"
#include "tests/support/reference.h"
#include "tests/support/support.h"

namespace emox::test {
namespace {

struct Sizes {
  explicit Sizes(const GoldenCase& c)
      : tokens(c.integer("batch") * c.integer("sequence")),
        width(c.integer("d_model")),
        experts(c.integer("experts")),
        shared(c.integer("shared")),
        n(experts - shared),
        slots(c.integer("top_k")),
        k(slots - shared) {}
  std::int64_t tokens, width, experts, shared, n, slots, k;
};

// Pool of every segment, or null without pools.
Tensor pools_of(GoldenCase& c, Context& ctx, const Sizes& s, const TensorView& logits, const TensorView& segments) {
  if (!c.has_file("draws.npy")) return {};
  const std::int64_t docs = segments.numel() - 1;
  const Tensor p(ctx.device, DType::F32, {s.tokens, s.n}), scores(ctx.device, DType::F32, {docs, s.n});
  Tensor pool(ctx.device, DType::U8, {docs, s.n});
  ops::router_softmax(ctx, p, logits);
  ops::document_scores(ctx, scores, p, segments);
  ops::document_pools(ctx, pool, scores, on(ctx, tensor_of(c.tokens("draws.npy"), {docs})));
  if (c.has_file("segment_scores.npy")) c.expect_close("segment_scores.npy", ref::doubles(scores));
  if (c.has_file("kept.npy")) c.expect_exact("kept.npy", integers_of(pool));
  return pool;
}

// The routed columns of values given for all slots.
std::vector<float> routed_slots(const std::vector<float>& all, const Sizes& s) {
  std::vector<float> routed;
  for (std::size_t i = 0; i < all.size(); ++i)
    if (static_cast<std::int64_t>(i) % s.slots < s.k) routed.push_back(all[i]);
  return routed;
}

void expect_zero_outside_the_pool(const std::vector<double>& got, const std::vector<double>& want) {
  for (std::size_t i = 0; i < want.size(); ++i)
    if (want[i] == 0 && got[i] != 0) FAIL() << "p.npy, element " << i << " is outside of the pool: " << got[i];
}

void run_router(GoldenCase& c) {
  const Sizes s(c);
  Context ctx = golden_context();
  ModelConfig config;
  config.eos = golden_eos_rule(c);
  const std::vector<std::int32_t> ids = c.tokens("token_ids.npy");
  config.vocab_size = *std::max_element(ids.begin(), ids.end()) + 1;
  config.sequence_length = c.integer("sequence");
  const MicroBatch batch = make_micro_batch(config, static_cast<std::int32_t>(c.integer("eos")),
                                            golden_sequences(ids, c.integer("sequence")));
  if (c.has_file("segments.npy")) c.expect_exact("segments.npy", golden_segments(batch, c.integer("sequence")));
  const Tensor segments =
      on(ctx, tensor_of(batch.pool_segments, {static_cast<std::int64_t>(batch.pool_segments.size())}));

  const Tensor x = on(ctx, tensor_of(c.floats("x.npy"), {s.tokens, s.width}));
  const Tensor weight = on(ctx, tensor_of(c.floats("router_weight.npy"), {s.experts, s.width}));
  if (c.has_file("logits.npy")) {
    const Tensor all(ctx.device, DType::F32, {s.tokens, s.experts});
    ops::matmul_nt(ctx, all, x, weight);
    c.expect_close("logits.npy", ref::doubles(all));
  }
  const Tensor logits(ctx.device, DType::F32, {s.tokens, s.n});
  ops::matmul_nt(ctx, logits, x, weight.view().rows(0, s.n));
  const Tensor pool = pools_of(c, ctx, s, logits, segments);

  const Tensor p(ctx.device, DType::F32, {s.tokens, s.n}), lse(ctx.device, DType::F32, {s.tokens}),
      picks(ctx.device, DType::I32, {s.tokens, s.k});
  const Tensor gates(ctx.device, DType::F32, {s.tokens, s.k});
  const ops::TopkResult route{p, lse, picks, gates};
  ops::masked_topk(ctx, route, logits, pool, pool.view().null() ? TensorView{} : segments.view(), {}, false);
  c.expect_close("p.npy", ref::doubles(p));
  expect_zero_outside_the_pool(ref::doubles(p), c.reals("p.npy"));
  c.expect_exact("topk_ids.npy", with_shared_ids(picks, s.n, s.shared));
  const std::vector<double> all_gates = with_shared_gates(gates, s.shared);
  c.expect_close("gates.npy", all_gates);

  const Tensor counts(ctx.device, DType::I64, {s.n}), p_sum(ctx.device, DType::F64, {s.n}),
      z_sum(ctx.device, DType::F64, {1});
  ops::router_statistics(ctx, counts, p_sum, z_sum, route);
  c.expect_exact("counts.npy", integers_of(counts));
  std::vector<double> pbar = ref::doubles(p_sum);
  for (double& v : pbar) v /= static_cast<double>(s.tokens);
  c.expect_close("pbar.npy", pbar);

  const double a = c.real("a"), b = c.real("b"), divisor = c.real("divisor"), z = ref::doubles(z_sum).front() / divisor;
  const GoldenBalance balance = golden_balance(counts, p_sum, s.k, static_cast<double>(s.tokens), divisor, a);
  if (c.has("balance_loss")) c.expect_scalar("balance_loss", balance.loss);
  if (c.has("router_z")) c.expect_scalar("router_z", z);
  const std::vector<float> cotangent = c.floats("gate_cotangent.npy");
  c.expect_scalar("objective", ref::dot(all_gates, {cotangent.begin(), cotangent.end()}) + a * balance.loss + b * z);

  const Tensor dlogits(ctx.device, DType::F32, {s.tokens, s.n}), dx(ctx.device, DType::F32, {s.tokens, s.width});
  const Tensor dweight(ctx.device, DType::F32, {s.experts, s.width});
  ops::masked_topk_backward(ctx, dlogits, on(ctx, tensor_of(routed_slots(cotangent, s), {s.tokens, s.k})), route,
                            on(ctx, tensor_of(balance.gradient, {s.n})), static_cast<float>(b / divisor), false);
  ops::matmul_nn(ctx, dx, dlogits, weight.view().rows(0, s.n));
  ops::matmul_tn(ctx, dweight.view().rows(0, s.n), dlogits, x);
  c.expect_close("grad_x.npy", ref::doubles(dx));
  c.expect_close("grad_router_weight.npy", ref::doubles(dweight));
}

TEST(Golden, Router) { for_each_golden_case(EMOX_SOURCE_DIR, "router", run_router); }

}  // namespace
}  // namespace emox::test
