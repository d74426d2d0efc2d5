#include "parallel/comm/factory.h"

#include "parallel/comm/mpi_world.h"
#include "runtime/core/error.h"

namespace emox {

Transport parse_transport(std::string_view name) {
  if (name == "auto") return Transport::Auto;
  if (name == "self") return Transport::Self;
  if (name == "mpi") return Transport::Mpi;
  fail<UsageError>("parallel.communicator = {} is not one of auto, self, mpi", name);
}

std::unique_ptr<Communicator> make_communicator(Transport transport, double watchdog_s, double io_watchdog_s) {
  require<UsageError>(watchdog_s >= 0, "parallel.watchdog_s = {}: use a positive number of seconds, or 0 for none",
                      watchdog_s);
  const int ranks = MpiWorld::launched_ranks();
  require<UsageError>(
      transport != Transport::Self || ranks == 1,
      "parallel.communicator = self, but the launcher started {} ranks, which would all do the same work: "
      "use auto or mpi, or start one rank",
      ranks);
  const bool mpi = transport == Transport::Mpi || (transport == Transport::Auto && ranks > 1);
  if (!mpi) return make_self_communicator();
  const auto job =
      std::make_shared<MpiWorld>(MpiWorldOptions{.watchdog_s = watchdog_s, .io_watchdog_s = io_watchdog_s});
  std::unique_ptr<Communicator> world = job->world();
  world->keep_alive(job);
  return world;
}

}  // namespace emox
