// The checks of comm_checks.h over MPI, and the ways in which a job must end. Run by ctest under mpirun:
//   emox_mpi_comm check|chunks|nodes|messages|abandon|late|slow|auto|mpi|self
//   emox_mpi_comm hang|part|rows|early|stopped|stuck|io|throw|leave|kill
//   emox_mpi_comm traffic BYTES TIMES
//   emox_mpi_comm sums FLOATS TIMES
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <thread>

#include "parallel/comm/factory.h"
#include "parallel/comm/mpi_world.h"
#include "parallel/comm/progress.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "tests/parallel/comm_checks.h"
#include "tests/parallel/mpi_messages.h"

namespace emox::test {
namespace {

void sleep_seconds(int s) { std::this_thread::sleep_for(std::chrono::seconds(s)); }

void work_seconds(Communicator& comm, int s) {
  for (int i = 0; i < 5 * s; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    report_progress(comm);
  }
}

void check_nodes(Communicator& comm) {
  const int last = comm.size() / 2 * 2;  // ranks beyond it have a node of one
  if (comm.node_rank() != comm.rank() % 2 || comm.node_size() != (comm.rank() >= last ? 1 : 2))
    throw std::runtime_error(fmt::format("place {} of {} on the node", comm.node_rank(), comm.node_size()));
  for (int r = 0; r < comm.size(); ++r) {
    if (comm.nodes()[idx(r)] != r / 2) throw std::runtime_error("ranks 2 k and 2 k + 1 share node k");
  }
  const auto across = comm.split(comm.rank() % 2, 0);
  if (across->node_size() != 1) throw std::runtime_error("one rank a node expected");
  const auto reversed = comm.split(0, -comm.rank());  // numbered anew: the last rank names node 0
  for (int r = 0; r < comm.size(); ++r) {
    const int world_rank = comm.size() - 1 - r;
    if (reversed->nodes()[idx(r)] != (comm.size() - 1) / 2 - world_rank / 2)
      throw std::runtime_error("nodes are numbered in the order of the ranks");
  }
}

void expect_messages(const MessageCount& before, std::int64_t sent, std::int64_t received) {
  const MessageCount now = message_count();
  if (now.sent - before.sent != sent || now.received - before.received != received)
    throw std::runtime_error(fmt::format("{} messages sent and {} received, expected {} and {}", now.sent - before.sent,
                                         now.received - before.received, sent, received));
}

/// Rows travel from each rank to the next one only: one message out, one in, whatever the number of ranks.
void check_messages(Communicator& comm) {
  const int ranks = comm.size(), next = (comm.rank() + 1) % ranks, previous = (comm.rank() + ranks - 1) % ranks;
  std::vector<std::int64_t> send(idx(ranks)), recv = send;
  send[idx(next)] = 3;
  recv[idx(previous)] = 3;
  std::vector<float> in = contribution<float>(comm.rank(), 3), out(3);
  MessageCount before = message_count();
  comm.all_to_all_v_start(view_of(out), recv, view_of(in), send);
  expect_messages(before, 1, 1);  // under way before anybody waits
  comm.all_to_all_v_finish();
  expect_messages(before, 1, 1);
  expect_values(out, "rows of the rank before", [&](std::int64_t i) { return value_at<float>(previous, i); });

  const std::vector<std::int64_t> none(idx(ranks), 0);
  before = message_count();
  comm.all_to_all_v(TensorView(nullptr, DType::F32, {0, 5}), none, TensorView(nullptr, DType::F32, {0, 5}), none);
  expect_messages(before, 0, 0);

  // All rows of a sum on rank 0: it receives from everybody, the others send once.
  std::vector<std::int64_t> cuts(idx(ranks) + 1, 8);
  cuts[0] = 0;
  std::vector<float> x(8, 1);
  before = message_count();
  comm.reduce_scatter(view_of(x), ranges_of(cuts));
  expect_messages(before, comm.rank() == 0 ? 0 : 1, comm.rank() == 0 ? ranks - 1 : 0);
}

/// Rank 0 abandons an exchange before rank 1's rows are sent: they must not reach the memory that they were meant for.
void check_abandon(Communicator& comm) {
  const auto part = comm.split(0, 0);
  const std::vector<std::int64_t> none(idx(comm.size()), 0);
  std::vector<std::int64_t> rows = none;
  rows[comm.rank() == 0 ? 1 : 0] = 1000;
  std::vector<float> in(1000, 1.0F), out(1000, 0.0F);
  const TensorView nothing(nullptr, DType::F32, {0});
  if (comm.rank() == 0) {
    part->all_to_all_v_start(view_of(out), rows, nothing, none);
    part->all_to_all_v_abandon();
    std::fill(out.begin(), out.end(), 7.0F);
  }
  comm.barrier();
  if (comm.rank() == 1) part->all_to_all_v_start(nothing, none, view_of(in), rows);
  comm.barrier();
  for (int i = 0; i < 20; ++i) comm.barrier();  // MPI has every occasion to deliver
  if (comm.rank() == 1) part->all_to_all_v_abandon();
  expect_values(out, "memory after an abandoned exchange",
                [&](std::int64_t) { return comm.rank() == 0 ? 7.0F : 0.0F; });
}

/// The last rank does what the mode says, the others enter a collective and wait for it.
void misbehave(Communicator& comm, const std::string& mode) {
  const auto part = comm.split(0, 0);
  part->barrier();
  std::vector<float> x(1000);
  if (comm.rank() != comm.size() - 1 && mode == "rows") {
    std::vector<float> out(idx(comm.size()));
    const std::vector<std::int64_t> ones(out.size(), 1);
    part->all_to_all_v_start(view_of(out), ones, view_of(x).rows(0, comm.size()), ones);
    part->all_to_all_v_finish();
  } else if (comm.rank() != comm.size() - 1) {
    (mode == "part" ? *part : comm).all_reduce(view_of(x));
  }
  if (comm.rank() != comm.size() - 1) return;
  if (mode == "stuck") work_seconds(*part, 3);
  if (mode == "hang" || mode == "part" || mode == "rows" || mode == "stuck") sleep_seconds(60);
  if (mode == "io") {
    const IoPhase io(*part);
    sleep_seconds(60);
  }
  if (mode == "early") return;  // to the end of main(), where its watchdog still answers
  if (mode == "stopped") ::raise(SIGSTOP);
  if (mode == "kill") ::kill(::getpid(), SIGKILL);
  if (mode == "throw" || mode == "leave") fail<IoError>("the disk is full");
}

/// Every rank sends every other rank `bytes` bytes, `times` times; rank 0 prints what crossed between nodes.
int run_traffic(std::int64_t bytes, std::int64_t times) {
  MpiWorld job;
  const auto comm = job.world();
  const auto ranks = idx(comm->size());
  std::vector<std::int64_t> each(ranks, bytes);
  each[idx(comm->rank())] = 0;
  std::vector<std::uint8_t> in((ranks - 1) * idx(bytes)), out(in.size());
  for (std::int64_t i = 0; i < times; ++i) comm->all_to_all_v(view_of(out), each, view_of(in), each);
  std::int64_t pairs = 0;
  for (const int a : comm->nodes())
    for (const int b : comm->nodes()) pairs += a != b ? 1 : 0;
  if (comm->rank() == 0) std::printf("between nodes: %lld bytes\n", static_cast<long long>(pairs * bytes * times));
  return 0;
}

/// Sums of `floats` numbers, shared out evenly and gathered again, `times` times; rank 0 prints what all received from
/// other nodes.
int run_sums(std::int64_t floats, std::int64_t times) {
  MpiWorld job;
  const auto comm = job.world();
  std::vector<std::int64_t> cuts;
  for (int r = 0; r <= comm->size(); ++r) cuts.push_back(floats * r / comm->size());
  const std::vector<RowRange> ranges = ranges_of(cuts);
  std::vector<float> x(idx(floats), 1.0F);
  for (std::int64_t i = 0; i < times; ++i) {
    comm->reduce_scatter(view_of(x), ranges);
    comm->all_gather_v(view_of(x), ranges);
  }
  std::vector<std::int64_t> received{comm->traffic().bytes_inter_node, comm->traffic().messages_inter_node};
  comm->all_reduce(view_of(received));
  if (comm->rank() == 0)
    std::printf("between nodes: %lld bytes in messages: %lld\n", static_cast<long long>(received[0]),
                static_cast<long long>(received[1]));
  return 0;
}

int run(const std::string& mode) {
  MpiWorldOptions options;
  if (mode == "chunks") options.max_message = 1000, options.reduce_piece = 700;
  if (mode == "nodes") options.ranks_per_node = 2;
  if (mode == "hang" || mode == "part" || mode == "rows" || mode == "early" || mode == "stopped" || mode == "late" ||
      mode == "slow" || mode == "stuck" || mode == "io")
    options.watchdog_s = 1;
  if (mode == "slow") options.io_watchdog_s = 60;
  if (mode == "io") options.io_watchdog_s = 3;
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
      check_blocks_of<double>(*comm, 777, 11);            // many pieces, blocks of other lengths
      check_ranges(*comm, /*default_pieces=*/false);
      check_sum_orders(*comm);
      check_open_exchange(*comm);
    } else if (mode == "nodes") {
      check_nodes(*comm);
      check_ranges(*comm);
      check_sum_orders(*comm);
    } else if (mode == "messages") {
      check_messages(*comm);
    } else if (mode == "abandon") {
      check_abandon(*comm);
    } else if (mode == "late") {
      // Three times the limit, but outside of collectives, on all ranks; then one rank is done long before the others.
      comm->barrier();
      sleep_seconds(3);
      check_type<float>(*comm, 10);
      if (comm->rank() != 0) sleep_seconds(3);
    } else if (mode == "slow") {
      // Three times the limit while others wait: once with reports of progress, once in an I/O phase.
      if (comm->rank() == 1) work_seconds(*comm, 3);
      comm->barrier();
      if (comm->rank() == 0) {
        const IoPhase io(*comm);
        sleep_seconds(3);
      }
      comm->barrier();
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
    if (mode == "traffic" && argc == 4) return emox::test::run_traffic(std::stoll(argv[2]), std::stoll(argv[3]));
    if (mode == "sums" && argc == 4) return emox::test::run_sums(std::stoll(argv[2]), std::stoll(argv[3]));
    return emox::test::run(mode);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "failed: %s\n", e.what());
    return 2;
  }
}
