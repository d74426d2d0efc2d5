// The checks of comm_checks.h over MPI, and the ways in which a job must end. Run by ctest under mpirun:
//   emox_mpi_comm check|chunks|nodes|late|hang|part|early|stopped|throw|leave|kill|auto|mpi|self
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <thread>

#include "parallel/comm/factory.h"
#include "parallel/comm/mpi_world.h"
#include "runtime/core/error.h"
#include "tests/parallel/comm_checks.h"

namespace emox::test {
namespace {

void sleep_seconds(int s) { std::this_thread::sleep_for(std::chrono::seconds(s)); }

void check_nodes(Communicator& comm) {
  const int last = comm.size() / 2 * 2;  // ranks beyond it have a node of one
  if (comm.node_rank() != comm.rank() % 2 || comm.node_size() != (comm.rank() >= last ? 1 : 2))
    throw std::runtime_error(fmt::format("place {} of {} on the node", comm.node_rank(), comm.node_size()));
  const auto across = comm.split(comm.rank() % 2, 0);
  if (across->node_size() != 1) throw std::runtime_error("one rank a node expected");
}

/// The last rank does what the mode says, the others enter a collective and wait for it.
void misbehave(Communicator& comm, const std::string& mode) {
  const auto part = comm.split(0, 0);
  part->barrier();
  std::vector<float> x(1000);
  if (comm.rank() != comm.size() - 1) {
    (mode == "part" ? *part : comm).all_reduce(view_of(x));
    return;
  }
  if (mode == "hang" || mode == "part") sleep_seconds(60);
  if (mode == "early") return;  // to the end of main(), where its watchdog still answers
  if (mode == "stopped") ::raise(SIGSTOP);
  if (mode == "kill") ::kill(::getpid(), SIGKILL);
  if (mode == "throw" || mode == "leave") fail<IoError>("the disk is full");
}

int run(const std::string& mode) {
  MpiWorldOptions options;
  if (mode == "chunks") options.max_message = 1000, options.reduce_piece = 700;
  if (mode == "nodes") options.ranks_per_node = 2;
  if (mode == "hang" || mode == "part" || mode == "early" || mode == "stopped" || mode == "late" || mode == "check")
    options.watchdog_s = 1;
  if (mode == "check") options.watchdog_s = 60;
  MpiWorld job(options);
  const auto comm = job.world();
  if (mode == "leave") misbehave(*comm, mode);  // the exception passes the MpiWorld
  try {
    if (mode == "check") {
      check_everything(*comm);
    } else if (mode == "chunks") {
      for (const std::int64_t n : {0, 1, 249, 250, 251, 1237}) check_type<float>(*comm, n);
      check_type<double>(*comm, 9999);
      check_all_to_all_of<std::uint8_t>(*comm, 1000, 1);  // exact multiples of a message
    } else if (mode == "nodes") {
      check_nodes(*comm);
    } else if (mode == "late") {
      // Three times the limit, but outside of collectives, on all ranks; then one rank is done long before the others.
      comm->barrier();
      sleep_seconds(3);
      check_type<float>(*comm, 10);
      if (comm->rank() != 0) sleep_seconds(3);
    } else {
      misbehave(*comm, mode);
    }
  } catch (const std::exception& e) {
    std::fprintf(stderr, "failed: %s\n", e.what());
    job.abort(1);
  }
  if (comm->rank() == 0) std::printf("%s: %d ranks passed\n", mode.c_str(), comm->size());
  return 0;
}

/// The same job by way of the recipe's word.
int run_factory(const std::string& name) {
  const auto comm = make_communicator(parse_transport(name), 60);
  check_type<float>(*comm, 100);
  check_split(*comm);
  if (comm->rank() == 0)
    std::printf("%s: %d ranks passed over %s\n", name.c_str(), comm->size(), comm->transport().data());
  return 0;
}

}  // namespace
}  // namespace emox::test

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "check";
  try {
    if (mode == "auto" || mode == "mpi" || mode == "self") return emox::test::run_factory(mode);
    return emox::test::run(mode);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "failed: %s\n", e.what());
    return 2;
  }
}
