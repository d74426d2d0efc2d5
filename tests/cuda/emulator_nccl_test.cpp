// The emulated NCCL: right programs give right values whatever the order of streams, wrong ones are told what is wrong.
#include <gtest/gtest.h>
#include <nccl.h>

#include <atomic>
#include <functional>
#include <numeric>
#include <thread>
#include <vector>

#include "runtime/core/idx.h"
#include "tests/cuda/emulator_testing.h"
#include "tests/support/cuda_emulator/emulator_nccl.h"

namespace emox::test {
namespace {

/// A rank: its device, stream and communicator, and 64 numbers on the device.
struct Rank {
  int rank = 0, size = 0;
  cudaStream_t stream = nullptr;
  ncclComm_t comm = nullptr;
  std::int64_t* x = nullptr;
  std::int64_t* host = nullptr;  // pinned

  void set(std::int64_t first) {  // x[i] = first + i
    std::iota(host, host + 64, first);
    cudaMemcpyAsync(x, host, 64 * sizeof *x, cudaMemcpyHostToDevice, stream);
    cudaStreamSynchronize(stream);
  }
  std::vector<std::int64_t> get() {
    cudaMemcpyAsync(host, x, 64 * sizeof *x, cudaMemcpyDeviceToHost, stream);
    cudaStreamSynchronize(stream);
    return {host, host + 64};
  }
  void settle() const {
    ncclResult_t state = ncclInProgress;
    while (state == ncclInProgress && ncclCommGetAsyncError(comm, &state) == ncclSuccess) std::this_thread::yield();
  }
};

class EmulatedNccl : public EmulatorTest {
 protected:
  void SetUp() override {
    emu::options().devices = 4;
    emu::nccl_options().wait_s = 0.3;
  }
  void TearDown() override {
    emu::reset_nccl();
    EmulatorTest::TearDown();
  }

  /// `body` on n ranks, each a thread with a device of its own.
  static void run(int n, const std::function<void(Rank&)>& body, bool blocking = true) {
    ncclUniqueId id;
    ASSERT_EQ(ncclGetUniqueId(&id), ncclSuccess);
    std::vector<std::thread> threads;
    for (int r = 0; r < n; ++r)
      threads.emplace_back([&, r] {
        Rank me{.rank = r, .size = n};
        cudaSetDevice(emu::nccl_options().shared_devices ? 0 : r);
        cudaStreamCreateWithFlags(&me.stream, cudaStreamNonBlocking);
        cudaMalloc(reinterpret_cast<void**>(&me.x), 64 * sizeof *me.x);
        cudaMallocHost(reinterpret_cast<void**>(&me.host), 64 * sizeof *me.x);
        ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
        config.blocking = blocking ? 1 : 0;
        ncclCommInitRankConfig(&me.comm, n, id, r, &config);
        if (!blocking) me.settle();
        body(me);
      });
    for (std::thread& t : threads) t.join();
  }
  /// Two ranks; what goes wrong is found when they wait, and says `text`.
  static void expect_wrong(const std::string& text, const std::function<void(Rank&)>& calls) {
    run(2, [&](Rank& me) {
      calls(me);
      cudaStreamSynchronize(me.stream);
    });
    EXPECT_NE(emu::last_report().find(text), std::string::npos) << emu::last_report();
  }
};

std::vector<std::int64_t> counting(std::int64_t first, std::int64_t factor = 1) {
  std::vector<std::int64_t> v(64);
  for (std::size_t i = 0; i < v.size(); ++i) v[i] = factor * static_cast<std::int64_t>(i) + first;
  return v;
}

TEST_F(EmulatedNccl, CollectivesOfFourRanks) {
  for (const bool blocking : {true, false})
    for (std::uint64_t seed = 1; seed <= 5; ++seed) {
      emu::options().seed = seed;
      emu::reset();
      run(
          4,
          [](Rank& me) {
            const auto type = ncclInt64;
            me.set(100 * me.rank);
            ncclAllReduce(me.x, me.x, 64, type, ncclSum, me.comm, me.stream);
            me.settle();
            EXPECT_EQ(me.get(), counting(600, 4));
            ncclAllReduce(me.x, me.x, 64, type, ncclMax, me.comm, me.stream);
            me.settle();
            me.set(100 * me.rank);
            ncclBroadcast(me.x, me.x, 64, type, 2, me.comm, me.stream);
            me.settle();
            EXPECT_EQ(me.get(), counting(200));
            me.set(100 * me.rank);
            ncclReduce(me.x, me.x, 64, type, ncclMax, 1, me.comm, me.stream);
            me.settle();
            EXPECT_EQ(me.get(), counting(me.rank == 1 ? 300 : 100 * me.rank));
            me.set(100 * me.rank);
            ncclAllGather(me.x + 16 * me.rank, me.x, 16, type, me.comm, me.stream);
            me.settle();
            for (int i = 0; i < 64; ++i) EXPECT_EQ(me.get()[idx(i)], 100 * (i / 16) + i);
            me.set(100 * me.rank);
            ncclReduceScatter(me.x, me.x + 16 * me.rank, 16, type, ncclSum, me.comm, me.stream);
            me.settle();
            for (int i = 16 * me.rank; i < 16 * me.rank + 16; ++i) EXPECT_EQ(me.get()[idx(i)], 600 + 4 * i);
            EXPECT_EQ(ncclCommDestroy(me.comm), ncclSuccess);
          },
          blocking);
      EXPECT_EQ(emu::last_report(), "");
    }
}

// Each rank sends r + 1 numbers to every other and to itself, in one group; what is not waited for by an event comes
// late for some seeds.
TEST_F(EmulatedNccl, MessagesOfAGroup) {
  int late = 0;
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    emu::options().seed = seed;
    emu::reset();
    std::atomic<int> missed = 0;
    run(3, [&](Rank& me) {
      me.set(100 * me.rank);
      ncclGroupStart();
      for (int r = 0; r < 3; ++r) {
        ncclSend(me.x, idx(me.rank + 1), ncclInt64, r, me.comm, me.stream);
        ncclRecv(me.x + 8 + 8 * r, idx(r + 1), ncclInt64, r, me.comm, me.stream);
      }
      ncclGroupEnd();
      if (!emu::under_tsan()) {  // which would see the race
        cudaStream_t other;
        cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);
        cudaMemcpyAsync(me.host, me.x, 64 * sizeof *me.x, cudaMemcpyDeviceToHost, other);  // no event
        cudaStreamSynchronize(other);
        if (me.host[8] != 0) ++missed;
      }
      const auto x = me.get();
      for (int r = 0; r < 3; ++r)
        for (int i = 0; i <= r; ++i) EXPECT_EQ(x[idx(8 + 8 * r + i)], 100 * r + i);
    });
    late += missed > 0 ? 1 : 0;
    EXPECT_EQ(emu::last_report(), "");
  }
  if (!emu::under_tsan()) {
    EXPECT_GT(late, 0);
  }
  const emu::NcclCounters n = emu::nccl_counters(1);
  EXPECT_EQ(n.messages, 12 * 3);
  EXPECT_EQ(n.bytes, 12 * 3 * 2 * 8);
}

