// One small interface for all traffic between ranks (design 4.3). `self` makes one rank a special case of nothing,
// `threads` runs ranks as threads of one process (tests, sanitizers), `mpi` is the CPU default.
//
// Every call is collective: all ranks of the communicator make the same calls in the same order. A call returns when
// the result is in place. Sums of floats run in rank order (reduce_scatter: in rank order inside each node, then in the
// order of the nodes, shares.h): ranks that share nodes in the same way give the same bits. Arguments are checked here,
// before anything is sent: ShapeError for tensors and counts that do not fit together, CommError for a call that this
// communicator cannot make now or a root that it does not have.
//
// Tensors on a device (device_communicator.h): a call returns when the transfer has been given to the device; the
// result is in place for what the compute queue is given afterwards, and the host has not waited. Sums of floats on a
// device are the transport's, and repeat for the same ranks and nodes.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/comm/shares.h"
#include "runtime/core/accelerator.h"
#include "runtime/core/tensor.h"

namespace emox {

class CollectiveObserver;

enum class ReduceOp : std::uint8_t { Sum, Max };

/// Rows that travel: in[sum send_rows, ...] holds the rows for rank 0, 1, ... one after another; out[sum recv_rows,
/// ...] receives likewise.
struct RowTransfer {
  TensorView out;
  std::span<const std::int64_t> recv_rows;
  TensorView in;
  std::span<const std::int64_t> send_rows;
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// The node of every rank, numbered from 0 in the order in which ranks first name them.
  virtual const std::vector<int>& nodes() const = 0;
  /// Ranks that share this rank's node, and this rank's place among them.
  int node_size() const;
  int node_rank() const;
  /// "self", "threads", "mpi"; with a device "nccl", "staged"; "planned" does not run
  virtual std::string_view transport() const = 0;

  /// Whether calls take tensors on a device.
  virtual bool device_memory() const { return false; }
  /// The queue on which transfers of device tensors run; null where there is none.
  virtual DeviceQueue* queue() const { return nullptr; }
  /// The host waits until its device has passed the event, or throws CommError when a transfer cannot end. Only where
  /// there is a queue.
  void wait_for(const DeviceEvent& event);

  /// x = sum (or max) over ranks of x; f32, f64, i32, i64. Large tensors are cut into pieces of 4 MiB.
  void all_reduce(TensorView x, ReduceOp op = ReduceOp::Sum);
  /// out[size * n, ...] = the ranks' in[n, ...] in rank order; equal n on all ranks.
  void all_gather(TensorView out, TensorView in);
  /// In place: each range of rows of x[n, ...] reaches all ranks from its owner. Ranges rise without overlapping, are
  /// the same on all ranks, and need not cover x; an owner may have many, or none.
  void all_gather_v(TensorView x, std::span<const RowRange> ranges);
  /// In place: on return the rows that a rank owns hold their sum over ranks; all other rows that are in a range are
  /// unspecified. Ranges as for all_gather_v; f32, f64, i32, i64.
  void reduce_scatter(TensorView x, std::span<const RowRange> ranges);
  /// The same two calls, whose results on a device are in place only after settle(): until then the compute queue does
  /// other work, and leaves x alone. Several may be open.
  void all_gather_v_start(TensorView x, std::span<const RowRange> ranges);
  void reduce_scatter_start(TensorView x, std::span<const RowRange> ranges);
  /// What was started is in place for later work of the compute queue. Waits for nobody.
  void settle() { do_settle(); }
  /// x on every rank = x on `root`.
  void broadcast(TensorView x, int root);
  /// Rows travel (RowTransfer). Byte counts beyond 2^31 are cut into pieces; a pair without rows exchanges no message.
  void all_to_all_v(TensorView out, std::span<const std::int64_t> recv_rows, TensorView in,
                    std::span<const std::int64_t> send_rows) {
    all_to_all_v_start(out, recv_rows, in, send_rows);
    all_to_all_v_finish();
  }
  /// all_to_all_v in two halves, for work in between: start waits for nobody, the rows are there after finish. Until
  /// then both tensors stay alive and untouched, and any other call on this communicator is a CommError; calls on other
  /// communicators are free. The row counts are copied.
  /// On a device both are in the order of queue() alone: what is sent must be there for it (DeviceQueue::follow), and
  /// what arrives is there for it.
  void all_to_all_v_start(TensorView out, std::span<const std::int64_t> recv_rows, TensorView in,
                          std::span<const std::int64_t> send_rows) {
    const RowTransfer one{out, recv_rows, in, send_rows};
    all_to_all_v_start({&one, 1});
  }
  /// Several tensors in one exchange: all ranks name as many, in the same order.
  void all_to_all_v_start(std::span<const RowTransfer> transfers);
  void all_to_all_v_finish();
  /// For an exception that passes between the halves, before the tensors go: afterwards nothing touches them any more,
  /// or, with a peer that is dead too, two seconds are over. The job cannot go on; nothing happens if none is open.
  void all_to_all_v_abandon() noexcept;
  void barrier();
  /// The ranks of equal color form a communicator, ordered by (key, rank).
  std::unique_ptr<Communicator> split(int color, int key);

