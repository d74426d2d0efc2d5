#include "launch/commands/on_ranks.h"

#include "launch/commands/command.h"
#include "launch/train/failure.h"
#include "parallel/comm/mpi_world.h"

namespace emox {

int on_ranks(const ParallelConfig& parallel, std::int64_t threads, const std::function<int(Session&)>& body) {
  Session session(parallel, threads);
  const int ranks = session.comm().size(), rank = session.comm().rank();
  const FailureEndsProcess in_time;
  bool thrown = false;
  const int code = guarded([&] {
    int done = 0;
    thrown = true;
    saying_why(rank, [&] { done = body(session); });
    thrown = false;
    return done;
  });
  if (thrown && ranks > 1) abort_job(code);
  return code;
}

}  // namespace emox
