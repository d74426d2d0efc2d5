// The way from an op's entry to its body: devices are checked for every op and operand, and wrong indices that ops made
// are reported.
#include "runtime/ops/dispatch.h"

#include <cmath>
#include <functional>
#include <tuple>

#include "runtime/ops/fault.h"
#include "tests/runtime/op_testing.h"

namespace emox::test {
namespace {

using ops::Op;

constexpr Device kCuda{DeviceType::Cuda, 3};
float g_memory[4];  // what the views below look at; no op gets there

// An argument without views.
template <typename T>
T nothing() {
  if constexpr (std::is_same_v<T, Philox>)
    return Philox(1, RngPurpose::Test);
  else
    return T{};
}

// Calls f(view) with each view of an argument.
template <typename T, typename F>
void visit(T& x, const F& f) {
  using ops::detail::for_each_view;
  if constexpr (ops::detail::HoldsViews<T>)
    for_each_view(x, [&](const TensorView& view) { f(const_cast<TensorView&>(view)); });
}

// What follows is not made anew for every op: compiling it is what takes time.
std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    return e.message();
  }
  return "nothing was refused";
}

void expect_elsewhere(Op op, std::size_t operand, int view, int views, const std::function<void()>& call) {
  const std::string place =
      views > 1 ? fmt::format("view {} of operand {}", view, operand) : fmt::format("operand {}", operand);
  EXPECT_EQ(refusal(call), fmt::format("[{}] {} lies on CUDA device 3, but the op runs on the CPU: copy it there first",
                                       name_of(op), place));
}

void expect_no_cuda(Op op, const std::function<void()>& call) {
  EXPECT_EQ(refusal(call),
            fmt::format("[{}] is to run on CUDA device 3, but this emox was built without CUDA", name_of(op)));
}

// Every view that the op takes, alone on another device. The others are null, so nothing but the device can be wrong.
template <Op op, typename... A, std::size_t... I>
int check_views(void (*)(Context&, A...), std::index_sequence<I...>) {
  using Arguments = std::tuple<std::decay_t<A>...>;
  Context ctx;
  Arguments arguments{nothing<std::decay_t<A>>()...};
  const std::function<void()> call = [&] {
    std::apply([&](const auto&... x) { ops::run<op>(ctx, x...); }, std::as_const(arguments));
  };
  int checked = 0;
  const auto check = [&](auto& argument, std::size_t operand) {
    int views = 0;
    visit(argument, [&](TensorView&) { ++views; });
    for (int view = 1; view <= views; ++view, ++checked) {
      int at = 0;
      visit(argument, [&](TensorView& x) {
        if (++at == view) x = {g_memory, DType::F32, {2}, kCuda};
      });
      expect_elsewhere(op, operand, view, views, call);
      visit(argument, [](TensorView& x) { x = {}; });
    }
  };
  (check(std::get<I>(arguments), I + 1), ...);
  ctx.device = kCuda;
  expect_no_cuda(op, call);
  return checked;
}

template <Op op, typename... A>
int check_op(void (*declaration)(Context&, A...)) {
  return check_views<op>(declaration, std::index_sequence_for<A...>{});
}

TEST(Dispatch, EveryViewOfEveryOpMustLieOnTheContextsDevice) {
  int views = 0, ops = 0;
#define EMOX_CHECK(op) views += check_op<Op::op>(&ops::op), ++ops;
  EMOX_OPS(EMOX_CHECK)
#undef EMOX_CHECK
  EXPECT_EQ(ops, static_cast<int>(std::size(ops::kOpNames)));
  EXPECT_GT(views, 3 * ops);
}

TEST(Dispatch, EntriesGoThisWay) {
  Context ctx = context();
  const Tensor out = filled({3, 2}, 7.0F), x = filled({5, 2}, 1.0F);
  const Tensor index = ids_of({4, 0, 1});
  const TensorView there(index.view().raw(), DType::I32, {3}, kCuda);
  try {
    ops::gather_rows(ctx, out, x, there);
    FAIL() << "an operand of another device was taken";
  } catch (const ShapeError& e) {
    EXPECT_EQ(e.message(),
              "[gather_rows] operand 3 lies on CUDA device 3, but the op runs on the CPU: copy it there first");
  }
  EXPECT_EQ(floats(out), std::vector<float>(6, 7.0F));
  // Null operands lie nowhere.
  const Tensor h = filled({3, 4}, 1.0F);
  ops::swiglu(ctx, out, h, TensorView(nullptr, DType::F32, {3}, kCuda));
  EXPECT_NEAR(floats(out)[0], 1 / (1 + std::exp(-1.0)), 1e-6);
}

TEST(Dispatch, TheCpuComputesF32Only) {
  Context ctx = context();
  ctx.activations = DType::BF16;
  try {
    ops::zero(ctx, filled({1}, 1.0F));
    FAIL() << "bf16 on the CPU";
  } catch (const Error& e) {
    EXPECT_EQ(e.message(), "[zero] is to compute bf16 activations on the CPU, which computes f32 only");
  }
}

TEST(Dispatch, SpansHaveTheOpsNameOrTheirOwn) {
  Context ctx = context();
  Telemetry telemetry;
  ctx.telemetry = &telemetry;
  const Tensor a = filled({3, 4}, 1.0F), b = filled({5, 4}, 1.0F), c = filled({3, 5}, 0.0F),
               rows = filled({1, 4}, 0.0F);
  ops::matmul_nt(ctx, c, a, b);
  ops::gather_rows(ctx, rows, a, ids_of({2}));
  ops::zero(ctx, c);  // not measured
  ASSERT_EQ(telemetry.totals().size(), 2U);
  EXPECT_EQ(telemetry.totals().at("matmul").flops, 2 * 3 * 4 * 5);
  EXPECT_EQ(telemetry.totals().at("matmul").bytes, 4 * (12 + 20 + 15));
  EXPECT_EQ(telemetry.totals().at("gather_rows").bytes, 2 * 16);
}

