// The MPI transport of one communicator. Included by parallel/comm/mpi_*.cpp only.
#pragma once

#include <cstddef>
#include <memory>

#include "parallel/comm/communicator.h"
#include "parallel/comm/mpi_support.h"

namespace emox {

struct MpiTuning {
  std::size_t max_message;   ///< bytes of one message or call, at most 2^30
  std::size_t reduce_piece;  ///< bytes of one piece of a sum
  int node;                  ///< this rank's simulated node, or -1: ranks that share memory share a node
};

/// `comm` becomes the communicator's own. Collective.
std::unique_ptr<Communicator> make_mpi_communicator(MpiComm comm, MpiTuning tuning);

}  // namespace emox
