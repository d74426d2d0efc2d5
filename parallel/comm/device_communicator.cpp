#include "parallel/comm/device_communicator.h"

#include <utility>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

bool on_device(const TensorView& x) { return x.device().type != DeviceType::Cpu; }

/// A queue that is given back at the end.
class BorrowedQueue {
 public:
  explicit BorrowedQueue(TransferQueues& queues) : queues_(queues), queue_(queues.take()) {}
  ~BorrowedQueue() { queues_.give_back(queue_); }
  BorrowedQueue(const BorrowedQueue&) = delete;
  BorrowedQueue& operator=(const BorrowedQueue&) = delete;
  DeviceQueue& operator*() const { return queue_; }

 private:
  TransferQueues& queues_;
  DeviceQueue& queue_;
};

/// The watchdog times what is done here.
class Entered {
 public:
  Entered(const std::shared_ptr<CollectiveObserver>& observer, std::string_view what) : observer_(observer.get()) {
    if (observer_ != nullptr) observer_->enter(what, 0);
  }
  ~Entered() {
    if (observer_ != nullptr) observer_->leave();
  }
  Entered(const Entered&) = delete;
  Entered& operator=(const Entered&) = delete;

 private:
  CollectiveObserver* observer_;
};

/// What one rank's communicators have on its device. When one of them fails, all are ended: memory cannot be given back
/// while the device waits for a peer.
class Transports {
 public:
  void add(DeviceTransport* t) { all_.push_back(t); }
  void remove(DeviceTransport* t) { std::erase(all_, t); }
  void abort() noexcept {
    for (DeviceTransport* t : all_) t->abort();
  }

 private:
  std::vector<DeviceTransport*> all_;
};

class DeviceCommunicator final : public Communicator {
 public:
  using Make = std::function<std::unique_ptr<DeviceTransport>(DeviceQueue&)>;
  DeviceCommunicator(std::unique_ptr<Communicator> host, DeviceQueue& compute, TransferQueues& queues,
                     std::shared_ptr<Transports> transports, const Make& make)
      : host_(std::move(host)),
        compute_(compute),
        queues_(queues),
        queue_(queues),
        transports_(std::move(transports)),
        transport_(make(*queue_)) {
    transports_->add(transport_.get());
    keep_alive(host_->job());  // the observer is of it, and goes after the host's communicator
    // One watchdog's note a call: this communicator's.
    observe(host_->observer());
    host_->observe(nullptr);
  }
  ~DeviceCommunicator() override {
    if (observer() != nullptr) observer()->probe({});
    transports_->remove(transport_.get());
  }
  DeviceCommunicator(const DeviceCommunicator&) = delete;
  DeviceCommunicator& operator=(const DeviceCommunicator&) = delete;

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  const std::vector<int>& nodes() const override { return host_->nodes(); }
  std::string_view transport() const override { return transport_->name(); }
  bool device_memory() const override { return true; }
  DeviceQueue* queue() const override { return &*queue_; }

 private:
  /// A call of the transport.
  template <typename F>
  auto guarded(F&& call) {
    try {
      return call();
    } catch (const CommError&) {
      transports_->abort();
      throw;
    }
  }
  /// One that begins when the compute queue has come here.
  template <typename F>
  void after_compute(F&& call) {
    (*queue_).follow(compute_);
    started_ = true;
    guarded(call);
  }
  void count(const Traffic& before) {
    Traffic now = host_->traffic();
    now -= before;
    traffic_ += now;
  }

