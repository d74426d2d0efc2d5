// Products grouped by expert on the device against the CPU.
#include <random>

#include "runtime/cuda/hopper.h"
#include "runtime/ops/matmul.h"
#include "tests/cuda/product_testing.h"

namespace emox::test {
namespace {

using Offsets = std::vector<std::int64_t>;

enum class Kind { Nt, Nn, Tn };

struct Problem {
  Offsets offsets;
  std::int64_t n, k;  // columns of C and of A
  std::int64_t experts() const { return static_cast<std::int64_t>(offsets.size()) - 1; }
  std::int64_t rows() const { return offsets.back(); }
};

Offsets random_offsets(std::int64_t experts, std::int64_t most, unsigned seed) {
  std::mt19937 gen(seed);
  Offsets o{0};
  for (std::int64_t e = 0; e < experts; ++e)  // a third of the experts have no rows
    o.push_back(o.back() + (gen() % 3 == 0 ? 0 : static_cast<std::int64_t>(gen() % static_cast<unsigned>(most + 1))));
  return o;
}

std::vector<Problem> problems() {
  return {
      {{0}, 8, 8},                          // no experts
      {{0, 0, 0}, 16, 8},                   // no rows
      {{0, 1}, 1, 1},                       // one of everything
      {{0, 0, 5, 5, 6, 6}, 20, 12},         // rows of 40 bytes
      {{0, 40, 40, 77, 80}, 9, 7},          // odd everything
      {{0, 150, 151}, 8, 40},               // beyond a tile of rows
      {{0, 3, 60}, 136, 64},                // beyond a tile of columns
      {{0, 0, 0, 300, 300}, 40, 136},       // one expert has all rows; beyond a tile of K
      {{0, 70, 70, 205}, 328, 200},         // beyond a tile of columns of every kernel, and of K in Nt and Nn
      {{0, 5}, 264, 456},                   // every stage of K more than once
      {{0, 130, 135}, 130, 33},             // odd beyond tiles
      {{0, 2, 9}, 3, 0},                    // empty sums
      {{0, 4, 7}, 0, 5},                    // no columns
      {random_offsets(127, 5, 1), 24, 16},  // many experts
      {random_offsets(300, 2, 2), 8, 8},    // more than one round of the plan
      {random_offsets(9, 140, 3), 32, 24},
      {random_offsets(6, 70, 4), 17, 15},
  };
}

class GroupedOnDevice : public DeviceTest {
 protected:
  /// f32; bf16 on the kernel for every device; bf16 on Hopper's, where there is one.
  struct Way {
    Context* ctx;
    bool wgmma;
  };
  std::vector<Way> ways() {
    std::vector<Way> all{{&gpu, false}, {&gpu_bf16, false}};
    if (hopper_) all.push_back({&gpu_bf16, true});
    return all;
  }
  static void choose(const Way& way) { cuda::use_wgmma(device_queue(), way.wgmma); }
  ~GroupedOnDevice() override { cuda::use_wgmma(device_queue(), hopper_); }

  static Tensor at(const Offsets& o) { return tensor_of(o, {static_cast<std::int64_t>(o.size())}); }
  static Shape shape_b(Kind kind, const Problem& p) {
    return kind == Kind::Nt   ? Shape{p.experts(), p.n, p.k}
           : kind == Kind::Nn ? Shape{p.experts(), p.k, p.n}
                              : Shape{p.rows(), p.n};
  }
  static Shape shape_c(Kind kind, const Problem& p) {
    return kind == Kind::Tn ? Shape{p.experts(), p.k, p.n} : Shape{p.rows(), p.n};
  }
  static void op(Context& ctx, Kind kind, TensorView c, TensorView a, TensorView b, TensorView offsets, float beta) {
    if (kind == Kind::Nt) ops::grouped_matmul_nt(ctx, c, a, b, offsets);
    if (kind == Kind::Nn) ops::grouped_matmul_nn(ctx, c, a, b, offsets);
    if (kind == Kind::Tn) ops::grouped_matmul_tn(ctx, c, a, b, offsets, beta);
  }
  Tensor of_type(const Context& ctx, const Tensor& x) { return ctx.activations == DType::BF16 ? up_bf16(x) : up(x); }
  /// Of Tn with a beta other than 0: on top of `start`.
  Tensor output(const Context& ctx, Kind kind, const Problem& p, const Tensor& start, float beta) {
    if (kind == Kind::Tn) return beta == 0.0F ? garbage(DType::F32, shape_c(kind, p)) : up(start);
    return garbage(ctx.activations, shape_c(kind, p));
  }

