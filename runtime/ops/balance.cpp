#include "runtime/ops/balance.h"

#include "runtime/ops/check.h"
#include "runtime/ops/dispatch.h"

namespace emox::ops {

void balance_gradient(Context& ctx, TensorView gradient, TensorView loss, TensorView counts, TensorView p_sum,
                      BalanceOptions options) {
  expect_rank("balance_gradient", "counts", counts, DType::I64, 2);
  expect("balance_gradient", "gradient", gradient, DType::F32, counts.shape());
  expect("balance_gradient", "p_sum", p_sum, DType::F64, counts.shape());
  expect("balance_gradient", "loss", loss, DType::F64, {1});
  run<Op::balance_gradient>(ctx, gradient, loss, counts, p_sum, options);
}

void move_selection_bias(Context& ctx, TensorView bias, TensorView counts, double rate) {
  expect_rank("move_selection_bias", "counts", counts, DType::I64, 2);
  expect("move_selection_bias", "bias", bias, DType::F32, counts.shape());
  run<Op::move_selection_bias>(ctx, bias, counts, rate);
}

void add_counts(Context& ctx, TensorView total, TensorView x) {
  expect("add_counts", "total", total, DType::I64, x.shape());
  expect("add_counts", "x", x, DType::I64, x.shape());
  run<Op::add_counts>(ctx, total, x);
}

void add_sum(Context& ctx, TensorView total, TensorView x) {
  expect("add_sum", "total", total, DType::F64, {1});
  expect("add_sum", "x", x, DType::F64, x.shape());
  run<Op::add_sum>(ctx, total, x);
}

}  // namespace emox::ops
