#include "launch/run/session.h"

#include <strings.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "launch/run/watchdog_limit.h"
#include "parallel/comm/factory.h"
#include "parallel/comm/mpi_launcher.h"
#include "parallel/comm/nccl/nccl_transport.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/cpu/affinity.h"
#include "runtime/cpu/processor.h"

namespace emox {

SessionSetup setup_of(const Recipe& recipe) {
  return {recipe.parallel, recipe.train.threads, recipe.run.device, recipe.train.precision};
}

namespace {

/// Somebody tells OpenMP where its threads run: it may have bound this one already, to a core that says nothing of the
/// others.
bool threads_are_placed() {
  const char* bind = std::getenv("OMP_PROC_BIND");
  return (bind != nullptr && strcasecmp(bind, "false") != 0) || std::getenv("OMP_PLACES") != nullptr ||
         std::getenv("GOMP_CPU_AFFINITY") != nullptr;
}

/// What moves host memory: devices have their own.
Transport host_transport(CommunicatorKind kind) {
  switch (kind) {
    case CommunicatorKind::Self:
      return Transport::Self;
    case CommunicatorKind::Mpi:
      return Transport::Mpi;
    default:
      return Transport::Auto;
  }
}

}  // namespace

Session::Session(const SessionSetup& setup)
    : comm_(
          make_communicator(host_transport(setup.parallel.communicator),
                            setup.parallel.watchdog_s > 0 ? setup.parallel.watchdog_s : WatchdogLimit::kBeforeMeasured,
                            setup.parallel.io_watchdog_s)),
      log_(comm_->rank()) {
  const int wanted = setup.threads > 0 ? static_cast<int>(setup.threads) : default_threads(*comm_);
  start(wanted);
  warn_if_bound(wanted);
  if (const int tasks = tasks_without_launcher(); tasks > 1 && comm_->size() == 1)
    log_.warn(
        "this Slurm job has {} tasks, but emox was started once, without srun: it computes on one rank. Write srun "
        "--mpi=pmix in front of it in the job script, or ask for --ntasks=1",
        tasks);
}

Session::Session(std::unique_ptr<Communicator> comm, int threads) : comm_(std::move(comm)), log_(comm_->rank()) {
  start(threads);
}

void Session::start(int threads) {
  check_processor();
  set_error_rank(comm_->rank());
#ifdef _OPENMP
  require<UsageError>(
      threads <= omp_get_thread_limit(),
      "{} threads a rank are asked for, but OMP_THREAD_LIMIT allows {}: oneDNN "
      "would share its work among threads that never start. Unset OMP_THREAD_LIMIT, or set OMP_NUM_THREADS or "
      "train.threads to at most {}",
      threads, omp_get_thread_limit(), omp_get_thread_limit());
  omp_set_num_threads(threads);  // oneDNN's threads
  ctx_.threads = threads;
#else
  (void)threads;
  ctx_.threads = 1;
#endif
  ctx_.log = &log_;
  ctx_.telemetry = &telemetry_;
}

void Session::use_device(const SessionSetup& setup) {
  const CommunicatorKind kind = setup.parallel.communicator;
  choice_ = choose_device(*comm_, setup.device, setup.precision, kind);
  const bool devices = kind == CommunicatorKind::Nccl || kind == CommunicatorKind::Staged;
  require<UsageError>(!devices || choice_.on_gpu(),
                      "parallel.communicator = {} moves data between GPUs, but this job computes on the CPU ({}); use "
                      "auto or mpi",
                      kCommunicatorNames[idx(kind)], choice_.why);
  if (!choice_.on_gpu()) return;
  // The host's memory and its threads beside the GPU, unless somebody has placed them.
  if (!threads_are_placed()) cpu::stay_on(cpu::cores_near(cuda::accelerator()->properties(choice_.device.index).bus));
  queue_ = cuda::accelerator()->open_queue(choice_.device.index);
  ctx_.device = queue_->device();
  ctx_.queue = queue_.get();
  ctx_.activations = choice_.activations;
  if (comm_->size() > 1) connect_devices(kind);
}

void Session::connect_devices(CommunicatorKind kind) {
  require<UsageError>(kind != CommunicatorKind::Mpi,
                      "parallel.communicator = mpi moves host memory, but this job computes on GPUs; use auto or nccl, "
                      "staged, or run.device = cpu");
  for (const std::string& line : binding_lines(*comm_, choice_)) log_.info("{}", line);
  transfers_ = std::make_unique<TransferQueues>(ctx_.device);
  comm_ =
      make_device_communicator(std::move(comm_), *queue_, *transfers_, [kind](Communicator& host, DeviceQueue& queue) {
        return kind == CommunicatorKind::Staged ? make_staged_transport(host, queue) : make_nccl_transport(host, queue);
      });
}

std::string device_name(const Context& ctx) {
  if (ctx.device.type == DeviceType::Cpu) return processor_name();
  const DeviceProperties p = cuda::accelerator()->properties(ctx.device.index);
  return fmt::format("{} (sm_{}{})", p.name, p.major, p.minor);
}

namespace {

/// 0 where it is not set, or no number.
int number_of(const char* variable) {
  const char* text = std::getenv(variable);
  return text == nullptr ? 0 : std::max(std::atoi(text), 0);
}

int threads_by_environment() { return number_of("OMP_NUM_THREADS"); }

}  // namespace

// Open MPI binds each of one or two ranks to a single core: all threads of a rank then take turns on it.
void Session::warn_if_bound(int threads) {
  const int cores = cpu::count_of(cpu::allowed_cores());
  std::int64_t bound = threads > cores && !threads_are_placed() ? 1 : 0;
  comm_->all_reduce(TensorView(&bound, DType::I64, {1}));
  if (bound == 0 || !root()) return;
  log_.warn(
      "{} of {} rank(s) have more threads than cores that they may use (rank 0: {} threads, {} core(s)), which take "
      "turns "
      "there: start mpirun with --bind-to none, or srun with --cpus-per-task",
      bound, comm_->size(), threads, cores);
}

int default_threads(Communicator& comm) {
  // Where OpenMP places threads, its masks say nothing: the share of the machine then.
  cpu::CoreMask own = threads_are_placed() ? cpu::CoreMask{} : cpu::allowed_cores();
  const auto bytes = static_cast<std::int64_t>(own.size());
  std::vector<std::uint8_t> all(idx(comm.size()) * own.size());
  comm.all_gather(TensorView(all.data(), DType::U8, {comm.size(), bytes}), TensorView(own.data(), DType::U8, {bytes}));
  int sharing = 0;  // ranks of this node that may use just the same cores
  for (int r = 0; r < comm.size(); ++r) {
    const bool here = comm.nodes()[idx(r)] == comm.nodes()[idx(comm.rank())];
    const auto theirs = all.begin() + r * bytes;
    if (here && std::equal(own.begin(), own.end(), theirs)) ++sharing;
  }
  const int wanted = threads_by_environment();
  const int cores = threads_are_placed() ? static_cast<int>(std::thread::hardware_concurrency()) : cpu::count_of(own);
  if (wanted > 0) return wanted;
  // What the job asked for, where Slurm has not bound the task to that already: other tasks have the rest of the mask.
  if (const int task = number_of("SLURM_CPUS_PER_TASK"); task > 0) return std::clamp(task, 1, std::max(cores, 1));
  return std::max(cores / sharing, 1);
}

int default_threads(int ranks_on_node) {
  const int wanted = threads_by_environment();
  return wanted > 0 ? wanted : std::max(cpu::count_of(cpu::allowed_cores()) / ranks_on_node, 1);
}

void check_processor() {
  const std::string missing = cpu::missing_instructions();
  require<UsageError>(missing.empty(),
                      "this emox was compiled for a processor with {}, which this one ({}) lacks: build it here, or "
                      "configure with -DEMOX_CPU_ARCH=x86-64-v3 for one binary on several kinds of machines",
                      missing, processor_name());
}

std::string processor_name() {
  std::ifstream in("/proc/cpuinfo");
  std::string line;
  while (std::getline(in, line))
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  return "unknown processor";
}

}  // namespace emox
