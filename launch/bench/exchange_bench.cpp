#include "launch/bench/exchange_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "launch/bench/link_bench.h"
#include "launch/bench/median.h"
#include "launch/run/sharding.h"
#include "model/moe/pools.h"
#include "parallel/comm/together.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/ops/basic.h"

namespace emox {
namespace {

/// Picks of a rank's tokens, inside the pools of their documents.
struct Routing {
  std::vector<std::int32_t> ids, segments{0};
  std::vector<std::uint8_t> pools;
};

Routing draw(const Recipe& recipe, int rank) {
  const ModelConfig& m = recipe.model;
  const std::int64_t n = m.routed_experts(), k = m.routed_top_k(), length = m.sequence_length;
  const auto sizes = make_pool_sizes(m, static_cast<std::uint64_t>(recipe.run.seed));
  std::mt19937_64 gen(static_cast<std::uint64_t>(recipe.run.seed) * 1000003 + idx(rank));
  std::vector<std::int32_t> experts(idx(n));
  std::iota(experts.begin(), experts.end(), 0);
  Routing r;
  for (std::int64_t s = 0; s < recipe.train.micro_batch_sequences; ++s) {
    const PoolDocument d{.sequence = rank * recipe.train.micro_batch_sequences + s,
                         .tokens = static_cast<std::int32_t>(length)};
    const std::int64_t size = m.pool == PoolMode::Off ? n : std::clamp(sizes->size(m.pool_from_step + 1, 0, d), k, n);
    std::shuffle(experts.begin(), experts.end(), gen);
    std::vector<std::uint8_t> mask(idx(n), 0);
    for (std::int64_t i = 0; i < size; ++i) mask[idx(experts[idx(i)])] = 1;
    r.pools.insert(r.pools.end(), mask.begin(), mask.end());
    for (std::int64_t t = 0; t < length; ++t) {
      for (std::int64_t i = 0; i < k; ++i)
        std::swap(experts[idx(i)], experts[idx(i + static_cast<std::int64_t>(gen() % idx(size - i)))]);
      r.ids.insert(r.ids.end(), experts.begin(), experts.begin() + k);
    }
    r.segments.push_back(static_cast<std::int32_t>(r.ids.size()) / static_cast<std::int32_t>(k));
  }
  return r;
}

template <typename T>
Tensor up(Context& ctx, const std::vector<T>& v, Shape shape) {
  Tensor t(ctx.device, dtype_of<T>(), shape);
  ops::copy_from_host(ctx, t, v.data());
  return t;
}

}  // namespace

nlohmann::ordered_json bench_exchange(Session& session, const Recipe& recipe, int repeats) {
  const ModelConfig& m = recipe.model;
  require<UsageError>(m.is_moe(), "emox bench dispatch: {} has no experts; name a recipe of a MoE model",
                      recipe.run.name);
  Communicator& comm = session.comm();
  Context& ctx = session.ctx();
  Sharding sharding(comm, m, recipe.parallel);
  ExpertParallel& experts = *sharding.experts();
  const auto dispatcher = experts.make_dispatcher(0, m.routed_top_k());
  const Routing routing = draw(recipe, comm.rank());
  const std::int64_t tokens = recipe.train.micro_batch_sequences * m.sequence_length, k = m.routed_top_k(),
                     n = m.routed_experts(), width = m.d_model;
  const Tensor ids = up(ctx, routing.ids, {tokens, k}),
               segments = up(ctx, routing.segments, {static_cast<std::int64_t>(routing.segments.size())}),
               pools = up(ctx, routing.pools, {recipe.train.micro_batch_sequences, n});
  const Tensor x(ctx.device, ctx.activations, {tokens, width}), out(ctx.device, ctx.activations, {tokens, width}),
      gates(ctx.device, DType::F32, {tokens, k}), dgates(ctx.device, DType::F32, {tokens, k});
  Arena arena = Arena::measuring(ctx.device);
  const auto reserve = [&] {
    experts.reserve(arena, tokens, k, width);
    return dispatcher->reserve(arena, tokens);
  };
  (void)reserve();
  arena = Arena(ctx.device, arena.peak(), ctx.activations);
  const auto handle = reserve();
  const DocumentPools document_pools{m.pool == PoolMode::Off ? TensorView{} : pools.view(), segments};

  std::vector<double> plan_s, forward_s, backward_s;
  Tensor rows, row_gates;
  const auto timed = [&](std::vector<double>& into, const auto& work) {
    synchronize(ctx);
    comm.barrier();
    const auto start = std::chrono::steady_clock::now();
    work();
    synchronize(ctx);
    const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    into.push_back(static_cast<double>(largest_of_ranks(comm, static_cast<std::int64_t>(s * 1e9))) / 1e9);
  };
  double bytes = 0;
  for (int i = 0; i <= repeats; ++i) {
    experts.counters().clear();
    timed(plan_s, [&] { dispatcher->plan(ctx, *handle, ids, gates, document_pools); });
    if (rows.view().null() || rows.view().dim(0) != handle->rows) {
      rows = Tensor(ctx.device, ctx.activations, {handle->rows, width});
      row_gates = Tensor(ctx.device, DType::F32, {handle->rows});
    }
    timed(forward_s, [&] {
      dispatcher->dispatch_start(ctx, *handle, x);
      dispatcher->dispatch_finish(ctx, *handle, rows, row_gates);
      dispatcher->combine(ctx, *handle, out, rows);
    });
    const DispatchCounters& c = experts.counters();
    bytes = c[DispatchCounters::BytesIntra] + c[DispatchCounters::BytesInter];
    timed(backward_s, [&] {
      dispatcher->combine_backward_start(ctx, *handle, x);
      dispatcher->combine_backward_finish(ctx, *handle, rows);
      dispatcher->dispatch_backward(ctx, *handle,
                                    {.dx = out, .beta = 0, .dgates = dgates, .drows = rows, .drow_gates = row_gates});
    });
    if (i == 0) plan_s.clear(), forward_s.clear(), backward_s.clear();  // memory grows, connections are made
  }
  const DispatchCounters& c = experts.counters();
  const auto most = static_cast<double>(largest_of_ranks(comm, static_cast<std::int64_t>(bytes)));
  const double forward = median(plan_s) + median(forward_s);
  nlohmann::ordered_json result = {
      {"ranks", comm.size()},
      {"transport", std::string(comm.transport())},
      {"device", device_name(ctx)},
      {"expert_parallel", sharding.mesh().expert_parallel()},
      {"tokens_per_rank", tokens},
      {"width", width},
      {"row_bytes", static_cast<std::int64_t>(size_of(ctx.activations)) * width},
      {"rows_sent_per_token", c[DispatchCounters::Rows] / c[DispatchCounters::TokenVisits]},
      {"ranks_per_token", c[DispatchCounters::Ranks] / c[DispatchCounters::TokenVisits]},
      {"plan_s", median(plan_s)},
      {"forward_s", median(forward_s)},
      {"backward_s", median(backward_s)},
      {"bytes", most},
      {"gb_s", most / forward / 1e9},
      {"link_gb_s", nullptr},
      {"link_ratio", nullptr}};
  const auto rates = link_rates(session);
  for (const char* peers : {"same_node", "other_nodes"})  // the slower one there is, as a first bound
    if (rates.contains(peers)) result["link_gb_s"] = rates[peers]["gb_s"];
  if (!result["link_gb_s"].is_null() && most > 0)
    result["link_ratio"] = forward * result["link_gb_s"].get<double>() * 1e9 / most;
  return result;
}

std::string exchange_table(const nlohmann::ordered_json& r) {
  const auto number = [&](const char* key) { return r[key].get<double>(); };
  std::string text = fmt::format(
      "{} rank(s) ({}) on {}, experts over {}: {} tokens a rank, rows of {} bytes\n"
      "{:.3f} rows sent per token, {:.3f} ranks per token; {:.2f} MiB from the rank that sends most\n"
      "plan {:.3f} ms, dispatch and combine {:.3f} ms, backward {:.3f} ms; forward {:.2f} GB/s\n",
      r["ranks"].get<int>(), r["transport"].get<std::string>(), r["device"].get<std::string>(),
      r["expert_parallel"].get<int>(), r["tokens_per_rank"].get<std::int64_t>(), r["row_bytes"].get<std::int64_t>(),
      number("rows_sent_per_token"), number("ranks_per_token"), number("bytes") / 1048576, 1e3 * number("plan_s"),
      1e3 * number("forward_s"), 1e3 * number("backward_s"), number("gb_s"));
  if (!r["link_ratio"].is_null())
    text += fmt::format(
        "links carry {:.2f} GB/s a rank: plan, dispatch and combine take {:.2f} times what the bytes need\n",
        number("link_gb_s"), number("link_ratio"));
  return text;
}

}  // namespace emox
