#include "launch/train/session.h"

#include <cstdlib>
#include <fstream>
#include <thread>
#include <utility>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "parallel/comm/factory.h"
#include "runtime/core/error.h"
#include "runtime/cpu/processor.h"

namespace emox {

Session::Session(const ParallelConfig& parallel, std::int64_t threads)
    : comm_(make_communicator(parse_transport(kCommunicatorNames[static_cast<std::size_t>(parallel.communicator)]),
                              parallel.watchdog_s, parallel.io_watchdog_s)),
      log_(comm_->rank()) {
  start(threads > 0 ? static_cast<int>(threads) : default_threads(comm_->node_size()));
}

Session::Session(std::unique_ptr<Communicator> comm, int threads) : comm_(std::move(comm)), log_(comm_->rank()) {
  start(threads);
}

void Session::start(int threads) {
  check_processor();
  set_error_rank(comm_->rank());
#ifdef _OPENMP
  require<UsageError>(
      threads <= omp_get_thread_limit(),
      "{} threads a rank are asked for, but OMP_THREAD_LIMIT allows {}: oneDNN "
      "would share its work among threads that never start. Unset OMP_THREAD_LIMIT, or set OMP_NUM_THREADS or "
      "train.threads to at most {}",
      threads, omp_get_thread_limit(), omp_get_thread_limit());
  omp_set_num_threads(threads);  // oneDNN's threads
  ctx_.threads = threads;
#else
  (void)threads;
  ctx_.threads = 1;
#endif
  ctx_.log = &log_;
  ctx_.telemetry = &telemetry_;
}

int default_threads(int ranks_on_node) {
  if (const char* text = std::getenv("OMP_NUM_THREADS"); text != nullptr && std::atoi(text) > 0) return std::atoi(text);
  const auto cores = static_cast<int>(std::thread::hardware_concurrency());
  return cores / ranks_on_node > 0 ? cores / ranks_on_node : 1;
}

void check_processor() {
  const std::string missing = cpu::missing_instructions();
  require<UsageError>(missing.empty(),
                      "this emox was compiled for a processor with {}, which this one ({}) lacks: build it here, or "
                      "configure with -DEMOX_CPU_ARCH=x86-64-v3 for one binary on several kinds of machines",
                      missing, processor_name());
}

std::string processor_name() {
  std::ifstream in("/proc/cpuinfo");
  std::string line;
  while (std::getline(in, line))
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  return "unknown processor";
}

}  // namespace emox