TEST_F(EmulatedNccl, PartsOfACommunicator) {
  run(4, [](Rank& me) {
    ncclComm_t part = nullptr;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ASSERT_EQ(ncclCommSplit(me.comm, me.rank % 2, -me.rank, &part, &config), ncclSuccess);
    int size = 0, rank = -1, device = -1;
    ncclCommCount(part, &size);
    ncclCommUserRank(part, &rank);
    ncclCommCuDevice(part, &device);
    EXPECT_EQ(size, 2);
    EXPECT_EQ(rank, me.rank < 2 ? 1 : 0);  // by falling rank
    EXPECT_EQ(device, me.rank);
    me.set(me.rank);
    ncclAllReduce(me.x, me.x, 64, ncclInt64, ncclSum, part, me.stream);
    EXPECT_EQ(me.get(), counting(me.rank % 2 == 0 ? 2 : 4, 2));
  });
  EXPECT_EQ(emu::last_report(), "");
}

TEST_F(EmulatedNccl, CallsThatDoNotFitTogether) {
  const auto reduce = [](Rank& me, std::size_t n, ncclDataType_t type, ncclRedOp_t op) {
    ncclAllReduce(me.x, me.x, n, type, op, me.comm, me.stream);
  };
  expect_wrong("where others call", [&](Rank& me) { reduce(me, me.rank == 0 ? 4 : 5, ncclInt64, ncclSum); });
  emu::reset();
  expect_wrong("where others call", [&](Rank& me) { reduce(me, 4, me.rank == 0 ? ncclInt64 : ncclFloat64, ncclSum); });
  emu::reset();
  expect_wrong("where others call", [&](Rank& me) { reduce(me, 4, ncclInt64, me.rank == 0 ? ncclSum : ncclMax); });
  emu::reset();
  expect_wrong("where others call", [](Rank& me) {
    ncclBroadcast(me.x, me.x, 4, ncclInt64, me.rank, me.comm, me.stream);  // two roots
  });
  emu::reset();
  expect_wrong("where others call", [](Rank& me) {
    if (me.rank == 0)
      ncclSend(me.x, 4, ncclInt64, 1, me.comm, me.stream);
    else
      ncclRecv(me.x, 5, ncclInt64, 0, me.comm, me.stream);
  });
}

