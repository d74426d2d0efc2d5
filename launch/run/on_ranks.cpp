#include "launch/run/on_ranks.h"

#include <optional>

#include "launch/config/recipe_file.h"
#include "launch/run/failure.h"
#include "parallel/comm/mpi_launcher.h"
#include "parallel/comm/mpi_world.h"

namespace emox {

int on_ranks(const ParallelConfig& parallel, std::int64_t threads, const std::function<int(Session&)>& body) {
  std::optional<Session> made;
  try {
    made.emplace(parallel, threads);
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
    saying_why(rank, [&] { done = body(session); });
    thrown = false;
    return done;
  });
  if (thrown && ranks > 1) abort_job(code);
  return code;
}

int on_ranks(const std::vector<std::string>& overrides, const std::function<int(Session&)>& body) {
  std::vector<std::string> own;
  for (const std::string& o : overrides)
    if (o.starts_with("--parallel.") || o.starts_with("--train.threads=")) own.push_back(o);
  const Recipe recipe = parse_recipe("", "the command line", own);
  return on_ranks(recipe.parallel, recipe.train.threads, body);
}

}  // namespace emox