  void do_all_reduce(TensorView x, ReduceOp op) override {
    if (!on_device(x)) return host_->all_reduce(x, op);
    after_compute([&] { transport_->all_reduce(x, op); });
  }
  void do_all_gather(TensorView out, TensorView in) override {
    if (!on_device(out)) return host_->all_gather(out, in);
    after_compute([&] { transport_->all_gather(out, in); });
  }
  void do_all_gather_v(TensorView x, std::span<const RowRange> ranges) override {
    if (!on_device(x)) {
      const Traffic before = host_->traffic();
      host_->all_gather_v(x, ranges);
      return count(before);
    }
    after_compute([&] { transport_->all_gather_v(x, ranges); });
    traffic_ += traffic_of_gather(ranges, nodes(), rank(), row_bytes(x));
  }
  void do_reduce_scatter(TensorView x, std::span<const RowRange> ranges) override {
    if (!on_device(x)) {
      const Traffic before = host_->traffic();
      host_->reduce_scatter(x, ranges);
      return count(before);
    }
    after_compute([&] { transport_->reduce_scatter(x, ranges); });
    traffic_ += traffic_of_sum(ranges, nodes(), rank(), row_bytes(x), size_of(x.dtype()));
  }
  void do_broadcast(TensorView x, int root) override {
    if (!on_device(x)) return host_->broadcast(x, root);
    after_compute([&] { transport_->broadcast(x, root); });
  }
  // Dispatchers say themselves what follows what.
  void do_all_to_all_v_start(std::span<const RowExchange> exchanges) override {
    transfers_.clear();
    for (const RowExchange& e : exchanges) transfers_.push_back({e.out, e.recv_rows, e.in, e.send_rows});
    host_exchange_ = !on_device(transfers_.front().in) && !on_device(transfers_.front().out);
    if (host_exchange_) return host_->all_to_all_v_start(transfers_);
    // The first exchange with a rank connects the two: both must come.
    const Entered entered(observer(), "connect");
    guarded([&] { transport_->exchange_start(transfers_); });
  }
  void do_all_to_all_v_finish(std::span<const RowExchange>) override {
    if (host_exchange_) return host_->all_to_all_v_finish();
    guarded([&] { transport_->exchange_finish(transfers_); });
  }
  void do_all_to_all_v_abandon() noexcept override {
    host_->all_to_all_v_abandon();
    transport_->exchange_abandon();
  }
  void do_barrier() override { host_->barrier(); }
  void do_observe() override {
    if (observer() != nullptr && transport_ != nullptr) observer()->probe([this] { return transport_->trouble(); });
  }
  void do_settle() override {
    if (std::exchange(started_, false)) compute_.follow(*queue_);
  }
  void do_wait_for(const DeviceEvent& event) override {
    guarded([&] {
      compute_.wait_for(event, [this] {
        const std::string trouble = transport_->trouble();
        require<CommError>(trouble.empty(), "{}", trouble);
      });
    });
  }
  std::unique_ptr<Communicator> do_split(int color, int key) override {
    std::unique_ptr<Communicator> part = host_->split(color, key);
    Communicator& host = *part;
    return guarded([&] {
      return std::make_unique<DeviceCommunicator>(
          std::move(part), compute_, queues_, transports_,
          [&](DeviceQueue& queue) { return transport_->split(color, key, host, queue); });
    });
  }

  static std::size_t row_bytes(const TensorView& x) { return idx(x.shape().tail().numel()) * size_of(x.dtype()); }

  std::unique_ptr<Communicator> host_;  // outlives the transport
  DeviceQueue& compute_;
  TransferQueues& queues_;
  BorrowedQueue queue_;
  std::shared_ptr<Transports> transports_;
  std::unique_ptr<DeviceTransport> transport_;
  std::vector<RowTransfer> transfers_;  // of the open exchange
  bool host_exchange_ = false;
  bool started_ = false;  // transfers that the compute queue has not been told to wait for
};

}  // namespace

DeviceQueue& TransferQueues::take() {
  if (free_.empty()) {
    all_.push_back(cuda::accelerator()->open_queue(device_.index, true));
    free_.push_back(all_.back().get());
  }
  DeviceQueue& queue = *free_.back();
  free_.pop_back();
  return queue;
}

std::unique_ptr<Communicator> make_device_communicator(std::unique_ptr<Communicator> host, DeviceQueue& compute,
                                                       TransferQueues& queues, const MakeDeviceTransport& make) {
  Communicator& all = *host;
  return std::make_unique<DeviceCommunicator>(std::move(host), compute, queues, std::make_shared<Transports>(),
                                              [&](DeviceQueue& queue) { return make(all, queue); });
}

}  // namespace emox
