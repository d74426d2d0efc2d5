// One rank's side of an NCCL communicator: made, asked how it is, ended. It calls NCCL on the rank's thread; only
// trouble() is for others, too.
//
// NCCL's communicators here do not block: a call returns at once, and another thread of NCCL's connects the ranks and
// gives the device its work. NCCL is not asked by two threads at a time, since its answer may end that thread.
#pragma once

#include <nccl.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "parallel/comm/communicator.h"
#include "parallel/comm/nccl/nccl_library.h"
#include "parallel/comm/nccl/nccl_transport.h"
#include "runtime/core/accelerator.h"

namespace emox {

struct NcclFamily;

class NcclConnection {
 public:
  /// Of the ranks of `host`. Collective; errors as make_nccl_transport's. Calls will be given to `queue`.
  NcclConnection(Communicator& host, DeviceQueue& queue, const NcclOptions& options);
  /// Of a part of the parent's ranks, which are those of `host`. Collective over the parent.
  NcclConnection(NcclConnection& parent, int color, int key, Communicator& host, DeviceQueue& queue);
  /// Waits until what it was given has ended, but never for a peer that has gone.
  ~NcclConnection();
  NcclConnection(const NcclConnection&) = delete;
  NcclConnection& operator=(const NcclConnection&) = delete;

  const NcclLibrary& nccl() const { return nccl_; }
  const NcclOptions& options() const { return options_; }

  /// code = f(communicator), a call of NCCL by this name. On return it has been given to the queue. CommError.
  template <typename F>
  void call(const char* name, F&& f) {
    begin(name);
    check(locked(std::forward<F>(f)), name);
  }
  /// f(communicator, note) makes calls that go as one, and notes the code of each. It must not throw.
  template <typename F>
  void group(const char* name, F&& f) {
    call(name, [&](ncclComm_t comm) {
      ncclResult_t first = nccl_.GroupStart();
      if (first != ncclSuccess) return first;
      f(comm, [&](ncclResult_t code) {
        if (code != ncclInProgress && first == ncclSuccess) first = code;
      });
      const ncclResult_t ended = nccl_.GroupEnd();  // also of one that failed
      return first == ncclSuccess ? ended : first;
    });
  }

  /// DeviceTransport::trouble.
  std::string trouble() const;
  /// Ends this communicator and all that come from the same one: their device work may wait for each other's.
  void abort() noexcept;

 private:
  friend struct NcclFamily;
  template <typename F>
  ncclResult_t locked(F&& f) const {
    const std::lock_guard lock(mutex_);
    return f(comm_);
  }
  void make(ncclResult_t code, NcclConnection* parent);
  ncclResult_t state() const;
  void begin(const char* name);
  void check(ncclResult_t code, const char* name);
  bool close() noexcept;
  std::string text_of(ncclResult_t code, std::string_view call) const;

  const NcclLibrary& nccl_ = nccl_library();
  Communicator& host_;
  DeviceQueue& queue_;
  const NcclOptions options_;
  std::shared_ptr<NcclFamily> family_;
  mutable std::mutex mutex_;  // of NCCL's calls with comm_
  ncclComm_t comm_ = nullptr;
  std::atomic<const char*> last_{"its making"};
  std::atomic<std::int64_t> calls_ = 0;
  const int exceptions_ = std::uncaught_exceptions();
};

}  // namespace emox
