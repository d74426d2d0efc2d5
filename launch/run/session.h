// What every command that runs a model sets up first: communicator, threads, log, context.
#pragma once

#include <memory>
#include <string>

#include "launch/config/recipe.h"
#include "launch/run/device_choice.h"
#include "parallel/comm/communicator.h"
#include "parallel/comm/device_communicator.h"
#include "runtime/core/accelerator.h"
#include "runtime/core/context.h"
#include "runtime/telemetry/log.h"
#include "runtime/telemetry/spans.h"

namespace emox {

/// What of a recipe a session needs.
struct SessionSetup {
  ParallelConfig parallel = {};
  std::int64_t threads = 0;  ///< train.threads; 0: OMP_NUM_THREADS, else default_threads()
  DeviceKind device = DeviceKind::Auto;
  Precision precision = Precision::Auto;
};
SessionSetup setup_of(const Recipe& recipe);

class Session {
 public:
  /// Uses the ranks that were started, and the CPU.
  explicit Session(const SessionSetup& setup);
  /// On a communicator that somebody else made (ranks as threads of one process).
  Session(std::unique_ptr<Communicator> comm, int threads);

  Communicator& comm() { return *comm_; }
  Context& ctx() { return ctx_; }
  Log& log() { return log_; }
  Telemetry& telemetry() { return telemetry_; }
  /// Computes there from now on; before anything is made. UsageError when there is no such device here, or it has no
  /// such precision; what to do is said. Collective.
  void use_device(const SessionSetup& setup);
  const DeviceChoice& choice() const { return choice_; }
  bool root() const { return comm_->rank() == 0; }

 private:
  void start(int threads);
  void warn_if_bound(int threads);
  void connect_devices(CommunicatorKind kind);
  std::unique_ptr<DeviceQueue> queue_;  ///< outlives all tensors of the session
  std::unique_ptr<TransferQueues> transfers_;
  std::unique_ptr<Communicator> comm_;
  Log log_;
  Telemetry telemetry_;
  Context ctx_;
  DeviceChoice choice_;
};

/// Threads of a rank when the recipe leaves the choice (0) and so does OMP_NUM_THREADS: as many as the cores that it
/// may use (of which SLURM_CPUS_PER_TASK says how many where it is set), or its share of them where other ranks of its
/// node may use the same ones. Collective.
int default_threads(Communicator& comm);
/// The same for ranks that do not run, on nodes like this one.
int default_threads(int ranks_on_node);
/// Throws UsageError if the ops were compiled for instructions that this processor lacks.
void check_processor();
/// "NVIDIA H200 (sm_90)", or the processor.
std::string device_name(const Context& ctx);
/// "model name" of /proc/cpuinfo.
std::string processor_name();

}  // namespace emox