TEST_F(EmulatedNccl, WaitsThatCannotEnd) {
  // A rank that does not come.
  expect_wrong("all_reduce of 4 elements of type 4, sum (without rank 1, who did not call it;)", [](Rank& me) {
    if (me.rank == 0) ncclAllReduce(me.x, me.x, 4, ncclInt64, ncclSum, me.comm, me.stream);
  });
  emu::reset();
  // Each sends first, outside of a group: both wait for a receiver who comes later.
  expect_wrong("message of 4 elements of type 4 from rank 0 to rank 1 (without", [](Rank& me) {
    ncclSend(me.x, 4, ncclInt64, 1 - me.rank, me.comm, me.stream);
    ncclRecv(me.x + 8, 4, ncclInt64, 1 - me.rank, me.comm, me.stream);
  });
  emu::reset();
  // The same calls of two communicators in another order, on one stream.
  expect_wrong("calls wait for each other", [](Rank& me) {
    ncclComm_t part = nullptr;
    ncclCommSplit(me.comm, 0, me.rank, &part, nullptr);
    for (ncclComm_t c : {me.rank == 0 ? me.comm : part, me.rank == 0 ? part : me.comm})
      ncclAllReduce(me.x, me.x, 4, ncclInt64, ncclSum, c, me.stream);
  });
  emu::reset();
  expect_wrong("waits for a device inside of an NCCL group", [](Rank& me) {
    ncclGroupStart();
    ncclSend(me.x, 4, ncclInt64, 1 - me.rank, me.comm, me.stream);
    cudaStreamSynchronize(me.stream);
    ncclGroupEnd();
  });
}

TEST_F(EmulatedNccl, MemoryThatIsNotTheirs) {
  expect_wrong("is not device memory", [](Rank& me) {
    EXPECT_EQ(ncclAllReduce(me.host, me.x, 4, ncclInt64, ncclSum, me.comm, me.stream), ncclInvalidArgument);
  });
  expect_wrong("reaches out of its block", [](Rank& me) {
    EXPECT_EQ(ncclAllReduce(me.x, me.x, 65, ncclInt64, ncclSum, me.comm, me.stream), ncclInvalidArgument);
  });
  expect_wrong("overlap, but not in place", [](Rank& me) {
    EXPECT_EQ(ncclAllGather(me.x + 1, me.x, 4, ncclInt64, me.comm, me.stream), ncclInvalidArgument);
  });
  std::int64_t* theirs[2] = {};
  expect_wrong("lies on another device", [&](Rank& me) {
    theirs[me.rank] = me.x;
    ncclAllReduce(me.x, me.x, 1, ncclInt64, ncclSum, me.comm, me.stream);
    cudaStreamSynchronize(me.stream);  // both have written their place
    EXPECT_EQ(ncclBroadcast(theirs[1 - me.rank], theirs[1 - me.rank], 4, ncclInt64, 0, me.comm, me.stream),
              ncclInvalidArgument);
  });
}

TEST_F(EmulatedNccl, CommunicatorsThatAreNot) {
  expect_wrong("does not exist, or was ended", [](Rank& me) {
    EXPECT_EQ(ncclCommDestroy(me.comm), ncclSuccess);
    EXPECT_EQ(ncclAllReduce(me.x, me.x, 4, ncclInt64, ncclSum, me.comm, me.stream), ncclInvalidArgument);
  });
  emu::nccl_options().shared_devices = true;  // of the threads, not of NCCL's check
  run(1, [](Rank& me) {
    ncclUniqueId id;
    ncclGetUniqueId(&id);
    emu::nccl_options().shared_devices = false;
    std::vector<std::thread> two;
    for (int r = 0; r < 2; ++r)
      two.emplace_back([&, r] {
        ncclComm_t comm = nullptr;
        EXPECT_EQ(ncclCommInitRankConfig(&comm, 2, id, r, nullptr), ncclInvalidUsage);
      });
    for (std::thread& t : two) t.join();
    EXPECT_EQ(ncclAllReduce(me.x, me.x, 4, ncclInt64, ncclSum, me.comm, me.stream), ncclSuccess);
    EXPECT_EQ(ncclCommDestroy(me.comm), ncclInvalidUsage);  // its call is under way
    cudaStreamSynchronize(me.stream);
  });
  EXPECT_NE(emu::last_report().find("is ended while its calls wait"), std::string::npos) << emu::last_report();
}

// A rank fails at its second call: it says so, others learn of it once it has aborted, and nobody waits any more.
TEST_F(EmulatedNccl, FailuresAndAborts) {
  emu::nccl_options().fail_rank = 1, emu::nccl_options().fail_call = 2;
  emu::nccl_options().fail_with = ncclSystemError;
  run(3, [](Rank& me) {
    for (int i = 0; i < 2; ++i) ncclAllReduce(me.x, me.x, 4, ncclInt64, ncclSum, me.comm, me.stream);
    ncclResult_t state = ncclSuccess;
    const auto look = [&] { ncclCommGetAsyncError(me.comm, &state); };
    look();
    if (me.rank == 1) {
      EXPECT_EQ(state, ncclSystemError);
    } else {
      while (state == ncclSuccess) look();
      EXPECT_EQ(state, ncclRemoteError);
    }
    EXPECT_EQ(ncclCommAbort(me.comm), ncclSuccess);
    EXPECT_EQ(cudaStreamSynchronize(me.stream), cudaSuccess);
  });
  emu::reset_nccl();
  emu::nccl_options().init = ncclSystemError;
  run(2, [](Rank& me) {
    ncclResult_t state = ncclSuccess;
    ncclCommGetAsyncError(me.comm, &state);
    EXPECT_EQ(state, ncclSystemError);
  });
}

}  // namespace
}  // namespace emox::test
