#include "runtime/ops/dispatch_plan.h"

#include "runtime/ops/check.h"
#include "runtime/ops/dispatch.h"

namespace emox::ops {
namespace {

void check_picks(std::string_view op, const RowPicks& in) {
  expect_rank(op, "experts", in.experts, DType::I32, 1);
  expect_rank(op, "first", in.first, DType::I32, 1);
  require<ShapeError>(in.first.dim(0) > 0, "[{}] first has no element, rows + 1 are needed", op);
}

}  // namespace

void first_picks(Context& ctx, TensorView first, std::int64_t picks_per_row) {
  expect_rank("first_picks", "first", first, DType::I32, 1);
  run<Op::first_picks>(ctx, first, picks_per_row);
}

void count_destinations(Context& ctx, TensorView counts, const RowPicks& in, TensorView destination) {
  check_picks("count_destinations", in);
  expect_rank("count_destinations", "destination", destination, DType::I32, 1);
  expect("count_destinations", "counts", counts, DType::I64, {counts.dim(0), 2});
  run<Op::count_destinations>(ctx, counts, in, destination);
}

void plan_send(Context& ctx, const SendOrder& out, const RowPicks& in, TensorView destination, TensorView counts,
               std::int64_t self) {
  check_picks("plan_send", in);
  expect_rank("plan_send", "destination", destination, DType::I32, 1);
  expect("plan_send", "counts", counts, DType::I64, {counts.dim(0), 2});
  expect_rank("plan_send", "row", out.row, DType::I32, 1);
  expect("plan_send", "pick", out.pick, DType::I32, {in.picks()});
  expect("plan_send", "packed", out.packed, DType::I32, {in.picks()});
  expect_rank("plan_send", "slots", out.slots, DType::I32, 2);
  expect("plan_send", "slots", out.slots, DType::I32, {in.rows(), out.slots.dim(1)});
  run<Op::plan_send>(ctx, Work{.bytes = bytes_of(in.experts, out.row, out.pick, out.packed, out.slots)}, out, in,
                     destination, counts, self);
}

void unpack_picks(Context& ctx, const RowPicks& out, TensorView packed) {
  check_picks("unpack_picks", out);
  expect("unpack_picks", "packed", packed, DType::I32, {out.picks()});
  run<Op::unpack_picks>(ctx, out, packed);
}

void plan_experts(Context& ctx, const ExpertOrder& out, const RowPicks& in, TensorView source_rows,
                  TensorView local_expert, std::int64_t self) {
  check_picks("plan_experts", in);
  expect_rank("plan_experts", "source_rows", source_rows, DType::I64, 1);
  if (!local_expert.null()) expect_rank("plan_experts", "local_expert", local_expert, DType::I32, 1);
  expect_rank("plan_experts", "offsets", out.offsets, DType::I64, 1);
  require<ShapeError>(out.offsets.dim(0) > 0, "[plan_experts] offsets has no element, experts + 1 are needed");
  expect("plan_experts", "row", out.row, DType::I32, {in.picks()});
  expect("plan_experts", "pick", out.pick, DType::I32, {in.picks()});
  expect_rank("plan_experts", "slots", out.slots, DType::I32, 2);
  expect("plan_experts", "slots", out.slots, DType::I32, {in.rows(), out.slots.dim(1)});
  run<Op::plan_experts>(ctx, Work{.bytes = bytes_of(in.experts, out.row, out.pick, out.slots)}, out, in, source_rows,
                        local_expert, self);
}

void pool_reach(Context& ctx, TensorView limit, TensorView reached, TensorView pool, TensorView segments,
                TensorView destination, TensorView free_tokens) {
  expect_rank("pool_reach", "limit", limit, DType::I64, 1);
  expect("pool_reach", "reached", reached, DType::I64, {1});
  expect_rank("pool_reach", "segments", segments, DType::I32, 1);
  expect_rank("pool_reach", "destination", destination, DType::I32, 1);
  expect_optional("pool_reach", "pool", pool, DType::U8, {segments.dim(0) - 1, destination.dim(0)});
  if (!free_tokens.null()) expect_rank("pool_reach", "free_tokens", free_tokens, DType::U8, 1);
  run<Op::pool_reach>(ctx, limit, reached, pool, segments, destination, free_tokens);
}

void sum_counts(Context& ctx, TensorView out, TensorView in, TensorView first, TensorView index) {
  expect_rank("sum_counts", "out", out, DType::I64, 1);
  expect_rank("sum_counts", "in", in, DType::I64, 1);
  expect("sum_counts", "first", first, DType::I32, {out.dim(0) + 1});
  expect_rank("sum_counts", "index", index, DType::I32, 1);
  run<Op::sum_counts>(ctx, out, in, first, index);
}

}  // namespace emox::ops