  void check(Kind kind, const Problem& p, float beta, unsigned seed) {
    SCOPED_TRACE(::testing::Message() << "kind " << static_cast<int>(kind) << ", " << p.experts() << " experts, "
                                      << p.rows() << " rows, n " << p.n << ", k " << p.k << ", beta " << beta);
    const Tensor a = random_tensor({p.rows(), p.k}, seed), b = random_tensor(shape_b(kind, p), seed + 1),
                 start = random_tensor(shape_c(kind, p), seed + 2), offsets = at(p.offsets);
    const auto on_cpu = [&](const TensorView& x, const TensorView& y, const TensorView& z) {
      const Tensor c = host_copy(z);
      op(cpu, kind, c, x, y, offsets, beta);
      return values_of<float>(c);
    };
    std::int64_t terms = p.k;
    if (kind == Kind::Tn) {
      terms = 1;
      for (std::size_t e = 1; e < p.offsets.size(); ++e) terms = std::max(terms, p.offsets[e] - p.offsets[e - 1] + 1);
    }
    const std::vector<float> size = on_cpu(absolute(a), absolute(b), absolute(start));
    for (const Way& way : ways()) {
      Context* const ctx = way.ctx;
      choose(way);
      const bool bf16 = ctx->activations == DType::BF16;
      const Tensor c = output(*ctx, kind, p, start, beta), again = output(*ctx, kind, p, start, beta);
      const Tensor da = of_type(*ctx, a), db = of_type(*ctx, b), doffsets = up(offsets);
      op(*ctx, kind, c, da, db, doffsets, beta);
      op(*ctx, kind, again, da, db, doffsets, beta);
      const std::vector<float> got = floats(c);
      const std::vector<float> want = bf16 ? on_cpu(rounded(a), rounded(b), start) : on_cpu(a, b, start);
      EXPECT_TRUE(
          sums_agree(got, want, size, {.terms = static_cast<double>(terms), .bf16_result = bf16 && kind != Kind::Tn}))
          << (way.wgmma ? "bf16, wgmma"
              : bf16    ? "bf16"
                        : "f32");
      EXPECT_EQ(got, floats(again));
    }
    EXPECT_FALSE(fault());
  }

