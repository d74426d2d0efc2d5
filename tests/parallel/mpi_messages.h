// Counts the point-to-point messages of this process, seen from below emox: by MPI's profiling interface.
#pragma once

#include <cstdint>

namespace emox::test {

struct MessageCount {
  std::int64_t sent = 0;      ///< MPI_Isend calls
  std::int64_t received = 0;  ///< MPI_Irecv calls
};

/// Since the start of the process.
MessageCount message_count();

}  // namespace emox::test
