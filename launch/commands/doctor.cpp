#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "launch/bench/gemm_rate.h"
#include "launch/commands/command.h"
#include "launch/commands/on_ranks.h"
#include "launch/train/session.h"
#include "parallel/checkpoint/versions.h"
#include "runtime/core/version.h"
#include "runtime/cpu/processor.h"
#include "runtime/ops/basic.h"

namespace emox {
namespace {

// Seconds of one all-reduce of `bytes`, the best of several.
double all_reduce_seconds(Session& session, std::int64_t bytes) {
  const Tensor x(session.ctx().device, DType::F32, {bytes / 4});
  double best = 1e9;
  for (int i = 0; i < 6; ++i) {
    session.comm().barrier();
    const auto start = std::chrono::steady_clock::now();
    session.comm().all_reduce(x);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

int diagnose(Session& session, bool json) {
  const double gemm = gemm_rate(session.ctx(), 5);
  const double small = all_reduce_seconds(session, 1024), large = all_reduce_seconds(session, 16 << 20);
  nlohmann::ordered_json report = {{"version", kVersion},
                                   {"processor", processor_name()},
                                   {"compiled_for", cpu::compiled_instructions()},
                                   {"cores", std::thread::hardware_concurrency()},
                                   {"ranks", session.comm().size()},
                                   {"ranks_on_this_node", session.comm().node_size()},
                                   {"transport", std::string(session.comm().transport())},
                                   {"threads_per_rank", session.ctx().threads},
                                   {"cuda", "built without CUDA"},
                                   {"hdf5", hdf5_version()},
                                   {"gemm_gflops_per_rank", gemm / 1e9},
                                   {"all_reduce_1_kib_us", small * 1e6},
                                   {"all_reduce_16_mib_ms", large * 1e3}};
  if (!session.root()) return kDone;
  if (json) {
    fmt::print("{}\n", report.dump());
    return kDone;
  }
  for (const auto& [key, value] : report.items())
    fmt::print("{:<22} {}\n", key,
               value.is_string()         ? value.get<std::string>()
               : value.is_number_float() ? fmt::format("{:.1f}", value.get<double>())
                                         : value.dump());
  if (session.comm().size() == 1 && session.ctx().threads > 1)
    fmt::print("\none rank with {} threads; mpirun -n {} would give one rank a core (OMP_NUM_THREADS=1)\n",
               session.ctx().threads, session.ctx().threads);
  if (session.comm().node_size() * session.ctx().threads > static_cast<int>(std::thread::hardware_concurrency()))
    fmt::print("\nwarning: {} ranks x {} threads on {} cores: set OMP_NUM_THREADS={} or start fewer ranks\n",
               session.comm().node_size(), session.ctx().threads, std::thread::hardware_concurrency(),
               std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / session.comm().node_size()));
  return kDone;
}

}  // namespace

int run_doctor(const std::vector<std::string>& args) {
  const Arguments a = parse_args(args, {.command = "emox doctor", .flags = {"--json"}});
  return on_ranks({}, 0, [&](Session& session) { return diagnose(session, a.has("--json")); });
}

}  // namespace emox
