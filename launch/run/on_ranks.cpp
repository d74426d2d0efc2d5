#include "launch/run/on_ranks.h"

#include <chrono>
#include <optional>
#include <thread>

#include "launch/config/arguments.h"
#include "launch/config/recipe_file.h"
#include "launch/run/failure.h"
#include "parallel/comm/mpi_launcher.h"
#include "parallel/comm/mpi_world.h"

namespace emox {

int on_ranks(const SessionSetup& setup, const std::function<int(Session&)>& body) {
  std::optional<Session> made;
  try {
    made.emplace(setup);
  } catch (const LaunchError&) {
    if (find_launcher().rank > 0) return kUsage;  // the first one says it for all
    throw;
  }
  Session& session = *made;
  const int ranks = session.comm().size(), rank = session.comm().rank();
  const FailureEndsProcess in_time;
  bool thrown = false;
  const int code = guarded([&] {
    int done = 0;
    thrown = true;
    saying_why(rank, [&] {
      session.use_device(setup);
      done = body(session);
    });
    thrown = false;
    return done;
  });
  if (!thrown || ranks == 1) return code;
  const FailedTogether failed = failed_together();
  if (!failed.all) abort_job(code);
  // No rank waits for another: MPI ends as it does after success, without its page about an abort. Rank 0's exit code
  // is the job's, and launchers end the others when they see it, so it comes last.
  made.reset();
  if (!failed.alike) return code;
  if (rank != 0) return kDone;
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  return code;
}

int on_ranks(const std::vector<std::string>& overrides, const std::function<int(Session&)>& body) {
  std::vector<std::string> own;
  for (const std::string& o : overrides)
    if (is_rank_key(o.substr(0, o.find('=')))) own.push_back(o);
  const Recipe recipe = parse_recipe("", "the command line", own);
  return on_ranks(setup_of(recipe), body);
}

}  // namespace emox
