// What moves device tensors between the ranks of one communicator. All calls are collective, and were checked by
// Communicator.
//
// Calls give work to the transport's queue, and are in its order: what they read must be there for it, what they write
// is there for what it is given later. The host waits for the device only where the transport cannot do without
// (staged). Memory that a call names stays alive until the queue has passed it.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "parallel/comm/communicator.h"
#include "runtime/core/accelerator.h"

namespace emox {

class DeviceTransport {
 public:
  virtual ~DeviceTransport() = default;
  virtual std::string_view name() const = 0;  ///< "nccl", "staged"

  // As the calls of Communicator.
  virtual void all_reduce(TensorView x, ReduceOp op) = 0;
  virtual void all_gather(TensorView out, TensorView in) = 0;
  virtual void all_gather_v(TensorView x, std::span<const RowRange> ranges) = 0;
  virtual void reduce_scatter(TensorView x, std::span<const RowRange> ranges) = 0;
  virtual void broadcast(TensorView x, int root) = 0;
  /// The same transfers for both halves. Between them the queue may be given other work.
  virtual void exchange_start(std::span<const RowTransfer> transfers) = 0;
  virtual void exchange_finish(std::span<const RowTransfer> transfers) = 0;
  virtual void exchange_abandon() noexcept {}

  /// For a part of the ranks: `host` is the part's communicator, `queue` the one its transfers will run on.
  virtual std::unique_ptr<DeviceTransport> split(int color, int key, Communicator& host, DeviceQueue& queue) = 0;
  /// Why transfers cannot end (a peer has gone, the network failed), in words that say what to do; empty: nothing is
  /// known. Any thread.
  virtual std::string trouble() const { return {}; }
  /// Ends what is under way, so that nothing on the device waits for a peer any more; later calls are a CommError.
  virtual void abort() noexcept {}
};

/// Through pinned host memory and the host's communicator: where ranks share a device, or there is no NCCL. The host
/// waits for the device once a call. `host` and `queue` must outlive it.
std::unique_ptr<DeviceTransport> make_staged_transport(Communicator& host, DeviceQueue& queue);

}  // namespace emox
