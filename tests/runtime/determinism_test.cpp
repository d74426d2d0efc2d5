// Sizes at which every op has work for two threads: the same call must give the same bits, five times.
#include <atomic>
#include <new>

#include "runtime/core/idx.h"
#include "runtime/cpu/parallel.h"
#include "runtime/ops/layers.h"
#include "runtime/ops/loss.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/moe.h"
#include "runtime/ops/optim.h"
#include "tests/runtime/op_testing.h"

namespace emox::test {
namespace {

void repeats(const std::function<Outputs(Context&)>& run) {
  for (const int threads : {1, 2}) {
    Context ctx = context(threads);
    const Outputs first = run(ctx);
    for (int i = 0; i < 4; ++i) EXPECT_TRUE(same_bits(first, run(ctx))) << threads << " threads, call " << i + 2;
  }
}

// Bits of a double as two floats.
std::vector<float> bits_of(const TensorView& t) {
  std::vector<float> v(idx(2 * t.numel()));
  std::memcpy(v.data(), t.raw(), t.bytes());
  return v;
}

constexpr std::int64_t kTokens = 700, kWidth = 64;

ref::Ids many_ids(std::int64_t count, unsigned below) {
  std::mt19937 gen(5);
  ref::Ids ids(count);
  for (auto& i : ids) i = static_cast<std::int32_t>(gen() % below);
  return ids;
}

TEST(Determinism, NormAndEmbedding) {
  const Tensor x = random_tensor({kTokens, kWidth}, 1), dy = random_tensor({kTokens, kWidth}, 2),
               scale = random_tensor({kWidth}, 3);
  const Tensor ids = ids_of(many_ids(kTokens, 9));  // many tokens add to the same row
  repeats([&](Context& ctx) {
    const Tensor y = poison({kTokens, kWidth}), rstd = poison({kTokens}), dx = filled({kTokens, kWidth}, 1.0F);
    const Tensor dscale = filled({kWidth}, 1.0F), dtable = filled({9, kWidth}, 0.0F);
    ops::rms_norm(ctx, y, rstd, x, scale, 1e-6F);
    ops::rms_norm_backward_add(ctx, dx, dscale, dy, x, rstd, scale);
    ops::embedding_backward(ctx, dtable, ids, dy);
    return Outputs{floats(y), floats(dx), floats(dscale), floats(dtable)};
  });
}

TEST(Determinism, Attention) {
  const Tensor qkv = random_tensor({kTokens, 3 * kWidth}, 1), dout = random_tensor({kTokens, kWidth}, 2);
  const Tensor segments = ids_of({0, 3, 100, 600, 601, kTokens});
  repeats([&](Context& ctx) {
    const Tensor out = poison({kTokens, kWidth}), lse = poison({4, kTokens}), dqkv = poison({kTokens, 3 * kWidth});
    ops::attention(ctx, out, lse, qkv, segments, 4);
    ops::attention_backward(ctx, dqkv, dout, out, lse, qkv, segments, 4);
    return Outputs{floats(out), floats(lse), floats(dqkv)};
  });
}

TEST(Determinism, Products) {
  const Tensor a = random_tensor({kTokens, kWidth}, 1), b = random_tensor({kTokens, 48}, 2),
               w = random_tensor({5, 48, kWidth}, 3);
  const Tensor offsets = tensor_of(ref::Offsets{0, 100, 100, 333, 650, kTokens}, {6});
  repeats([&](Context& ctx) {
    const Tensor c = poison({48, kWidth}), grouped = poison({kTokens, 48}), dw = filled({5, 48, kWidth}, 1.0F);
    ops::matmul_tn(ctx, c, b, a);
    ops::grouped_matmul_nt(ctx, grouped, a, w, offsets);
    ops::grouped_matmul_tn(ctx, dw, b, a, offsets);
    return Outputs{floats(c), floats(grouped), floats(dw)};
  });
}

TEST(Determinism, Router) {
  const std::int64_t n = 63, k = 4;
  const Tensor logits = random_tensor({kTokens, n}, 1), dgates = random_tensor({kTokens, k}, 2),
               balance = random_tensor({n}, 3);
  const Tensor segments = ids_of({0, 50, 51, kTokens}), sizes = ids_of({8, 20, 63});
  repeats([&](Context& ctx) {
    const Tensor q = poison({kTokens, n}), scores = poison({3, n}), pool({}, DType::U8, {3, n});
    const Tensor p = poison({kTokens, n}), lse = poison({kTokens}), gates = poison({kTokens, k}),
                 ids({}, DType::I32, {kTokens, k});
    const Tensor dlogits = poison({kTokens, n}), counts({}, DType::I64, {n}), p_sum({}, DType::F64, {n}),
                 z_sum({}, DType::F64, {1});
    ops::router_softmax(ctx, q, logits);
    ops::document_scores(ctx, scores, q, segments);
    ops::document_pools(ctx, pool, scores, sizes);
    const ops::TopkResult r{p, lse, ids, gates};
    ops::masked_topk(ctx, r, logits, pool, segments, TensorView(), true);
    ops::masked_topk_backward(ctx, dlogits, dgates, r, balance, 0.1F, true);
    ops::router_statistics(ctx, counts, p_sum, z_sum, r);
    return Outputs{floats(scores), floats(p),      floats(gates),  floats(dlogits),
                   bits_of(p_sum), bits_of(z_sum), bits_of(counts)};
  });
}

TEST(Determinism, LossAndNorm) {
  const std::int64_t vocab = 500;
  const Tensor x = random_tensor({kTokens, kWidth}, 1), weight = random_tensor({vocab, kWidth}, 2, 0.1F);
  const Tensor labels = ids_of(many_ids(kTokens, 500));
  repeats([&](Context& ctx) {
    const auto bytes = static_cast<std::int64_t>(ops::lm_head_loss_scratch({}, kTokens, vocab));
    const Tensor scratch({}, DType::U8, {bytes}), sums({}, DType::F64, {2}), norm({}, DType::F64, {1}),
        each = poison({kTokens});
    const Tensor dx = poison({kTokens, kWidth}), dweight = filled({vocab, kWidth}, 1.0F);
    ops::lm_head_loss(ctx, {sums, each, dx, dweight}, {x, weight, labels}, scratch,
                      {.inverse_divisor = 0.01, .z_weight = 1e-3});
    ops::sum_of_squares(ctx, norm, dweight);
    return Outputs{floats(each), floats(dx), floats(dweight), bits_of(sums), bits_of(norm)};
  });
}

// An exception that left an OpenMP region would end the program without rank or message.
TEST(ParallelTasks, ThrowWhatTheLowestOneThrew) {
  set_error_rank(5);
  for (const int threads : {1, 2, 4}) {
    const Context ctx = context(threads);
    std::atomic<int> done = 0;
    const auto task = [&](std::int64_t i) {
      ++done;
      if (i % 7 == 3) fail<UsageError>("task {} has no memory", i);
    };
    for (int again = 0; again < 20; ++again) {
      try {
        cpu::parallel_tasks(ctx, 40, task);
        FAIL() << "nothing was raised";
      } catch (const UsageError& e) {
        EXPECT_EQ(e.message(), "task 3 has no memory");
        EXPECT_EQ(e.rank(), 5) << "the rank of a thread that only helps";
      }
      try {
        cpu::parallel_pieces(ctx, 1000, 10, [&](std::int64_t begin, std::int64_t end, int) {
          if (end == 1000) throw std::bad_alloc();
          (void)begin;
        });
        FAIL() << "nothing was raised";
      } catch (const std::bad_alloc&) {
      }
    }
    done = 0;
    cpu::parallel_tasks(ctx, 3, task);  // the threads work on
    EXPECT_EQ(done, 3);
  }
  set_error_rank(0);
}

}  // namespace
}  // namespace emox::test
