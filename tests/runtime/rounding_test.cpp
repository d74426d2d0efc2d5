// Context::round_activations: every output that layers pass on is what the op gives without the flag, rounded to bf16;
// every other output is untouched. And the conversion that storage in bf16 needs.
#include <cmath>

#include "runtime/ops/basic.h"
#include "runtime/ops/experts.h"
#include "runtime/ops/layers.h"
#include "runtime/ops/loss.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/op_list.h"
#include "tests/runtime/router_testing.h"

namespace emox::test {
namespace {

using ops::Op;

struct OpOutputs {
  std::vector<Tensor> activations, others;
};
struct OpCase {
  Op op;
  std::function<OpOutputs(Context&)> call;
};

constexpr std::int64_t kT = 21, kD = 12, kF = 10, kHeads = 2, kV = 17;

Tensor r(Shape shape, unsigned seed) { return random_tensor(shape, seed); }

// Builds an OpOutputs: tensors cannot be copied.
OpOutputs made(std::initializer_list<Tensor*> activations, std::initializer_list<Tensor*> others) {
  OpOutputs o;
  for (Tensor* t : activations) o.activations.push_back(std::move(*t));
  for (Tensor* t : others) o.others.push_back(std::move(*t));
  return o;
}

std::vector<OpCase> cases() {
  const auto product = [](auto op, Shape c, Shape a, Shape b, bool activation) {
    return [=](Context& ctx) {
      Tensor out = r(c, 1);
      op(ctx, out, r(a, 2), r(b, 3), 1.0F);
      return activation ? made({&out}, {}) : made({}, {&out});
    };
  };
  const auto grouped = [](auto op, Shape c, Shape a, Shape b, bool activation) {
    return [=](Context& ctx) {
      Tensor out = r(c, 1);
      const Tensor offsets = tensor_of(std::vector<std::int64_t>{0, 8, 8, kT}, {4});
      if constexpr (std::is_invocable_v<decltype(op), Context&, TensorView, TensorView, TensorView, TensorView, float>)
        op(ctx, out, r(a, 2), r(b, 3), offsets, 1.0F);
      else
        op(ctx, out, r(a, 2), r(b, 3), offsets);
      return activation ? made({&out}, {}) : made({}, {&out});
    };
  };
  const auto segments = [] { return ids_of({0, 9, kT}); };
  const auto ids = [](std::int64_t below) {
    ref::Ids v;
    for (std::int64_t t = 0; t < kT; ++t) v.push_back(static_cast<std::int32_t>(t * 7 % below));
    return ids_of(v);
  };
  const auto angles = [](Context& ctx) {
    std::pair<Tensor, Tensor> t{Tensor({}, DType::F32, {kT, kD / kHeads / 2}),
                                Tensor({}, DType::F32, {kT, kD / kHeads / 2})};
    ops::rope_tables(ctx, t.first, t.second, 1e4);
    return t;
  };
  return {
      {Op::add,
       [](Context& ctx) {
         Tensor y = r({kT, kD}, 1);
         ops::add(ctx, y, r({kT, kD}, 2));
         return made({&y}, {});
       }},
      {Op::matmul_nt, product(ops::matmul_nt, {kT, kF}, {kT, kD}, {kF, kD}, true)},
      {Op::matmul_nn, product(ops::matmul_nn, {kT, kF}, {kT, kD}, {kD, kF}, true)},
      {Op::matmul_tn, product(ops::matmul_tn, {kD, kF}, {kT, kD}, {kT, kF}, false)},
      {Op::grouped_matmul_nt, grouped(ops::grouped_matmul_nt, {kT, kF}, {kT, kD}, {3, kF, kD}, true)},
      {Op::grouped_matmul_nn, grouped(ops::grouped_matmul_nn, {kT, kF}, {kT, kD}, {3, kD, kF}, true)},
      {Op::grouped_matmul_tn, grouped(ops::grouped_matmul_tn, {3, kD, kF}, {kT, kD}, {kT, kF}, false)},
      {Op::logits,
       [](Context& ctx) {
         Tensor z = filled({kT, kV + 3}, 0.0F);
         ops::logits(ctx, z, r({kT, kD}, 1), r({kV, kD}, 2));
         return made({}, {&z});
       }},
      {Op::logits_backward,
       [](Context& ctx) {
         Tensor dx = r({kT, kD}, 1), dw = r({kV, kD}, 2);
         ops::logits_backward(ctx, dx, dw, r({kT, kV}, 3), r({kT, kD}, 4), r({kV, kD}, 5));
         return made({&dx}, {&dw});
       }},
      {Op::embedding,
       [=](Context& ctx) {
         Tensor y = filled({kT, kD}, 0.0F);
         ops::embedding(ctx, y, ids(kV), r({kV, kD}, 1));
         return made({&y}, {});
       }},
      {Op::embedding_backward,
       [=](Context& ctx) {
         Tensor table = r({kV, kD}, 1);
         ops::embedding_backward(ctx, table, ids(kV), r({kT, kD}, 2));
         return made({}, {&table});
       }},
      {Op::rms_norm,
       [](Context& ctx) {
         Tensor y = filled({kT, kD}, 0.0F), rstd = filled({kT}, 0.0F);
         ops::rms_norm(ctx, y, rstd, r({kT, kD}, 1), r({kD}, 2), 1e-5F);
         return made({&y}, {&rstd});
       }},
      {Op::rms_norm_backward_add,
       [](Context& ctx) {
         Tensor dx = r({kT, kD}, 1), dscale = r({kD}, 2);
         ops::rms_norm_backward_add(ctx, dx, dscale, r({kT, kD}, 3), r({kT, kD}, 4), r({kT}, 5), r({kD}, 6));
         return made({&dx}, {&dscale});
       }},
      {Op::rope_tables,
       [=](Context& ctx) {
         auto t = angles(ctx);
         return made({}, {&t.first, &t.second});
       }},
      {Op::attention,
       [=](Context& ctx) {
         const auto t = angles(ctx);
         const Tensor at = ids(kT);
         const ops::Rotation rotation{at, t.first, t.second};
         Tensor out = filled({kT, kD}, 0.0F), lse = filled({kHeads, kT}, 0.0F);
         ops::attention(ctx, out, lse, r({kT, 3 * kD}, 1), segments(), kHeads, rotation);
         return made({&out}, {&lse});
       }},
      {Op::attention_backward,
       [=](Context& ctx) {
         const auto t = angles(ctx);
         const Tensor at = ids(kT);
         const ops::Rotation rotation{at, t.first, t.second};
         Context plain = context();
         const Tensor qkv = r({kT, 3 * kD}, 1), out = filled({kT, kD}, 0.0F), lse = filled({kHeads, kT}, 0.0F);
         ops::attention(plain, out, lse, qkv, segments(), kHeads, rotation);
         Tensor dqkv = filled({kT, 3 * kD}, 0.0F);
         ops::attention_backward(ctx, dqkv, r({kT, kD}, 2), out, lse, qkv, segments(), kHeads, rotation);
         return made({&dqkv}, {});
       }},
      {Op::swiglu,
       [](Context& ctx) {
         Tensor a = filled({kT, kF}, 0.0F);
         ops::swiglu(ctx, a, r({kT, 2 * kF}, 1), r({kT}, 2));
         return made({&a}, {});
       }},
      {Op::swiglu_backward,
       [](Context& ctx) {
         Tensor dh = filled({kT, 2 * kF}, 0.0F), a = filled({kT, kF}, 0.0F), dgates = filled({kT}, 0.0F);
         ops::swiglu_backward(ctx, dh, a, dgates, r({kT, kF}, 1), r({kT, 2 * kF}, 2), r({kT}, 3));
         return made({&dh, &a}, {&dgates});
       }},
      {Op::gather_rows,
       [=](Context& ctx) {
         Tensor out = filled({kT, kD}, 0.0F);
         ops::gather_rows(ctx, out, r({5, kD}, 1), ids(5));
         return made({&out}, {});
       }},
      {Op::combine_rows,
       [=](Context& ctx) {
         Tensor y = r({kT, kD}, 1);
         ops::combine_rows(ctx, y, r({5, kD}, 2), tensor_of(values_of<std::int32_t>(ids(5)), {kT, 1}), 1.0F);
         return made({&y}, {});
       }},
      {Op::lm_head_loss,
       [=](Context& ctx) {
         Tensor sums({}, DType::F64, {2}), losses = filled({kT}, 0.0F), dx = filled({kT, kD}, 0.0F),
                                           dw = r({kV, kD}, 1);
         const auto bytes = static_cast<std::int64_t>(ops::lm_head_loss_scratch({}, kT, kV));
         const Tensor x = r({kT, kD}, 2), weight = r({kV, kD}, 3), labels = ids(kV);
         ops::lm_head_loss(ctx, {sums, losses, dx, dw}, {x, weight, labels}, Tensor({}, DType::U8, {bytes}),
                           {0.1, 0.2});
         return made({&dx}, {&losses, &dw});
       }},
      {Op::masked_topk,
       [](Context& ctx) {
         TopkTensors t(kT, 9, 3);
         ops::masked_topk(ctx, t.result(), r({kT, 9}, 1), {}, {}, {}, true);
         return made({}, {&t.p, &t.lse, &t.gates});
       }},
  };
}

bool is_bf16(float x) { return (std::bit_cast<std::uint32_t>(x) & 0xFFFFU) == 0; }

// An op that makes several products rounds what lies between them, as the products alone do.
TEST(RoundedActivations, AreRoundedBetweenTheProductsOfAnExpert) {
  Context ctx;
  ctx.round_activations = true;
  const Tensor in = r({kT, kD}, 4), gates = r({kT}, 5), up = r({3, 2 * kF, kD}, 6), down = r({3, kD, kF}, 7),
               offsets = tensor_of(std::vector<std::int64_t>{0, 8, 8, kT}, {4});
  const Tensor out({}, DType::F32, {kT, kD}), hidden({}, DType::F32, {kT, 2 * kF}),
      activation({}, DType::F32, {kT, kF});
  const Tensor want({}, DType::F32, {kT, kD}), between({}, DType::F32, {kT, 2 * kF}), gated({}, DType::F32, {kT, kF});
  ops::experts(ctx, out, {in, gates, hidden, activation, offsets}, {up, down});
  ops::grouped_matmul_nt(ctx, between, in, up, offsets);
  ops::swiglu(ctx, gated, between, gates);
  ops::grouped_matmul_nt(ctx, want, gated, down, offsets);
  EXPECT_EQ(values_of<float>(hidden), values_of<float>(between));
  EXPECT_EQ(values_of<float>(out), values_of<float>(want));

  const Tensor drows = r({kT, kD}, 1), dgates({}, DType::F32, {kT}), dup({}, DType::F32, {3, 2 * kF, kD}),
               ddown({}, DType::F32, {3, kD, kF});
  const Tensor dwant = r({kT, kD}, 1), dgates_want({}, DType::F32, {kT}), dup_want({}, DType::F32, {3, 2 * kF, kD}),
               ddown_want({}, DType::F32, {3, kD, kF});
  ops::experts_backward(ctx, drows, dgates, {dup, ddown}, {in, gates, hidden, activation, offsets}, {up, down});
  ops::grouped_matmul_nn(ctx, gated, dwant, down, offsets);
  ops::swiglu_backward(ctx, between, gated, dgates_want, gated, between, gates);
  ops::grouped_matmul_tn(ctx, ddown_want, dwant, gated, offsets);
  ops::grouped_matmul_tn(ctx, dup_want, between, in, offsets);
  ops::grouped_matmul_nn(ctx, dwant, between, up, offsets);
  EXPECT_EQ(values_of<float>(drows), values_of<float>(dwant));
  EXPECT_EQ(values_of<float>(dgates), values_of<float>(dgates_want));
  EXPECT_EQ(values_of<float>(dup), values_of<float>(dup_want));
  EXPECT_EQ(values_of<float>(ddown), values_of<float>(ddown_want));
}

TEST(RoundedActivations, AreTheOpsOutputsRounded) {
  for (const OpCase& c : cases()) {
    SCOPED_TRACE(name_of(c.op));
    Context plain = context(), flagged = context();
    flagged.round_activations = true;
    const OpOutputs want = c.call(plain), got = c.call(flagged);
    ASSERT_EQ(got.activations.size(), want.activations.size());
    for (std::size_t i = 0; i < got.activations.size(); ++i) {
      const std::vector<float> a = floats(got.activations[i]), b = floats(want.activations[i]);
      bool exact = true;
      for (std::size_t j = 0; j < a.size(); ++j) {
        ASSERT_TRUE(is_bf16(a[j])) << a[j];
        ASSERT_EQ(a[j], rounded_to_bf16(b[j]));
        exact = exact && a[j] == b[j];
      }
      EXPECT_FALSE(exact) << "without the flag nothing is rounded";
    }
    for (std::size_t i = 0; i < got.others.size(); ++i) {
      const std::vector<float> a = floats(got.others[i]);
      EXPECT_EQ(a, floats(want.others[i]));
      EXPECT_FALSE(std::all_of(a.begin(), a.end(), is_bf16)) << "statistics, gates and sums stay f32";
    }
  }
}

TEST(Convert, RoundsDownAndBack) {
  for (const int threads : {1, 2})
    for (const std::int64_t n : {0, 1, 40000}) {
      Context ctx = context(threads);
      const Tensor x = random_tensor({n}, 1), back = poison({n}), low({}, DType::BF16, {n});
      ops::convert(ctx, low, x);
      ops::convert(ctx, back, low);
      const std::vector<float> from = floats(x), to = floats(back);
      for (std::size_t i = 0; i < from.size(); ++i) ASSERT_EQ(to[i], rounded_to_bf16(from[i]));
      expect_shape_error("convert", [&] { ops::convert(ctx, x, back); });
      expect_shape_error("convert", [&] { ops::convert(ctx, Tensor({}, DType::BF16, {n + 1}), x); });
    }
}

TEST(Activations, OfAnotherTypeThanTheContextsAreRefused) {
  Context ctx = context();
  const Tensor y({}, DType::BF16, {3, 2}), x({}, DType::BF16, {3, 2}), rstd = filled({3}, 0.0F),
                                                                       scale = filled({2}, 1.0F);
  expect_shape_error("rms_norm", [&] { ops::rms_norm(ctx, y, rstd, x, scale, 1e-5F); });
  ctx.activations = DType::BF16;
  expect_shape_error("rms_norm", [&] { ops::rms_norm(ctx, filled({3, 2}, 0.0F), rstd, x, scale, 1e-5F); });
  expect_shape_error("rms_norm", [&] { ops::rms_norm(ctx, y, Tensor({}, DType::BF16, {3}), x, scale, 1e-5F); });
}

}  // namespace
}  // namespace emox::test
