#include "tests/parallel/mpi_messages.h"

#include <mpi.h>

namespace {
emox::test::MessageCount count;
}  // namespace

emox::test::MessageCount emox::test::message_count() { return count; }

// A program's own definitions take the place of MPI's; MPI's work goes on under the names with P.
extern "C" int MPI_Isend(const void* from, int n, MPI_Datatype type, int to, int tag, MPI_Comm comm,
                         MPI_Request* request) {
  ++count.sent;
  return PMPI_Isend(from, n, type, to, tag, comm, request);
}

extern "C" int MPI_Irecv(void* to, int n, MPI_Datatype type, int from, int tag, MPI_Comm comm, MPI_Request* request) {
  ++count.received;
  return PMPI_Irecv(to, n, type, from, tag, comm, request);
}
