// From the recipe's word (parallel.communicator) to a communicator.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "parallel/comm/communicator.h"

namespace emox {

enum class Transport : std::uint8_t { Auto, Self, Mpi };

/// "auto", "self", "mpi"; UsageError for anything else.
Transport parse_transport(std::string_view name);

/// All ranks of this job. Auto: mpi when a launcher started several ranks, else self. Make one a process; it owns MPI,
/// so communicators split from it must go first. `watchdog_s` = 0: no watchdog; `io_watchdog_s`: its limit for a rank
/// in an IoPhase, where that is the longer one. A caller that catches exceptions does so while the communicator lives,
/// prints, and calls abort_job() (mpi_world.h): else the other ranks are ended with less to say.
std::unique_ptr<Communicator> make_communicator(Transport transport, double watchdog_s = 0, double io_watchdog_s = 0);

}  // namespace emox
