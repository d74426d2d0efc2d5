#include "launch/bench/link_bench.h"

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <vector>

#include "parallel/comm/together.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

/// Seconds of one exchange of `elements` with each peer; on the slowest rank.
double exchange_seconds(Session& session, const std::vector<bool>& peers, std::int64_t elements, double budget_s) {
  Communicator& comm = session.comm();
  Context& ctx = session.ctx();
  std::vector<std::int64_t> rows(peers.size());
  for (std::size_t r = 0; r < peers.size(); ++r) rows[r] = peers[r] ? elements : 0;
  const std::int64_t all = std::count(peers.begin(), peers.end(), true) * elements;
  const Tensor in(ctx.device, DType::F32, {all}), out(ctx.device, DType::F32, {all});
  const auto run = [&](std::int64_t times) {
    synchronize(ctx);
    comm.barrier();
    const auto start = std::chrono::steady_clock::now();
    for (std::int64_t i = 0; i < times; ++i) comm.all_to_all_v(out, rows, in, rows);
    if (comm.queue() != nullptr && ctx.queue != nullptr) ctx.queue->follow(*comm.queue());
    synchronize(ctx);
    const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return static_cast<double>(largest_of_ranks(comm, static_cast<std::int64_t>(s * 1e9))) / 1e9;
  };
  run(1);  // connections are made
  const double once = run(2) / 2;
  const auto times = static_cast<std::int64_t>(std::clamp(budget_s / once, 2.0, 1000.0));
  return run(times) / static_cast<double>(times);
}

}  // namespace

nlohmann::ordered_json link_rates(Session& session) {
  Communicator& comm = session.comm();
  nlohmann::ordered_json rates;
  for (const bool same_node : {true, false}) {
    std::vector<bool> peers;
    for (int r = 0; r < comm.size(); ++r)
      peers.push_back(r != comm.rank() && (comm.nodes()[idx(r)] == comm.nodes()[idx(comm.rank())]) == same_node);
    const std::int64_t count = std::count(peers.begin(), peers.end(), true);
    if (largest_of_ranks(comm, count) == 0) continue;
    constexpr std::int64_t kLarge = (4 << 20) / 4, kSmall = 64;
    const double large = exchange_seconds(session, peers, kLarge, 0.8),
                 small = exchange_seconds(session, peers, kSmall, 0.1);
    const std::int64_t of_root = value_of_root(comm, count);
    rates[same_node ? "same_node" : "other_nodes"] = {{"peers", of_root},
                                                      {"gb_s", static_cast<double>(of_root * kLarge * 4) / large / 1e9},
                                                      {"small_us", small * 1e6}};
  }
  return rates;
}

}  // namespace emox