TEST(Fault, ANumberKeepsAllOfIt) {
  EXPECT_FALSE(ops::fault_of(0.0));
  for (std::size_t op = 0; op < std::size(ops::kOpNames); ++op)
    for (const int operand : {1, 15})
      for (const std::int64_t index : {std::int64_t{0}, std::int64_t{77}, (std::int64_t{1} << 41) - 1}) {
        const ops::Fault fault{static_cast<Op>(op), operand, index};
        EXPECT_LT(ops::fault_word(fault), 0x1.0p53);
        EXPECT_EQ(ops::fault_of(ops::fault_word(fault)), fault) << ops::text_of(fault);
      }
  // The last number that there is room for.
  EXPECT_LT(ops::fault_word({static_cast<Op>(254), 15, (std::int64_t{1} << 41) - 1}), 0x1.0p53);
}

struct WrongIndex {
  Op op;
  int operand;
  std::int64_t index;
  std::function<void(Context&)> call;
};

// Every op that reads through indices that another op made.
class WrongIndices : public testing::Test {
 protected:
  const Tensor x = filled({4, 2}, 1.0F), out = poison({3, 2}), elements = poison({3}), source = filled({4}, 1.0F);
  const Tensor high = ids_of({3, 4, -1}), low = ids_of({0, 2, -2}),
               slots = tensor_of(ref::Ids{-1, 3, 0, 2, -2, 1}, {3, 2});
  const Tensor p = filled({3, 4}, 0.25F), lse = filled({3}, 0.0F), gates = filled({3, 2}, 0.25F);
  const Tensor picks = tensor_of(ref::Ids{0, 1, 2, 4, 3, 0}, {3, 2});
  const ops::TopkResult route{p, lse, picks, gates};
  const Tensor counts{{}, DType::I64, {4}}, sums{{}, DType::F64, {4}}, one{{}, DType::F64, {1}},
      total{{}, DType::I64, {1}};
  const std::vector<WrongIndex> cases = {
      {Op::gather_rows, 3, 1, [&](Context& c) { ops::gather_rows(c, out, x, high); }},
      {Op::gather_rows, 3, 2, [&](Context& c) { ops::gather_rows(c, out, x, low); }},
      {Op::combine_rows, 3, 4, [&](Context& c) { ops::combine_rows(c, out, x, slots, 0.0F); }},
      {Op::gather_elements, 3, 1, [&](Context& c) { ops::gather_elements(c, elements, source, high); }},
      {Op::scatter_elements, 3, 2, [&](Context& c) { ops::scatter_elements(c, source, elements, low); }},
      {Op::router_statistics, 4, 3, [&](Context& c) { ops::router_statistics(c, counts, sums, one, route); }},
      {Op::document_experts, 2, 3,
       [&](Context& c) {
         ops::document_experts(c, total, picks, ids_of({0, 3}), 4);
       }},
      {Op::masked_topk_backward, 3, 3,
       [&](Context& c) { ops::masked_topk_backward(c, p, gates, route, {}, 0.0F, false); }}};
};

TEST_F(WrongIndices, AreThrownWithoutAWord) {
  for (const WrongIndex& w : cases) {
    Context ctx = context();
    expect_shape_error(std::string(name_of(w.op)).c_str(), [&] { w.call(ctx); });
  }
}

TEST_F(WrongIndices, AreReportedInTheWordAndNothingIsComputed) {
  const Tensor word({}, DType::F64, {1});
  for (const WrongIndex& w : cases) {
    Context ctx = context();
    const ops::FaultScope scope(ctx, word);
    EXPECT_EQ(*word.view().data<double>(), 0.0);
    w.call(ctx);
    const ops::Fault want{w.op, w.operand, w.index};
    EXPECT_EQ(ops::fault_of(*word.view().data<double>()), want) << ops::text_of(want);
    cases[0].call(ctx), cases[3].call(ctx);  // the first one stays
    EXPECT_EQ(ops::fault_of(*word.view().data<double>()), want) << ops::text_of(want);
  }
  for (const float v : floats(out)) EXPECT_TRUE(std::isnan(v));
  for (const float v : floats(elements)) EXPECT_TRUE(std::isnan(v));
  EXPECT_EQ(floats(source), std::vector<float>(4, 1.0F));
  EXPECT_EQ(floats(p), std::vector<float>(12, 0.25F));
  EXPECT_EQ(values_of<std::int64_t>(counts), std::vector<std::int64_t>(4));
  EXPECT_EQ(values_of<std::int64_t>(total), std::vector<std::int64_t>(1));
}

TEST(FaultScope, EndsWithTheWordBefore) {
  Context ctx = context();
  const Tensor outer({}, DType::F64, {1}), inner({}, DType::F64, {1});
  {
    const ops::FaultScope a(ctx, outer);
    {
      const ops::FaultScope b(ctx, inner);
      EXPECT_EQ(ctx.fault.raw(), inner.view().raw());
    }
    EXPECT_EQ(ctx.fault.raw(), outer.view().raw());
  }
  EXPECT_TRUE(ctx.fault.null());
  EXPECT_THROW(ops::FaultScope(ctx, filled({1}, 0.0F)), ShapeError);
  EXPECT_THROW(ops::FaultScope(ctx, Tensor({}, DType::F64, {2})), ShapeError);
}

}  // namespace
}  // namespace emox::test