 private:
  const bool hopper_ = cuda::uses_wgmma(device_queue());
};

TEST_F(GroupedOnDevice, NtEqualsTheCpu) {
  unsigned seed = 0;
  for (const Problem& p : problems()) check(Kind::Nt, p, 0.0F, seed += 3);
}

TEST_F(GroupedOnDevice, NnEqualsTheCpu) {
  unsigned seed = 100;
  for (const Problem& p : problems()) check(Kind::Nn, p, 0.0F, seed += 3);
}

TEST_F(GroupedOnDevice, TnEqualsTheCpu) {
  unsigned seed = 200;
  for (const Problem& p : problems())
    for (const float beta : {0.0F, 1.0F, 0.5F}) check(Kind::Tn, p, beta, seed += 3);
}

// Operands that begin at no multiple of 16 bytes, as views of rows do: each alone, and all.
TEST_F(GroupedOnDevice, TakesOperandsThatBeginAnywhere) {
  const Problem p{{0, 3, 10}, 8, 24};
  const Tensor offsets = at(p.offsets), doffsets = up(offsets);
  const auto placed = [&](Context& ctx, const Tensor& x, std::int64_t first) {  // its elements from `first` on
    std::vector<float> v = values_of<float>(x);
    v.insert(v.begin(), idx(first), 0.0F);
    const auto end = static_cast<std::int64_t>(v.size());
    Tensor t = of_type(ctx, tensor_of(v, {end}));
    const TensorView rest = t.view().rows(first, end).reshape(x.view().shape());
    return std::pair{std::move(t), rest};
  };
  for (const Kind kind : {Kind::Nt, Kind::Nn, Kind::Tn}) {
    const Tensor a = rounded(random_tensor({p.rows(), p.k}, 1)), b = rounded(random_tensor(shape_b(kind, p), 2));
    const Tensor want({}, DType::F32, shape_c(kind, p)), size({}, DType::F32, shape_c(kind, p));
    op(cpu, kind, want, a, b, offsets, 0.0F);
    op(cpu, kind, size, absolute(a), absolute(b), offsets, 0.0F);
    for (const auto& [first_a, first_b, first_c] :
         {std::tuple{1, 0, 0}, std::tuple{0, 1, 0}, std::tuple{0, 0, 1}, std::tuple{1, 1, 1}})
      for (const Way& way : ways()) {
        SCOPED_TRACE(::testing::Message() << static_cast<int>(kind) << ": " << first_a << first_b << first_c);
        Context* const ctx = way.ctx;
        choose(way);
        const auto pa = placed(*ctx, a, first_a), pb = placed(*ctx, b, first_b);
        const DType type = kind == Kind::Tn ? DType::F32 : ctx->activations;
        const std::int64_t end = first_c + want.view().numel();
        const Tensor room = garbage(type, {end + 1});
        const TensorView c = room.view().rows(first_c, end).reshape(want.view().shape());
        op(*ctx, kind, c, pa.second, pb.second, doffsets, 0.0F);
        EXPECT_TRUE(sums_agree(floats(c), values_of<float>(want), values_of<float>(size),
                               {.terms = static_cast<double>(p.k), .bf16_result = type == DType::BF16}));
        EXPECT_TRUE(first_c == 0 || std::isnan(floats(room).front()));
        EXPECT_TRUE(std::isnan(floats(room).back()));
      }
  }
}

TEST_F(GroupedOnDevice, WrongOffsetsAreReportedAndNothingIsComputed) {
  constexpr std::int64_t kRows = 12, kExperts = 3, kN = 8, kK = 16;
  struct Case {
    Offsets offsets;
    std::int64_t element;
  };
  const Case cases[] = {{{1, 4, 8, kRows}, 0},         {{-1, 4, 8, kRows}, 0},    {{0, 8, 4, kRows}, 2},
                        {{0, 4, 8, kRows - 1}, 3},     {{0, 4, 8, kRows + 1}, 3}, {{0, 4, kRows + 1, kRows}, 3},
                        {{0, 1LL << 60, 8, kRows}, 2}, {{0, -5, -5, -5}, 1}};
  const Tensor a = random_tensor({kRows, kK}, 1);
  for (const Case& c : cases) {
    const Tensor offsets = up(at(c.offsets));
    for (const Kind kind : {Kind::Nt, Kind::Nn, Kind::Tn}) {
      const Problem p{{0, 4, 8, kRows}, kN, kK};
      ASSERT_EQ(p.experts(), kExperts);
      const Tensor b = random_tensor(shape_b(kind, p), 2), start = random_tensor(shape_c(kind, p), 3);
      for (const Way& way : ways()) {
        Context* const ctx = way.ctx;
        choose(way);
        const Tensor out = output(*ctx, kind, p, start, 0.0F), da = of_type(*ctx, a), db = of_type(*ctx, b);
        op(*ctx, kind, out, da, db, offsets, 0.0F);
        const ops::Op which = kind == Kind::Nt   ? ops::Op::grouped_matmul_nt
                              : kind == Kind::Nn ? ops::Op::grouped_matmul_nn
                                                 : ops::Op::grouped_matmul_tn;
        EXPECT_EQ(fault(), (ops::Fault{which, 4, c.element}));
        for (const float x : floats(out)) ASSERT_TRUE(std::isnan(x));
      }
    }
  }
}

TEST_F(GroupedOnDevice, TheFirstWrongOffsetOfManyIsReported) {
  constexpr std::int64_t kExperts = 600;
  const Tensor a = up(random_tensor({4, 8}, 1)), b = up(random_tensor({kExperts, 8, 8}, 2)),
               c = garbage(DType::F32, {4, 8});
  for (const std::int64_t first : {1, 255, 256, 257, 599}) {
    Offsets offsets(idx(kExperts + 1), 4);
    offsets[0] = 0;
    for (std::int64_t e = first; e < kExperts; e += 256) offsets[idx(e)] = -e;
    ops::grouped_matmul_nt(gpu, c, a, b, up(at(offsets)));
    EXPECT_EQ(fault(), (ops::Fault{ops::Op::grouped_matmul_nt, 4, first}));
  }
}

}  // namespace
}  // namespace emox::test
