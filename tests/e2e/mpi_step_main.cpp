// A training step with experts sharded over all ranks, of which the last one goes wrong before a given collective. Run
// by ctest under mpirun; the job must end by itself, non-zero, and say who and where:
//   emox_mpi_step throw|sleep|stop|kill NAME NUMBER [two_level]     e.g. stop all_to_all_v_finish 11
// Linked with a device (the emulated one), the ranks compute there, and their rows are staged through host memory.
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <thread>

#include "launch/config/arguments.h"
#include "launch/run/failure.h"
#include "launch/run/on_ranks.h"
#include "parallel/comm/mpi_world.h"
#include "runtime/core/error.h"
#include "tests/support/interrupted.h"

namespace emox {
namespace {

void go_wrong(const std::string& how, std::string_view where) {
  std::fprintf(stderr, "going wrong before %s\n", std::string(where).c_str());
  if (how == "sleep") std::this_thread::sleep_for(std::chrono::seconds(60));
  if (how == "stop") ::raise(SIGSTOP);
  if (how == "kill") ::kill(::getpid(), SIGKILL);
  fail<IoError>("the disk is full");
}

int run(const std::string& how, const std::string& name, int number, DispatchKind dispatch) {
  const Recipe recipe = test::step_recipe(MpiWorld::launched_ranks(), dispatch);
  const bool device = EMOX_STEP_ON_DEVICE;  // emulated ones
  SessionSetup setup{.parallel = recipe.parallel,
                     .threads = 1,
                     .device = device ? DeviceKind::Cuda : DeviceKind::Cpu,
                     .precision = Precision::F32};
  if (device) setup.parallel.communicator = CommunicatorKind::Staged;
  setup.parallel.watchdog_s = 1;
  return on_ranks(setup, [&](Session& session) {
    const int last = session.comm().size() - 1;
    std::int64_t step = 0;
    int count = 0;
    test::interrupt(session.comm(), [&](std::string_view n) {
      if (step == 2 && session.comm().rank() == last && n == name && ++count == number) go_wrong(how, n);
    });
    test::StepRank rank(session.comm(), recipe, std::nullopt, ShardedBuffer::Reduce::AtEnd, session.ctx());
    while (++step <= 3) {
      rank.step(step);
      if (session.root()) std::fprintf(stderr, "step %d is done\n", static_cast<int>(step));
    }
    return static_cast<int>(kDone);
  });
}

}  // namespace
}  // namespace emox

int main(int argc, char** argv) {
  if (argc < 4) return 0;  // expect_failure.sh then says that nothing failed
  const bool two_level = argc > 4 && std::string(argv[4]) == "two_level";
  return emox::guarded([&] {
    return emox::run(argv[1], argv[2], std::stoi(argv[3]),
                     two_level ? emox::DispatchKind::TwoLevel : emox::DispatchKind::Flat);
  });
}
