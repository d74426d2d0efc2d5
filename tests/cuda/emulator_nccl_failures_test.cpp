// What goes wrong between devices is told, not waited for: the failures are those of the emulated NCCL.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "parallel/comm/nccl/nccl_transport.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "tests/support/cuda_emulator/emulator.h"
#include "tests/support/cuda_emulator/emulator_nccl.h"
#include "tests/support/device.h"
#include "tests/support/ranks.h"

namespace emox::test {
namespace {

std::string error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& e) {
    return e.message();
  }
  return "no error";
}

void expect_in(const std::string& text, const std::vector<std::string>& parts) {
  for (const std::string& p : parts) EXPECT_NE(text.find(p), std::string::npos) << p << " in: " << text;
}

std::unique_ptr<DeviceTransport> nccl(Communicator& host, DeviceQueue& queue) {
  return make_nccl_transport(host, queue);
}

class NcclFailures : public ::testing::Test {
 protected:
  NcclFailures() { emu::options().devices = 4; }
  ~NcclFailures() override {
    emu::reset_nccl();
    emu::options() = before_;
    emu::reset();
  }

 private:
  const emu::Options before_ = emu::options();
};

TEST_F(NcclFailures, NoCommunicatorCanBeMade) {
  emu::nccl_options().init = ncclSystemError;
  std::string text =
      error_of([] { run_ranks(2, [](Communicator& host) { const DeviceRank rank(host, host.rank(), nccl); }); });
  expect_in(text,
            {" of 2: making a communicator failed", "unhandled system error", "NCCL_SOCKET_IFNAME", "NCCL_DEBUG=INFO"});
  emu::reset_nccl();
  // Two ranks, one device.
  text = error_of([] { run_ranks(2, [](Communicator& host) { const DeviceRank rank(host, 0, nccl); }); });
  expect_in(text, {"Duplicate GPU", "parallel.communicator = staged"});
}

// A rank's third call fails. It says so; the others find out where they wait, and destructors wait for nobody.
TEST_F(NcclFailures, AFailedCallIsFoundByThoseWhoWait) {
  emu::nccl_options().fail_rank = 1, emu::nccl_options().fail_call = 3;
  std::vector<std::string> texts(3);
  error_of([&] {
    run_ranks(3, [&](Communicator& host) {
      DeviceRank rank(host, host.rank(), nccl);
      const Tensor x(rank.ctx().device, DType::F32, {100});
      texts[idx(host.rank())] = error_of([&] {
        for (int i = 0; i < 5; ++i) rank.comm().all_reduce(x);
        rank.comm().wait_for(*rank.ctx().queue->record());
      });
      fail("{}", texts[idx(host.rank())]);
    });
  });
  expect_in(texts[1], {"NCCL on rank 1 of 3", "all_reduce", "injected failure of rank 1"});
  for (const int r : {0, 2}) expect_in(texts[idx(r)], {"another rank has gone"});
}

// Ranks that wait for each other on the host, where only the watchdog can see what the device does: it asks the
// communicators, and ends the job.
TEST_F(NcclFailures, TheWatchdogAsks) {
  emu::nccl_options().fail_rank = 1, emu::nccl_options().fail_call = 2;
  emu::nccl_options().in_progress = false;  // a call that is looked at would tell its rank itself
  emu::nccl_options().wait_s = 1;           // for the memory that is given back at the end
  ThreadWorld world(2, {.watchdog_s = 20});
  const std::string text = error_of([&] {
    run_ranks(world, [&](Communicator& host) {
      DeviceRank rank(host, host.rank(), nccl);
      const auto one = host.split(0, host.rank()), other = host.split(0, host.rank());
      const Tensor x(rank.ctx().device, DType::F32, {100});
      for (int i = 0; i < 2; ++i) rank.comm().all_reduce(x);  // the first one connects them
      (host.rank() == 0 ? one : other)->barrier();
    });
  });
  // Of the rank itself, or of its peer once the rank has ended its communicator: whose watchdog looks first.
  const bool own = text.find("injected failure of rank 1") != std::string::npos;
  expect_in(text, {"watchdog: ", own ? "NCCL on rank 1 of 2" : "NCCL on rank 0 of 2: all_reduce failed",
                   own ? "" : "another rank has gone"});
}

}  // namespace
}  // namespace emox::test
