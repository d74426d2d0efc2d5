// Device tensors between ranks: every transport gives what is known in closed form.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "parallel/comm/nccl/nccl_transport.h"
#include "runtime/ops/basic.h"
#include "tests/cuda/program.h"
#include "tests/parallel/comm_checks.h"
#include "tests/support/device.h"
#include "tests/support/ranks.h"
#include "tests/support/support.h"

namespace emox::test {
namespace {

/// Host tensors that travel as device tensors: so the checks of all transports serve for those of devices.
class OverDevice final : public Communicator {
 public:
  OverDevice(Communicator& device, const Context& ctx) : device_(device), ctx_(ctx) {}
  OverDevice(std::unique_ptr<Communicator> device, const Context& ctx)
      : own_(std::move(device)), device_(*own_), ctx_(ctx) {}
  int rank() const override { return device_.rank(); }
  int size() const override { return device_.size(); }
  const std::vector<int>& nodes() const override { return device_.nodes(); }
  std::string_view transport() const override { return device_.transport(); }

 private:
  Tensor up(const TensorView& host) { return on(ctx_, host); }
  void down(const TensorView& host, const TensorView& device) {
    if (host.bytes() > 0) ops::copy_to_host(ctx_, host.raw(), device);
  }
  template <typename F>
  void in_place(TensorView x, F&& f) {
    const Tensor t = up(x);
    f(t.view());
    down(x, t);
  }
  void do_all_reduce(TensorView x, ReduceOp op) override {
    in_place(x, [&](TensorView t) { device_.all_reduce(t, op); });
  }
  void do_all_gather(TensorView out, TensorView in) override {
    const Tensor to = up(out), from = up(in);
    const auto* const begin = static_cast<const char*>(out.raw());
    const auto offset = static_cast<const char*>(in.raw()) - begin;
    const bool inside = in.bytes() > 0 && offset >= 0 && idx(offset) < out.bytes();
    const auto first = inside ? offset / static_cast<std::int64_t>(size_of(in.dtype())) : 0;
    device_.all_gather(to, inside ? to.view().reshape({out.numel()}).rows(first, first + in.numel()) : from.view());
    down(out, to);
  }
  void do_all_gather_v(TensorView x, std::span<const RowRange> ranges) override {
    in_place(x, [&](TensorView t) { device_.all_gather_v(t, ranges); });
    traffic_ = device_.traffic();
  }
  void do_reduce_scatter(TensorView x, std::span<const RowRange> ranges) override {
    in_place(x, [&](TensorView t) { device_.reduce_scatter(t, ranges); });
    traffic_ = device_.traffic();
  }
  void do_broadcast(TensorView x, int root) override {
    in_place(x, [&](TensorView t) { device_.broadcast(t, root); });
  }
  void do_all_to_all_v_start(std::span<const RowExchange> exchanges) override {
    tensors_.clear();
    std::vector<RowTransfer> transfers;
    for (const RowExchange& e : exchanges) {
      tensors_.push_back({up(e.out), up(e.in)});
      transfers.push_back({tensors_.back()[0], e.recv_rows, tensors_.back()[1], e.send_rows});
    }
    device_.queue()->follow(*ctx_.queue);
    device_.all_to_all_v_start(transfers);
  }
  void do_all_to_all_v_finish(std::span<const RowExchange> exchanges) override {
    device_.all_to_all_v_finish();
    ctx_.queue->follow(*device_.queue());
    for (std::size_t i = 0; i < exchanges.size(); ++i) down(exchanges[i].out, tensors_[i][0]);
  }
  void do_barrier() override { device_.barrier(); }
  std::unique_ptr<Communicator> do_split(int color, int key) override {
    return std::make_unique<OverDevice>(device_.split(color, key), ctx_);
  }

