// What the NCCL transport asks of NCCL: how many calls, in which order, by which thread; and how it ends. What the
// calls compute is in transport_test.cpp.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "parallel/comm/nccl/nccl_errors.h"
#include "parallel/comm/nccl/nccl_transport.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/ops/basic.h"
#include "tests/support/cuda_emulator/emulator.h"
#include "tests/support/cuda_emulator/emulator_nccl.h"
#include "tests/support/device.h"
#include "tests/support/ranks.h"
#include "tests/support/support.h"

namespace emox::test {
namespace {

using std::chrono::milliseconds;

MakeDeviceTransport nccl(const NcclOptions& options = {}) {
  return [options](Communicator& host, DeviceQueue& queue) { return make_nccl_transport(host, queue, options); };
}

class NcclCalls : public ::testing::Test {
 protected:
  NcclCalls() { emu::options().devices = 4; }
  ~NcclCalls() override {
    emu::reset_nccl();
    emu::options() = before_;
    emu::reset();
  }
  static void run(int ranks, const NcclOptions& options, const std::function<void(DeviceRank&)>& body) {
    run_ranks(ranks, [&](Communicator& host) {
      DeviceRank rank(host, host.rank(), nccl(options));
      body(rank);
    });
  }
  static std::string error_of(const std::function<void()>& body) {
    try {
      body();
    } catch (const Error& e) {
      return e.message();
    }
    return "no error";
  }
  static void expect_in(const std::string& text, const std::vector<std::string>& parts) {
    for (const std::string& p : parts) EXPECT_NE(text.find(p), std::string::npos) << p << " in: " << text;
  }

