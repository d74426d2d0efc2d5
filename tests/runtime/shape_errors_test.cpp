// Operands that do not fit are refused before anything is read, with the name of the op.
#include "runtime/ops/basic.h"
#include "runtime/ops/layers.h"
#include "runtime/ops/loss.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/moe.h"
#include "runtime/ops/optim.h"
#include "tests/runtime/op_testing.h"

namespace emox::test {
namespace {

// Tensors of a shape; the names say the type.
Tensor f(Shape s) { return filled(s, 0.5F); }
Tensor i(Shape s) { return Tensor({}, DType::I32, s); }
Tensor l(Shape s) { return Tensor({}, DType::I64, s); }
Tensor d(Shape s) { return Tensor({}, DType::F64, s); }
Tensor u(Shape s) { return Tensor({}, DType::U8, s); }
const TensorView kNone;

class ShapeErrors : public ::testing::Test {
 protected:
  void refused(const char* op, const std::function<void()>& call) { expect_shape_error(op, call); }
  Context ctx = context();
};

TEST_F(ShapeErrors, Basic) {
  refused("fill", [&] { ops::fill(ctx, i({2}), 1.0F); });
  refused("copy", [&] { ops::copy(ctx, f({2}), f({3})); });
  refused("copy", [&] { ops::copy(ctx, f({2}), i({2})); });
  refused("add", [&] { ops::add(ctx, f({2}), f({3})); });
  refused("add", [&] { ops::add(ctx, f({2}), i({2})); });
  refused("random_truncated_normal",
          [&] { ops::random_truncated_normal(ctx, i({2}), Philox(1, RngPurpose::Test), 0, 0, 1.0, 1.0); });
}

TEST_F(ShapeErrors, Products) {
  refused("matmul_nt", [&] { ops::matmul_nt(ctx, f({2, 3}), f({2, 4}), f({3, 5})); });
  refused("matmul_nt", [&] { ops::matmul_nt(ctx, f({3, 2}), f({2, 4}), f({3, 4})); });
  refused("matmul_nt", [&] { ops::matmul_nt(ctx, f({2, 3}), i({2, 4}), f({3, 4})); });
  refused("matmul_nt", [&] { ops::matmul_nt(ctx, f({2, 3}), f({8}), f({3, 4})); });
  refused("matmul_nn", [&] { ops::matmul_nn(ctx, f({2, 3}), f({2, 4}), f({3, 4})); });
  refused("matmul_nn", [&] { ops::matmul_nn(ctx, f({2, 2}), f({2, 4}), f({4, 3})); });
  refused("matmul_tn", [&] { ops::matmul_tn(ctx, f({2, 3}), f({4, 2}), f({5, 3})); });
  refused("matmul_tn", [&] { ops::matmul_tn(ctx, f({3, 2}), f({4, 2}), f({4, 3})); });
  refused("grouped_matmul_nt", [&] { ops::grouped_matmul_nt(ctx, f({2, 3}), f({2, 4}), f({5, 3, 4}), l({5})); });
  refused("grouped_matmul_nt", [&] { ops::grouped_matmul_nt(ctx, f({2, 3}), f({2, 4}), f({5, 3, 3}), l({6})); });
  refused("grouped_matmul_nt", [&] { ops::grouped_matmul_nt(ctx, f({2, 3}), f({2, 4}), f({5, 3, 4}), i({6})); });
  refused("grouped_matmul_nn", [&] { ops::grouped_matmul_nn(ctx, f({2, 3}), f({2, 4}), f({5, 3, 4}), l({6})); });
  refused("grouped_matmul_tn", [&] { ops::grouped_matmul_tn(ctx, f({5, 3, 4}), f({2, 3}), f({3, 4}), l({6})); });
  refused("grouped_matmul_tn", [&] { ops::grouped_matmul_tn(ctx, f({5, 3, 4}), f({2, 3}), f({2, 5}), l({6})); });
}

TEST_F(ShapeErrors, Layers) {
  refused("embedding", [&] { ops::embedding(ctx, f({3, 4}), i({2}), f({9, 4})); });
  refused("embedding", [&] { ops::embedding(ctx, f({2, 4}), f({2}), f({9, 4})); });
  refused("embedding_backward", [&] { ops::embedding_backward(ctx, f({9, 4}), i({2}), f({2, 5})); });
  refused("rms_norm", [&] { ops::rms_norm(ctx, f({2, 4}), f({2}), f({2, 4}), f({5}), 1e-6F); });
  refused("rms_norm", [&] { ops::rms_norm(ctx, f({2, 4}), f({3}), f({2, 4}), f({4}), 1e-6F); });
  refused("rms_norm_backward_add", [&] {
    ops::rms_norm_backward_add(ctx, f({2, 4}), f({5}), f({2, 4}), f({2, 4}), f({2}), f({4}));
  });
  refused("rms_norm_backward_add", [&] {
    ops::rms_norm_backward_add(ctx, f({2, 4}), f({4}), f({2, 4}), f({3, 4}), f({2}), f({4}));
  });
  refused("rope_tables", [&] { ops::rope_tables(ctx, f({4, 2}), f({4, 3}), 10.0); });
  refused("attention", [&] { ops::attention(ctx, f({2, 8}), f({2, 3}), f({2, 24}), i({2}), 2); });
  refused("attention", [&] { ops::attention(ctx, f({2, 7}), f({2, 2}), f({2, 24}), i({2}), 2); });
  refused("attention", [&] { ops::attention(ctx, f({2, 8}), f({3, 2}), f({2, 24}), i({2}), 3); });  // 8 / 3 heads
  refused("attention", [&] { ops::attention(ctx, f({2, 8}), f({2, 2}), f({2, 24}), l({2}), 2); });
  for (const ops::Rotation& r :
       {ops::Rotation{i({3}), f({9, 2}), f({9, 2})}, ops::Rotation{i({2}), f({9, 3}), f({9, 3})},
        ops::Rotation{i({2}), f({9, 2}), f({8, 2})}, ops::Rotation{i({2}), f({9, 2}), kNone},
        ops::Rotation{i({2}), kNone, kNone}}) {
    refused("attention", [&] { ops::attention(ctx, f({2, 8}), f({2, 2}), f({2, 24}), i({2}), 2, r); });
    refused("attention_backward", [&] {
      ops::attention_backward(ctx, f({2, 24}), f({2, 8}), f({2, 8}), f({2, 2}), f({2, 24}), i({2}), 2, r);
    });
  }
  refused("attention", [&] {  // heads of 3 have no halves
    ops::attention(ctx, f({2, 6}), f({2, 2}), f({2, 18}), i({2}), 2, {i({2}), f({9, 1}), f({9, 1})});
  });
  refused("attention_backward", [&] {
    ops::attention_backward(ctx, f({2, 24}), f({2, 8}), f({2, 7}), f({2, 2}), f({2, 24}), i({2}), 2);
  });
  refused("attention_backward", [&] {
    ops::attention_backward(ctx, f({2, 23}), f({2, 8}), f({2, 8}), f({2, 2}), f({2, 24}), i({2}), 2);
  });
  refused("swiglu", [&] { ops::swiglu(ctx, f({2, 3}), f({2, 5}), kNone); });
  refused("swiglu", [&] { ops::swiglu(ctx, f({2, 3}), f({2, 6}), f({3})); });
  refused("swiglu_backward", [&] {
    ops::swiglu_backward(ctx, f({2, 5}), f({2, 3}), kNone, f({2, 3}), f({2, 6}), kNone);
  });
  refused("swiglu_backward", [&] {
    ops::swiglu_backward(ctx, f({2, 6}), f({2, 3}), f({3}), f({2, 3}), f({2, 6}), f({2}));
  });
}

TEST_F(ShapeErrors, Router) {
  refused("router_softmax", [&] { ops::router_softmax(ctx, f({2, 3}), f({3, 2})); });
  refused("document_scores", [&] { ops::document_scores(ctx, f({2, 3}), f({5, 3}), i({2})); });
  refused("document_scores", [&] { ops::document_scores(ctx, f({2, 4}), f({5, 3}), i({3})); });
  refused("document_pools", [&] { ops::document_pools(ctx, u({2, 3}), f({2, 3}), i({3})); });
  refused("document_pools", [&] { ops::document_pools(ctx, i({2, 3}), f({2, 3}), i({2})); });
  const Tensor p = f({5, 4}), lse = f({5}), ids = i({5, 2}), gates = f({5, 2}), other = i({5, 3}), wide = i({5, 5}),
               z = f({5, 4});
  const Tensor wide_gates = f({5, 5});
  const ops::TopkResult good{p, lse, ids, gates};
  refused("masked_topk", [&] { ops::masked_topk(ctx, {p, lse, other, gates}, z, kNone, kNone, kNone, false); });
  refused("masked_topk", [&] {
    ops::masked_topk(ctx, {p, lse, wide, wide_gates}, z, kNone, kNone, kNone, false);
  });  // 5 of 4
  refused("masked_topk", [&] { ops::masked_topk(ctx, good, f({6, 4}), kNone, kNone, kNone, false); });
  refused("masked_topk", [&] { ops::masked_topk(ctx, good, z, u({2, 4}), i({2}), kNone, false); });
  refused("masked_topk", [&] { ops::masked_topk(ctx, good, z, u({2, 5}), i({3}), kNone, false); });
  refused("masked_topk", [&] { ops::masked_topk(ctx, good, z, u({2, 4}), kNone, kNone, false); });
  refused("masked_topk", [&] { ops::masked_topk(ctx, good, z, kNone, kNone, kNone, false, u({4})); });
  refused("masked_topk", [&] { ops::masked_topk(ctx, good, z, kNone, kNone, f({5}), false); });
  refused("masked_topk_backward", [&] {
    ops::masked_topk_backward(ctx, f({5, 3}), f({5, 2}), good, kNone, 0.0F, false);
  });
  refused("masked_topk_backward", [&] {
    ops::masked_topk_backward(ctx, f({5, 4}), f({5, 3}), good, kNone, 0.0F, false);
  });
  refused("masked_topk_backward", [&] {
    ops::masked_topk_backward(ctx, f({5, 4}), f({5, 2}), good, f({5}), 0.0F, false);
  });
  refused("document_experts", [&] { ops::document_experts(ctx, l({2}), ids, i({3}), 4); });
  refused("document_experts", [&] { ops::document_experts(ctx, l({1}), gates, i({3}), 4); });
  refused("router_statistics", [&] { ops::router_statistics(ctx, l({3}), d({4}), d({1}), good); });
  refused("router_statistics", [&] { ops::router_statistics(ctx, l({4}), f({4}), d({1}), good); });
  refused("router_statistics", [&] { ops::router_statistics(ctx, l({4}), d({4}), d({2}), good); });
}

TEST_F(ShapeErrors, Rows) {
  refused("gather_rows", [&] { ops::gather_rows(ctx, f({3, 4}), f({9, 4}), i({2})); });
  refused("gather_rows", [&] { ops::gather_rows(ctx, f({3, 4}), f({9, 5}), i({3})); });
  refused("combine_rows", [&] { ops::combine_rows(ctx, f({3, 4}), f({9, 4}), i({2, 2}), 0.0F); });
  refused("combine_rows", [&] { ops::combine_rows(ctx, f({3, 4}), f({9, 5}), i({3, 2}), 0.0F); });
  refused("gather_elements", [&] { ops::gather_elements(ctx, f({3}), f({9}), i({2})); });
  refused("scatter_elements", [&] { ops::scatter_elements(ctx, f({9}), f({3}), i({2})); });
}

TEST_F(ShapeErrors, LossAndOptimizer) {
  const auto bytes = static_cast<std::int64_t>(ops::lm_head_loss_scratch({}, 3, 7));
  const Tensor x = f({3, 4}), w = f({7, 4}), labels = i({3}), scratch = u({bytes}), sums = d({2});
  const auto loss = [&](TensorView dx, TensorView dw, TensorView weight, TensorView at, TensorView room) {
    ops::lm_head_loss(ctx, {sums, kNone, dx, dw}, {x, weight, at}, room, {});
  };
  refused("lm_head_loss", [&] { loss(f({3, 5}), f({7, 4}), w, labels, scratch); });
  refused("lm_head_loss", [&] { loss(f({3, 4}), f({6, 4}), w, labels, scratch); });
  refused("lm_head_loss", [&] { loss(f({3, 4}), f({7, 5}), f({7, 5}), labels, scratch); });
  refused("lm_head_loss", [&] { loss(f({3, 4}), f({7, 4}), w, i({4}), scratch); });
  refused("lm_head_loss", [&] { loss(f({3, 4}), f({7, 4}), w, labels, u({bytes - 1})); });
  refused("sum_of_squares", [&] { ops::sum_of_squares(ctx, f({1}), f({3})); });
  refused("sum_of_squares", [&] { ops::sum_of_squares(ctx, d({2}), f({3})); });
  refused("adamw", [&] {
    ops::adamw(ctx, f({3}), kNone, f({3}), f({3}), f({4}), {1e-3, 0.9, 0.95, 1e-8, 0.1, 1.0, 1});
  });
  refused("adamw", [&] {
    ops::adamw(ctx, f({3}), kNone, f({2}), f({3}), f({3}), {1e-3, 0.9, 0.95, 1e-8, 0.1, 1.0, 1});
  });
}

}  // namespace
}  // namespace emox::test