  std::unique_ptr<Communicator> own_;
  Communicator& device_;
  Context ctx_;
  std::vector<std::array<Tensor, 2>> tensors_;
};

struct Transport {
  const char* name;
  MakeDeviceTransport make;
  bool own_devices;  ///< else all ranks share device 0
  friend void PrintTo(const Transport& t, std::ostream* out) { *out << t.name; }
};
MakeDeviceTransport nccl(const NcclOptions& options = {}) {
  return [options](Communicator& host, DeviceQueue& queue) { return make_nccl_transport(host, queue, options); };
}

class DeviceTransports : public ::testing::TestWithParam<Transport> {
 protected:
  /// Whether there are devices for so many.
  static bool fits(int ranks) { return !GetParam().own_devices || !too_few_devices(ranks); }
  static void run(int ranks, const std::function<void(DeviceRank&)>& body) {
    const Transport& t = GetParam();
    if (!fits(ranks)) GTEST_SKIP() << "needs " << ranks << " devices";
    run_ranks(
        ranks,
        [&](Communicator& host) {
          DeviceRank rank(host, t.own_devices ? host.rank() : 0, t.make);
          body(rank);
        },
        240);
  }
};

TEST_P(DeviceTransports, EveryCallOfOneToFourRanks) {
  for (const int ranks : {1, 2, 3, 4})
    if (fits(ranks))
      run(ranks, [](DeviceRank& rank) {
        OverDevice comm(rank.comm(), rank.ctx());
        // NCCL adds in an order of its own, which for two is none; the emulated one in that of the ranks.
        const bool emulated = cuda::accelerator()->properties(0).name.find("emulated") != std::string::npos;
        check_everything(comm, true, emulated || comm.transport() != "nccl" || comm.size() <= 2);
      });
}

// Ranges dealt out in turns, with holes; the sums are exact in any order.
TEST_P(DeviceTransports, RangesInTurnsWithHoles) {
  for (const int ranks : {2, 3, 4})
    if (fits(ranks))
      run(ranks, [](DeviceRank& rank) {
        Communicator& comm = rank.comm();
        const std::vector<RowRange> ranges = dealt_ranges(comm.size(), 3);
        const std::int64_t n = ranges.back().end + 3;
        std::vector<float> mine = contribution<float>(comm.rank(), n);
        const Tensor x = on(rank.ctx(), view_of(mine));
        comm.reduce_scatter(x, ranges);
        comm.all_gather_v(x, ranges);
        const auto got = values_of<float>(x);
        for (std::int64_t i = 0; i < n; ++i) {
          const bool owned =
              std::any_of(ranges.begin(), ranges.end(), [&](const RowRange& r) { return i >= r.begin && i < r.end; });
          EXPECT_EQ(got[idx(i)], owned ? sum_at<float>(comm.size(), i) : value_at<float>(comm.rank(), i)) << i;
        }
      });
}

// Results are there for the compute queue without the host having waited; several sums may be open.
TEST_P(DeviceTransports, WhatIsStartedIsThereWhenSettled) {
  run(2, [](DeviceRank& rank) {
    Context& ctx = rank.ctx();
    Communicator& comm = rank.comm();
    const std::vector<RowRange> ranges{{0, 600, 0}, {600, 1000, 1}};
    std::vector<Tensor> x;
    std::vector<std::vector<float>> all;
    for (int i = 0; i < 4; ++i) {
      all.push_back(contribution<float>(comm.rank() + i, 1000));
      x.push_back(on(ctx, view_of(all.back())));
    }
    const std::int64_t waits = ctx.queue->counters().waits;
    for (const Tensor& t : x) comm.reduce_scatter_start(t, ranges);
    comm.settle();
    if (comm.transport() == "nccl") {
      EXPECT_EQ(ctx.queue->counters().waits, waits);
    }
    for (int i = 0; i < 4; ++i) {
      const auto got = values_of<float>(x[idx(i)]);
      for (std::int64_t e = ranges[idx(comm.rank())].begin; e < ranges[idx(comm.rank())].end; ++e)
        EXPECT_EQ(got[idx(e)], value_at<float>(i, e) + value_at<float>(1 + i, e));
    }
    for (const Tensor& t : x) comm.all_gather_v_start(t, ranges);
    comm.settle();
    for (int i = 0; i < 4; ++i) {
      const auto got = values_of<float>(x[idx(i)]);
      for (std::int64_t e = 0; e < 1000; ++e) EXPECT_EQ(got[idx(e)], value_at<float>(i, e) + value_at<float>(1 + i, e));
    }
  });
}

TEST_P(DeviceTransports, ControlTrafficStaysOnTheHost) {
  run(2, [](DeviceRank& rank) {
    std::vector<std::int64_t> host{rank.comm().rank() + 1};
    const std::int64_t launches = rank.ctx().queue->counters().launches;
    rank.comm().all_reduce(view_of(host));
    EXPECT_EQ(host[0], 3);
    EXPECT_EQ(rank.ctx().queue->counters().launches, launches);
    EXPECT_EQ(rank.ctx().queue->counters().waits, 0);
    // One tensor here, one there: refused before anything is sent.
    const Tensor device = on(rank.ctx(), view_of(host));
    const std::vector<std::int64_t> rows(2, 0), one{rank.comm().rank() == 0 ? 1 : 0, rank.comm().rank() == 1 ? 1 : 0};
    EXPECT_THROW(rank.comm().all_to_all_v_start(device, one, view_of(host), one), CommError);
  });
}

INSTANTIATE_TEST_SUITE_P(All, DeviceTransports,
                         ::testing::Values(Transport{"staged", make_staged_transport, false},
                                           Transport{"nccl", nccl(), true},
                                           Transport{"nccl_cut", nccl({.most_bytes = 100000}), true}),
                         [](const auto& p) { return std::string(p.param.name); });

}  // namespace
}  // namespace emox::test