 private:
  const emu::Options before_ = emu::options();
};

/// What the rank's calls in `body` were to NCCL.
emu::NcclCounters counted(DeviceRank& rank, const std::function<void()>& body) {
  const int device = rank.ctx().device.index;
  const emu::NcclCounters before = emu::nccl_counters(device);
  body();
  emu::NcclCounters n = emu::nccl_counters(device);
  n.groups -= before.groups, n.messages -= before.messages, n.bytes -= before.bytes;
  n.collectives -= before.collectives;
  return n;
}

// Equal blocks have one call; other ranges one each, 256 in a group; nothing exceeds the limit of bytes.
TEST_F(NcclCalls, RangesAreOneCallOrFew) {
  run(2, {.most_bytes = 4096}, [](DeviceRank& rank) {
    Communicator& comm = rank.comm();
    const Tensor x(rank.ctx().device, DType::F32, {2000, 4});  // rows of 16 bytes
    const auto both = [&](const std::vector<RowRange>& ranges, std::int64_t groups, std::int64_t calls) {
      const auto sums = counted(rank, [&] { comm.reduce_scatter(x, ranges); });
      EXPECT_EQ(sums.groups, groups);
      EXPECT_EQ(sums.collectives, calls);
      const auto gathers = counted(rank, [&] { comm.all_gather_v(x, ranges); });
      EXPECT_EQ(gathers.groups, groups);
      EXPECT_EQ(gathers.collectives, calls);
    };
    both({{0, 256, 0}, {256, 512, 1}}, 1, 1);
    both({{7, 107, 0}, {107, 207, 1}}, 1, 1);
    both({{0, 257, 0}, {257, 514, 1}}, 1, 4);  // beyond 4096 bytes: 256 rows and one, twice
    both({{0, 100, 1}, {100, 200, 0}}, 1, 2);  // not in the ranks' order
    both({{0, 100, 0}, {100, 201, 1}}, 1, 2);
    both({{0, 100, 0}, {101, 201, 1}}, 1, 2);
    both({{0, 100, 0}}, 1, 1);
    both({}, 0, 0);
    std::vector<RowRange> many;
    for (std::int64_t i = 0; i < 600; ++i) many.push_back({3 * i, 3 * i + 2, static_cast<int>(i % 2)});
    both(many, 3, 600);

    const TensorView all = x;
    const auto all_gather = [&](std::int64_t rows) {
      return counted(rank, [&] { comm.all_gather(all.rows(0, 2 * rows), all.rows(1000, 1000 + rows)); });
    };
    EXPECT_EQ(all_gather(256).collectives, 1);
    EXPECT_EQ(all_gather(257).collectives, 4);
    EXPECT_EQ(counted(rank, [&] { comm.all_reduce(x); }).collectives, 8);  // 32000 bytes
    EXPECT_EQ(counted(rank, [&] { comm.broadcast(x, 1); }).collectives, 8);
  });
}

// Rows and gates are one group; a pair without rows has no message, and where nobody sends there is no call.
TEST_F(NcclCalls, AnExchangeIsOneGroup) {
  run(3, {}, [](DeviceRank& rank) {
    Communicator& comm = rank.comm();
    const int r = comm.rank();
    const Device device = rank.ctx().device;
    // To the next rank r + 1 rows, to itself one.
    const auto next = idx((r + 1) % 3), last = idx((r + 2) % 3), self = idx(r);
    std::vector<std::int64_t> send(3, 0), recv(3, 0);
    send[next] = r + 1, recv[last] = static_cast<std::int64_t>(last) + 1;
    send[self] = recv[self] = 1;
    const std::int64_t in = r + 2, out = static_cast<std::int64_t>(last) + 2;
    const Tensor rows_in(device, DType::BF16, {in, 8}), rows_out(device, DType::BF16, {out, 8});
    const Tensor gates_in(device, DType::F32, {in}), gates_out(device, DType::F32, {out});
    const std::vector<RowTransfer> both{{rows_out, recv, rows_in, send}, {gates_out, recv, gates_in, send}};
    const auto n = counted(rank, [&] {
      comm.all_to_all_v_start(both);
      comm.all_to_all_v_finish();
    });
    EXPECT_EQ(n.groups, 1);
    EXPECT_EQ(n.messages, 4);
    EXPECT_EQ(n.bytes, in * (8 * 2 + 4));
    const std::vector<std::int64_t> none(3, 0);
    const TensorView empty_in = rows_in.view().rows(0, 0), empty_out = rows_out.view().rows(0, 0);
    EXPECT_EQ(counted(rank, [&] { comm.all_to_all_v(empty_out, none, empty_in, none); }).groups, 0);
  });
}

// Two communicators of a rank have exchanges open at once, and their buffers are used again and again, with events
// alone between the queues.
TEST_F(NcclCalls, ExchangesInFlight) {
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    emu::options().seed = seed;
    emu::reset();
    run(4, {}, [](DeviceRank& rank) {
      Context& ctx = rank.ctx();
      const auto pair = rank.comm().split(rank.comm().rank() / 2, rank.comm().rank());
      Communicator* const comms[] = {&rank.comm(), pair.get()};
      std::vector<Tensor> in, out;
      std::vector<std::vector<std::int64_t>> ones;
      for (Communicator* c : comms) {
        in.emplace_back(ctx.device, DType::I64, Shape{c->size(), 50});
        out.emplace_back(ctx.device, DType::I64, Shape{c->size(), 50});
        ones.emplace_back(idx(c->size()), 1);
      }
      const auto value = [](int round, int from, std::int64_t i) { return round * 1000000 + from * 1000 + i; };
      for (int round = 0; round < 4; ++round) {
        for (int k = 0; k < 2; ++k) {
          Communicator& c = *comms[k];
          std::vector<std::int64_t> mine(idx(c.size() * 50));
          for (std::size_t i = 0; i < mine.size(); ++i) mine[i] = value(round, c.rank(), static_cast<std::int64_t>(i));
          ctx.queue->follow(*c.queue());  // the last exchange has read them
          ops::copy_from_host(ctx, in[idx(k)], mine.data());
          c.queue()->follow(*ctx.queue);
          c.all_to_all_v_start(out[idx(k)], ones[idx(k)], in[idx(k)], ones[idx(k)]);
        }
        for (int k = 0; k < 2; ++k) {
          Communicator& c = *comms[k];
          c.all_to_all_v_finish();
          ctx.queue->follow(*c.queue());
          const auto got = values_of<std::int64_t>(out[idx(k)]);
          for (std::size_t i = 0; i < got.size(); ++i)
            ASSERT_EQ(got[i],
                      value(round, static_cast<int>(i / 50), c.rank() * 50 + static_cast<std::int64_t>(i % 50)));
        }
      }
    });
  }
}

// NCCL before 2.26 does not order the calls of several communicators: a rank's run one after another. Rank 0 shares one
// with rank 1, which comes late, and then one with rank 2.
TEST_F(NcclCalls, OldVersionsHaveOneCallAtATime) {
  for (const int version : {22500, 22600}) {
    emu::nccl_options().version = version;
    run_ranks(3, [&](Communicator& host) {
      const int r = host.rank();
      DeviceRank rank(host, r, nccl());
      const auto first = rank.comm().split(r == 2 ? 1 : 0, r), second = rank.comm().split(r == 1 ? 1 : 0, r);
      const Tensor x(rank.ctx().device, DType::F32, {10}), y(rank.ctx().device, DType::F32, {10});
      const auto start = [](Communicator& comm, const Tensor& t) {
        const std::vector<RowRange> ranges{{0, 5, 0}, {5, 10, comm.size() - 1}};
        comm.reduce_scatter_start(t, ranges);
      };
      start(*first, x), start(*second, y);  // connects them
      host.barrier();
      if (r == 0) start(*first, x);
      if (r != 1) start(*second, y);
      const auto done = second->queue()->record();
      if (r == 0) {
        for (int i = 0; i < 200 && !done->passed(); ++i) std::this_thread::sleep_for(milliseconds(1));
        EXPECT_EQ(done->passed(), version >= 22600) << version;
      }
      host.barrier();
      if (r == 1) start(*first, x);
      rank.comm().wait_for(*done);
      first->settle(), second->settle();
    });
  }
}

// A communicator's work lies behind another's, which waits for a rank that has gone. Both are ended, together: ending
// one alone would wait for the other.
TEST_F(NcclCalls, CommunicatorsEndTogether) {
  emu::nccl_options().wait_s = 2;
  std::string text;
  const auto body = [&](Communicator& host) {
    DeviceRank rank(host, host.rank(), nccl());
    const auto part = rank.comm().split(0, host.rank());
    const Tensor x(rank.ctx().device, DType::F32, {10});
    rank.comm().all_reduce(x), part->all_reduce(x);  // connects them
    if (host.rank() == 0) part->all_reduce(x), rank.comm().all_reduce(x);
    host.barrier();
    if (host.rank() == 1) fail("rank 1 gives up");
    text = error_of([&] { rank.comm().wait_for(*rank.ctx().queue->record()); });
    EXPECT_THROW(rank.comm().all_reduce(x), CommError);
    rank.ctx().queue->synchronize();
    fail("{}", text);
  };
  EXPECT_THROW(run_ranks(2, body), Error);
  expect_in(text, {"NCCL on rank 0 of 2: all_reduce failed (call", "another rank has gone"});
  EXPECT_EQ(emu::last_report().find("wait for each other"), std::string::npos) << emu::last_report();
}

// A group in which a call fails is ended all the same.
TEST_F(NcclCalls, AFailedGroupIsNotLeftOpen) {
  emu::nccl_options().fail_rank = 1, emu::nccl_options().fail_call = 2;
  std::string text;
  const auto body = [&](DeviceRank& rank) {
    const std::vector<std::int64_t> ones{1, 1};
    const Tensor in(rank.ctx().device, DType::F32, {2, 3}), out(rank.ctx().device, DType::F32, {2, 3});
    const std::string own = error_of([&] {
      for (int i = 0; i < 3; ++i) rank.comm().all_to_all_v(out, ones, in, ones);
      rank.comm().wait_for(*rank.comm().queue()->record());
    });
    if (rank.comm().rank() == 1) text = own;
    fail("{}", own);
  };
  EXPECT_THROW(run(2, {}, body), Error);
  expect_in(text, {"NCCL on rank 1 of 2: all_to_all_v failed", "injected failure of rank 1"});
  EXPECT_EQ(emu::last_report().find("group"), std::string::npos) << emu::last_report();
}

// Making a communicator has a limit, for the ranks' own and for a part, and leaves nothing under way.
TEST_F(NcclCalls, MakingACommunicatorHasALimit) {
  for (const bool part : {false, true}) {
    emu::reset_nccl();
    emu::nccl_options().stuck = !part;
    const std::string text = error_of([&] {
      run(2, {.init_s = 0.2}, [&](DeviceRank& rank) {
        rank.comm().barrier();
        if (rank.comm().rank() == 0) emu::nccl_options().stuck = true;
        rank.comm().barrier();
        const auto never = rank.comm().split(0, 0);
      });
    });
    expect_in(text, {"NCCL did not connect rank ", " of 2 within 0.2 s", "NCCL_DEBUG=INFO"});
  }
}

// The first exchange between ranks connects them, on the host; a rank that does not come is the watchdog's to tell.
TEST_F(NcclCalls, ARankThatNeverComesToTheFirstExchange) {
  ThreadWorld world(2, {.watchdog_s = 0.5});
  std::string text;
  const auto body = [&](Communicator& host) {
    DeviceRank rank(host, host.rank(), nccl());
    const std::vector<std::int64_t> ones{1, 1};
    const Tensor in(rank.ctx().device, DType::F32, {2, 3}), out(rank.ctx().device, DType::F32, {2, 3});
    if (host.rank() == 0) rank.comm().all_to_all_v(out, ones, in, ones);
    std::this_thread::sleep_for(milliseconds(1500));
    text = error_of([&] { host.barrier(); });
    fail("{}", text);
  };
  EXPECT_THROW(run_ranks(world, body), Error);
  expect_in(text, {"watchdog: connect #", "rank 1 has not arrived"});
}

// The watchdog's thread asks while the rank makes calls and parts: NCCL itself is not made for two threads. With
// ThreadSanitizer the emulated NCCL says where they meet.
TEST_F(NcclCalls, TroubleIsAskedForByAnotherThread) {
  run_ranks(2, [](Communicator& host) {
    const auto queue = cuda::accelerator()->open_queue(host.rank());
    const auto transport = make_nccl_transport(host, *queue);
    std::atomic<bool> done = false;
    std::thread watchdog([&] {
      while (!done) {
        EXPECT_EQ(transport->trouble(), "");
        std::this_thread::yield();
      }
    });
    const Tensor x({DeviceType::Cuda, host.rank()}, DType::I64, {10});
    for (int i = 0; i < 50; ++i) {
      transport->all_reduce(x, ReduceOp::Sum);
      if (i % 10 != 0) continue;
      const auto part = host.split(0, 0);
      transport->split(0, 0, *part, *queue)->all_reduce(x, ReduceOp::Sum);
    }
    queue->synchronize();
    done = true;
    watchdog.join();
  });
}

TEST(NcclCure, SaysWhatToSet) {
  const auto expect = [](ncclResult_t code, const char* said, const char* cure) {
    const std::string text = nccl_cure(code, said);
    EXPECT_NE(text.find(cure), std::string::npos) << said << ": " << text;
  };
  // As NCCL 2.28 says it.
  expect(ncclInvalidUsage, "Bootstrap : no socket interface found", "NCCL_SOCKET_IFNAME");
  expect(ncclInvalidUsage, "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000", "one rank a GPU");
  expect(ncclInvalidUsage, "Mismatched NCCL version detected : rank 0 version 22809 rank 1 version 22603", "same NCCL");
  expect(ncclSystemError, "Call to ibv_modify_qp failed with 110 Connection timed out, on dev mlx5_0:1", "NCCL_IB_HCA");
  expect(ncclSystemError, "Error: failed to create shared memory file /dev/shm/nccl-XX, error No space left on device",
         "/dev/shm");
  expect(ncclUnhandledCudaError, "Cuda failure 2 'out of memory'", "train.micro_batch_sequences");
  expect(ncclUnhandledCudaError, "Cuda failure 'CUDA driver version is insufficient for CUDA runtime version'",
         "emox doctor");
  expect(ncclSystemError, "", "NCCL_SOCKET_IFNAME");
  expect(ncclRemoteError, "", "another rank has gone");
}

}  // namespace
}  // namespace emox::test
