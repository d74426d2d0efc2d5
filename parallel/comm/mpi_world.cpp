#include "parallel/comm/mpi_world.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <optional>
#include <string>
#include <thread>

#include "parallel/comm/mpi_communicator.h"
#include "parallel/comm/mpi_launcher.h"
#include "parallel/comm/mpi_peers.h"
#include "parallel/comm/watchdog.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

/// Starts MPI; the object's end is MPI's end, unless somebody else has ended it.
class MpiLibrary {
 public:
  MpiLibrary() {
    int initialized = 0;
    MPI_CHECK(MPI_Initialized(&initialized));
    require<CommError>(initialized == 0, "MPI is already initialised: make one MpiWorld a process");
    // Without a launcher OpenMPI looks for ssh or Slurm to start further processes, and ends where it finds none.
    // Nor does a process join others without a PMIx server, whatever other variables say.
    if (!MpiWorld::launched_by_mpi() || std::getenv("PMIX_NAMESPACE") == nullptr)
      ::setenv("OMPI_MCA_plm", "isolated", 0);
    int provided = 0;
    MPI_CHECK(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided));
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);  // duplicates and parts inherit it
    if (provided == MPI_THREAD_MULTIPLE) return;
    MPI_Finalize();
    fail<CommError>("this MPI offers thread level {}, but the watchdog's thread needs MPI_THREAD_MULTIPLE", provided);
  }
  ~MpiLibrary() {
    if (!mpi_finalized()) MPI_Finalize();
  }
  MpiLibrary(const MpiLibrary&) = delete;
  MpiLibrary& operator=(const MpiLibrary&) = delete;
};

// Of the process, as MPI is: who fails need not know the world.
MPI_Comm g_failures = MPI_COMM_NULL;

}  // namespace

FailureOf meet_in_failure(std::uint64_t error, double wait_s) {
  static std::optional<FailureOf> answer;
  // MPI goes on writing there when not all come.
  static std::uint64_t mine[2], largest[2];
  static MPI_Request request = MPI_REQUEST_NULL;
  if (answer && *answer != FailureOf::Some) return *answer;
  if (g_failures == MPI_COMM_NULL || mpi_finalized()) return FailureOf::NoJob;
  if (!answer) {
    answer = FailureOf::Some;
    mine[0] = error, mine[1] = ~error;
    MPI_Iallreduce(mine, largest, 2, MPI_UINT64_T, MPI_MAX, g_failures, &request);
  }
  if (request == MPI_REQUEST_NULL) return *answer;
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(wait_s);
  for (int done = 0; std::chrono::steady_clock::now() < end;) {
    if (MPI_Test(&request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) break;
    // The smallest is the complement of the complements' largest.
    if (done != 0) return *(answer = largest[0] == ~largest[1] ? FailureOf::Alike : FailureOf::Unlike);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return *answer;
}

struct MpiWorld::Impl {
  explicit Impl(MpiWorldOptions o) : options(o) {}
  MpiWorldOptions options;
  MpiLibrary library;
  int exceptions = std::uncaught_exceptions();
  int rank = 0;
  int size = 1;
  int worlds = 0;
  MpiComm watchdog_comm, failure_comm;
  ActivityLog log;
  std::unique_ptr<MpiPeers> peers;
  std::unique_ptr<Watchdog> watchdog;
};

int MpiWorld::launched_ranks() { return find_launcher().ranks; }
bool MpiWorld::launched_by_mpi() { return launched_ranks() > 1; }

MpiWorld::MpiWorld(MpiWorldOptions options) {
  require<CommError>(options.max_message >= 1 && options.max_message <= std::size_t{1} << 30,
                     "max_message = {} bytes, but MPI counts in int: use 1 to 2^30", options.max_message);
  require<CommError>(options.reduce_piece >= 1 && options.reduce_piece <= std::size_t{1} << 30,
                     "reduce_piece = {} bytes, but MPI counts in int: use 1 to 2^30", options.reduce_piece);
  const Launcher launcher = find_launcher();
  check_before_mpi(launcher);
  impl_ = std::make_unique<Impl>(options);
  MPI_CHECK(MPI_Comm_rank(MPI_COMM_WORLD, &impl_->rank));
  MPI_CHECK(MPI_Comm_size(MPI_COMM_WORLD, &impl_->size));
  check_world(launcher, impl_->size);
  set_error_rank(impl_->rank);
  if (impl_->size > 1) impl_->failure_comm = MpiComm::duplicate(MPI_COMM_WORLD);
  g_failures = impl_->failure_comm.get();
  if (options.watchdog_s <= 0) return;
  impl_->watchdog_comm = MpiComm::duplicate(MPI_COMM_WORLD);
  impl_->peers = std::make_unique<MpiPeers>(impl_->watchdog_comm.get(), impl_->log);
  impl_->watchdog = std::make_unique<Watchdog>(impl_->rank, WatchdogLimits{options.watchdog_s, options.io_watchdog_s},
                                               impl_->log, *impl_->peers);
}

MpiWorld::~MpiWorld() {
  if (mpi_finalized()) return;
  if (impl_->size > 1 && std::uncaught_exceptions() > impl_->exceptions) {
    // The others wait for this rank in some collective, and MPI_Finalize would wait for them.
    std::fprintf(stderr, "rank %d leaves the job by an exception\n", impl_->rank);
    abort(1);
  }
  g_failures = MPI_COMM_NULL;
  if (!impl_->watchdog) return;
  try {
    impl_->peers->farewell();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
  }
  impl_->watchdog->stop();
}

int MpiWorld::rank() const { return impl_->rank; }
int MpiWorld::size() const { return impl_->size; }

std::unique_ptr<Communicator> MpiWorld::world() {
  const MpiWorldOptions& o = impl_->options;
  const int node = o.ranks_per_node > 0 ? impl_->rank / o.ranks_per_node : -1;
  auto comm = make_mpi_communicator(MpiComm::duplicate(MPI_COMM_WORLD), {o.max_message, o.reduce_piece, node});
  if (!impl_->watchdog) return comm;
  const int nth = ++impl_->worlds;
  watch(*comm, impl_->log, nth == 1 ? "world" : fmt::format("world{}", nth));
  return comm;
}

void MpiWorld::abort(int code) { abort_job(code); }

void abort_job(int code) {
  std::fflush(nullptr);
  int initialized = 0;
  MPI_Initialized(&initialized);
  if (initialized != 0 && !mpi_finalized()) MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

}  // namespace emox
