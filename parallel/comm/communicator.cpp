#include "parallel/comm/communicator.h"

#include <algorithm>
#include <utility>

#include "parallel/comm/arguments.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {

int Communicator::node_size() const {
  const std::vector<int>& all = nodes();
  return static_cast<int>(std::count(all.begin(), all.end(), all[idx(rank())]));
}

int Communicator::node_rank() const {
  const std::vector<int>& all = nodes();
  return static_cast<int>(std::count(all.begin(), all.begin() + rank(), all[idx(rank())]));
}

void Communicator::require_idle(std::string_view op) const {
  require<CommError>(open_ == 0,
                     "{} while an all_to_all_v is open on this communicator: call all_to_all_v_finish first", op);
}

namespace {

class Observed {
 public:
  Observed(const std::shared_ptr<CollectiveObserver>& observer, std::string_view op, std::size_t bytes)
      : observer_(observer.get()) {
    if (observer_ != nullptr) observer_->enter(op, bytes);
  }
  ~Observed() {
    if (observer_ != nullptr) observer_->leave();
  }
  Observed(const Observed&) = delete;
  Observed& operator=(const Observed&) = delete;

 private:
  CollectiveObserver* observer_;
};

}  // namespace

void Communicator::all_reduce(TensorView x, ReduceOp op) {
  require_idle("all_reduce");
  check_all_reduce(x, device_memory());
  const Observed observed(observer_, "all_reduce", x.bytes());
  do_all_reduce(x, op);
  do_settle();
}

void Communicator::all_gather(TensorView out, TensorView in) {
  require_idle("all_gather");
  check_all_gather(out, in, size(), device_memory());
  const Observed observed(observer_, "all_gather", in.bytes());
  do_all_gather(out, in);
  do_settle();
}

void Communicator::all_gather_v(TensorView x, std::span<const RowRange> ranges) {
  all_gather_v_start(x, ranges);
  do_settle();
}

void Communicator::reduce_scatter(TensorView x, std::span<const RowRange> ranges) {
  reduce_scatter_start(x, ranges);
  do_settle();
}

void Communicator::all_gather_v_start(TensorView x, std::span<const RowRange> ranges) {
  require_idle("all_gather_v");
  check_all_gather_v(x, ranges, size(), device_memory());
  const Observed observed(observer_, "all_gather_v", x.bytes());
  do_all_gather_v(x, ranges);
}

void Communicator::reduce_scatter_start(TensorView x, std::span<const RowRange> ranges) {
  require_idle("reduce_scatter");
  check_reduce_scatter(x, ranges, size(), device_memory());
  const Observed observed(observer_, "reduce_scatter", x.bytes());
  do_reduce_scatter(x, ranges);
}

void Communicator::wait_for(const DeviceEvent& event) {
  const Observed observed(observer_, "device", 0);
  do_wait_for(event);
}

void Communicator::do_wait_for(const DeviceEvent&) {
  fail<CommError>("{} moves host memory and has no device to wait for", transport());
}

void Communicator::broadcast(TensorView x, int root) {
  require_idle("broadcast");
  check_broadcast(x, root, size(), device_memory());
  const Observed observed(observer_, "broadcast", x.bytes());
  do_broadcast(x, root);
  do_settle();
}

void Communicator::all_to_all_v_start(std::span<const RowTransfer> transfers) {
  require_idle("all_to_all_v");
  require<CommError>(!transfers.empty(), "all_to_all_v of no tensor");
  for (const RowTransfer& t : transfers)
    check_all_to_all_v(t.out, t.recv_rows, t.in, t.send_rows, rank(), size(), device_memory());
  if (observer_ != nullptr) observer_->start_exchange();
  exchanges_.resize(std::max(exchanges_.size(), transfers.size()));
  for (std::size_t i = 0; i < transfers.size(); ++i) {
    const RowTransfer& t = transfers[i];
    RowExchange& e = exchanges_[i];
    e.out = t.out;
    e.recv_rows.assign(t.recv_rows.begin(), t.recv_rows.end());
    e.in = t.in;
    e.send_rows.assign(t.send_rows.begin(), t.send_rows.end());
  }
  do_all_to_all_v_start(std::span(exchanges_).first(transfers.size()));
  open_ = transfers.size();
}

void Communicator::all_to_all_v_finish() {
  require<CommError>(open_ > 0, "all_to_all_v_finish without an all_to_all_v_start on this communicator");
  const std::span<const RowExchange> exchanges = std::span(exchanges_).first(std::exchange(open_, 0));
  std::size_t bytes = 0;
  for (const RowExchange& e : exchanges) bytes += e.in.bytes();
  // A rank that works between the halves is in no collective.
  const Observed observed(observer_, "all_to_all_v", bytes);
  do_all_to_all_v_finish(exchanges);
}

void Communicator::all_to_all_v_abandon() noexcept {
  open_ = 0;
  do_all_to_all_v_abandon();
}

void Communicator::barrier() {
  require_idle("barrier");
  const Observed observed(observer_, "barrier", 0);
  do_barrier();
}

std::unique_ptr<Communicator> Communicator::split(int color, int key) {
  require_idle("split");
  check_split(color);
  const Observed observed(observer_, "split", 0);
  std::unique_ptr<Communicator> part = do_split(color, key);
  if (observer_ != nullptr) part->observe(observer_->part(*part, color));
  return part;
}

}  // namespace emox