  /// Is told of every collective of this communicator from now on; what is split from it later is told to observers
  /// that this one makes. Null: nobody.
  void observe(std::shared_ptr<CollectiveObserver> observer) {
    observer_ = std::move(observer);
    do_observe();
  }
  const std::shared_ptr<CollectiveObserver>& observer() const { return observer_; }
  /// Lives until this communicator is gone: the job that it is of.
  void keep_alive(std::shared_ptr<void> job) { job_ = std::move(job); }
  const std::shared_ptr<void>& job() const { return job_; }
  /// What this rank has received in reduce_scatter and all_gather_v since the communicator was made.
  const Traffic& traffic() const { return traffic_; }

 protected:
  struct RowExchange {  ///< a RowTransfer with counts of its own
    TensorView out;
    std::vector<std::int64_t> recv_rows;
    TensorView in;
    std::vector<std::int64_t> send_rows;
  };
  Traffic traffic_;

 private:
  // What a transport does; the arguments have been checked.
  virtual void do_all_reduce(TensorView x, ReduceOp op) = 0;
  virtual void do_all_gather(TensorView out, TensorView in) = 0;
  virtual void do_all_gather_v(TensorView x, std::span<const RowRange> ranges) = 0;
  virtual void do_reduce_scatter(TensorView x, std::span<const RowRange> ranges) = 0;
  virtual void do_broadcast(TensorView x, int root) = 0;
  /// The same objects for both halves, which live between them.
  virtual void do_all_to_all_v_start(std::span<const RowExchange> exchanges) = 0;
  virtual void do_all_to_all_v_finish(std::span<const RowExchange> exchanges) = 0;
  virtual void do_all_to_all_v_abandon() noexcept {}
  virtual void do_observe() {}
  virtual void do_settle() {}
  virtual void do_wait_for(const DeviceEvent& event);
  virtual void do_barrier() = 0;
  virtual std::unique_ptr<Communicator> do_split(int color, int key) = 0;

  void require_idle(std::string_view op) const;

  std::shared_ptr<void> job_;  // goes last
  std::shared_ptr<CollectiveObserver> observer_;
  std::vector<RowExchange> exchanges_;  // kept when closed, so that later exchanges allocate nothing
  std::size_t open_ = 0;                // of them
};

/// Looks at the collectives of one communicator of one rank, on the rank's own thread.
class CollectiveObserver {
 public:
  virtual ~CollectiveObserver() = default;
  /// Before this rank begins to wait in a call that sends `bytes`; may throw, then the call is not made.
  virtual void enter(std::string_view op, std::size_t bytes) = 0;
  virtual void leave() noexcept = 0;
  /// Before all_to_all_v_start, which waits for nobody.
  virtual void start_exchange() {}
  /// Inside split: the observer of the part, which may communicate on it. The parent was split with `color`.
  virtual std::shared_ptr<CollectiveObserver> part(Communicator& part, int color) = 0;
  /// Asked by the watchdog's thread, now and then, why the communicator's calls cannot end: a text ends the job. Empty
  /// function: no more; on return it is not running.
  virtual void probe(const std::function<std::string()>& /*trouble*/) {}
  /// The rank is at work (progress.h); any thread.
  virtual void note_progress() noexcept {}
  virtual void note_io(bool /*begins*/) noexcept {}
  virtual void set_limit(double /*seconds*/) noexcept {}
};

/// One rank.
std::unique_ptr<Communicator> make_self_communicator();
/// A rank of a job that does not run, to plan for it: knows its place, and every collective is a CommError. `nodes`: of
/// all its ranks.
std::unique_ptr<Communicator> make_planned_communicator(int rank, std::vector<int> nodes);

}  // namespace emox
