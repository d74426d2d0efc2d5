#include "launch/commands/on_ranks.h"

#include <chrono>
#include <thread>

#include "launch/commands/command.h"
#include "parallel/comm/mpi_world.h"

namespace emox {

int on_ranks(const ParallelConfig& parallel, std::int64_t threads, const std::function<int(Session&)>& body) {
  Session session(parallel, threads);
  const int ranks = session.comm().size(), rank = session.comm().rank();
  bool thrown = false;
  const int code = guarded([&] {
    try {
      return body(session);
    } catch (...) {
      thrown = true;
      // Most errors are the same on all ranks: rank 0 speaks first and ends the job, before the others repeat it.
      if (rank != 0) std::this_thread::sleep_for(std::chrono::milliseconds(500));
      throw;
    }
  });
  if (thrown && ranks > 1) abort_job(code);
  return code;
}

}  // namespace emox
