#include "parallel/comm/nccl/nccl_transport.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "parallel/comm/nccl/nccl_library.h"
#include "parallel/comm/together.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

using Clock = std::chrono::steady_clock;

bool over(Clock::time_point since, double seconds) {
  return std::chrono::duration<double>(Clock::now() - since).count() > seconds;
}
void pause() { std::this_thread::sleep_for(std::chrono::microseconds(200)); }

/// What a result most often comes from, and what to set.
std::string cure_of(ncclResult_t code) {
  switch (code) {
    case ncclSystemError:
      return "the network or shared memory cannot be used: name the interface with NCCL_SOCKET_IFNAME (and "
             "NCCL_IB_HCA, "
             "or NCCL_IB_DISABLE=1 without InfiniBand), see that /dev/shm has room";
    case ncclRemoteError:
      return "another rank has gone, or the network to it failed: the first message of the other ranks says which";
    case ncclInvalidUsage:
      return "two ranks may have the same GPU (start one rank a GPU, or use parallel.communicator = staged), or "
             "different versions of NCCL";
    case ncclUnhandledCudaError:
      return "the device failed or has no memory left";
    default:
      return "it may be a fault of emox or of NCCL";
  }
}

/// Ranges in a group, at most: each has state while it is open.
constexpr std::size_t kRangesOfGroup = 256;

ncclDataType_t type_of(DType type) {
  switch (type) {
    case DType::F32:
      return ncclFloat32;
    case DType::F64:
      return ncclFloat64;
    case DType::I32:
      return ncclInt32;
    case DType::I64:
      return ncclInt64;
    default:
      fail<ShapeError>("NCCL adds f32, f64, i32 and i64, not {}", name_of(type));
  }
}

class NcclTransport final : public DeviceTransport {
 public:
  NcclTransport(Communicator& host, DeviceQueue& queue, const NcclOptions& options);
  /// A part of `parent`.
  NcclTransport(const NcclTransport& parent, int color, int key, Communicator& host, DeviceQueue& queue);
  ~NcclTransport() override;
  NcclTransport(const NcclTransport&) = delete;
  NcclTransport& operator=(const NcclTransport&) = delete;

  std::string_view name() const override { return "nccl"; }
  void all_reduce(TensorView x, ReduceOp op) override;
  void all_gather(TensorView out, TensorView in) override;
  void all_gather_v(TensorView x, std::span<const RowRange> ranges) override;
  void reduce_scatter(TensorView x, std::span<const RowRange> ranges) override;
  void broadcast(TensorView x, int root) override;
  void exchange_start(std::span<const RowTransfer> transfers) override;
  void exchange_finish(std::span<const RowTransfer>) override {}  // in the order of the queue
  std::unique_ptr<DeviceTransport> split(int color, int key, Communicator& host, DeviceQueue& queue) override {
    return std::make_unique<NcclTransport>(*this, color, key, host, queue);
  }
  std::string trouble() const override;
  void abort() noexcept override;

 private:
  /// `parent`: of a part, which is there only when the parent says that the split is done; null: this is no part.
  void finish_init(ncclResult_t code, ncclComm_t parent);
  ncclResult_t state_of(ncclComm_t comm) const;
  void begin(const char* call);
  /// One call of NCCL at a time: looking for trouble moves on what is in progress, too.
  template <typename F>
  ncclResult_t locked(F&& f) const {
    const std::lock_guard lock(mutex_);
    return f();
  }
  void check(ncclResult_t code, const char* call);
  /// Waits until the communicator has taken what it was given; no rank waits for others here.
  void settle(const char* call);
  std::string text_of(ncclResult_t code, std::string_view call) const;
  template <typename Calls>
  void group(const char* name, Calls&& calls);
  /// f(first byte, bytes) for pieces of whole elements.
  template <typename F>
  void in_pieces(std::size_t bytes, std::size_t item, F&& f) const {
    const std::size_t most = std::max<std::size_t>(options_.most_bytes / item, 1) * item;
    for (std::size_t at = 0; at < bytes; at += most) f(at, std::min(most, bytes - at));
  }
  bool in_equal_blocks(std::span<const RowRange> ranges) const;
  cudaStream_t stream() const { return static_cast<cudaStream_t>(queue_.native()); }

  const NcclLibrary& nccl_ = nccl_library();
  Communicator& host_;
  DeviceQueue& queue_;
  const NcclOptions options_;
  mutable std::mutex mutex_;  // against the watchdog's thread, which asks for trouble
  ncclComm_t comm_ = nullptr;
  bool aborted_ = false;
  std::atomic<const char*> last_call_{"its making"};
  const int exceptions_ = std::uncaught_exceptions();
};

std::uint8_t* bytes_of(const TensorView& x) { return static_cast<std::uint8_t*>(x.raw()); }
std::size_t row_bytes(const TensorView& x) { return idx(x.shape().tail().numel()) * size_of(x.dtype()); }

NcclTransport::NcclTransport(Communicator& host, DeviceQueue& queue, const NcclOptions& options)
    : host_(host), queue_(queue), options_(options) {
  const std::string missing = first_text(host, nccl_.missing);
  require<UsageError>(missing.empty(), "parallel.communicator = nccl: {}", missing);
  ncclUniqueId id{};
  const ncclResult_t got = host.rank() == 0 ? nccl_.GetUniqueId(&id) : ncclSuccess;
  const std::string failed = first_text(host, got == ncclSuccess ? "" : text_of(got, "ncclGetUniqueId"));
  require<CommError>(failed.empty(), "{}", failed);
  host.broadcast(TensorView(id.internal, DType::U8, {static_cast<std::int64_t>(sizeof id.internal)}), 0);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  finish_init(nccl_.CommInitRankConfig(&comm_, host.size(), id, host.rank(), &config), nullptr);
}

NcclTransport::NcclTransport(const NcclTransport& parent, int color, int key, Communicator& host, DeviceQueue& queue)
    : host_(host), queue_(queue), options_(parent.options_) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  finish_init(nccl_.CommSplit(parent.comm_, color, key, &comm_, &config), parent.comm_);
}

ncclResult_t NcclTransport::state_of(ncclComm_t comm) const {
  ncclResult_t state = ncclSuccess;
  const ncclResult_t code = nccl_.CommGetAsyncError(comm, &state);
  return code == ncclSuccess ? state : code;
}

// All ranks look together, so that a failure of one ends all of them, and none waits for a rank that has given up.
void NcclTransport::finish_init(ncclResult_t code, ncclComm_t parent) {
  const auto since = Clock::now();
  for (;;) {
    if (code == ncclInProgress || code == ncclSuccess) code = parent != nullptr ? state_of(parent) : ncclSuccess;
    if (code == ncclSuccess && comm_ != nullptr) code = state_of(comm_);
    const bool late = code == ncclInProgress && over(since, options_.init_s);
    const std::int64_t worst = largest_of_ranks(host_, code == ncclSuccess               ? 0
                                                       : code == ncclInProgress && !late ? 1
                                                                                         : 2);
    if (worst == 0) return;
    if (worst == 1) {
      pause();
      continue;
    }
    std::string own;
    if (late) own = fmt::format("NCCL did not connect the ranks within {:.0f} s", options_.init_s);
    if (!late && code != ncclSuccess && code != ncclInProgress) own = text_of(code, "making a communicator");
    const std::string first = first_text(host_, own);
    if (comm_ != nullptr) nccl_.CommAbort(std::exchange(comm_, nullptr));
    fail<CommError>("{}. NCCL_DEBUG=INFO shows what NCCL does", first);
  }
}

// Never waits for long: a peer that has gone would never come.
NcclTransport::~NcclTransport() {
  if (comm_ == nullptr) return;
  bool well = std::uncaught_exceptions() == exceptions_;
  try {
    const auto since = Clock::now();
    const auto done = queue_.record();
    while (well && !done->passed()) {
      well = trouble().empty() && !over(since, options_.end_s);
      pause();
    }
    if (well) well = trouble().empty();
    ncclResult_t state = well ? nccl_.CommFinalize(comm_) : ncclInternalError;
    while (state == ncclInProgress && !over(since, options_.end_s)) {
      if (nccl_.CommGetAsyncError(comm_, &state) != ncclSuccess) state = ncclInternalError;
      pause();
    }
    well = state == ncclSuccess;
  } catch (const std::exception&) {
    well = false;  // the device failed
  }
  if (well)
    nccl_.CommDestroy(comm_);
  else
    abort();
}

void NcclTransport::abort() noexcept {
  const std::lock_guard lock(mutex_);
  aborted_ = true;
  if (comm_ != nullptr) nccl_.CommAbort(std::exchange(comm_, nullptr));
}

std::string NcclTransport::text_of(ncclResult_t code, std::string_view call) const {
  const char* const detail = nccl_.GetLastError(comm_);
  return fmt::format("NCCL on rank {} of {}: {} failed: {}{}: {}", host_.rank(), host_.size(), call,
                     nccl_.GetErrorString(code),
                     detail == nullptr || *detail == '\0' ? "" : fmt::format(" ({})", detail), cure_of(code));
}

std::string NcclTransport::trouble() const {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock || comm_ == nullptr) return {};  // in a call; or what there was to say was said when it was ended
  const ncclResult_t state = state_of(comm_);
  return state == ncclSuccess || state == ncclInProgress ? "" : text_of(state, last_call_.load());
}

void NcclTransport::check(ncclResult_t code, const char* call) {
  if (code == ncclSuccess) [[likely]]
    return;
  if (code == ncclInProgress) return settle(call);
  fail<CommError>("{}", text_of(code, call));
}

void NcclTransport::settle(const char* call) {
  const auto since = Clock::now();
  ncclResult_t state = ncclInProgress;
  while (state == ncclInProgress) {
    state = locked([&] { return state_of(comm_); });
    require<CommError>(!over(since, options_.init_s), "NCCL on rank {} of {}: {} has not begun after {:.0f} s",
                       host_.rank(), host_.size(), call, options_.init_s);
    if (state == ncclInProgress) std::this_thread::yield();
  }
  if (state != ncclSuccess) fail<CommError>("{}", text_of(state, call));
}

void NcclTransport::begin(const char* call) {
  last_call_ = call;
  require<CommError>(!aborted_, "NCCL on rank {} of {}: {} after its communicator was ended", host_.rank(),
                     host_.size(), call);
}

template <typename Calls>
void NcclTransport::group(const char* name, Calls&& calls) {
  begin(name);
  ncclResult_t failed = ncclSuccess;
  const ncclResult_t ended = locked([&] {
    if (const ncclResult_t begun = nccl_.GroupStart(); begun != ncclSuccess) return begun;
    calls([&](ncclResult_t code) {
      if (code != ncclSuccess && code != ncclInProgress && failed == ncclSuccess) failed = code;
    });
    return nccl_.GroupEnd();  // a group that was begun is ended in any case
  });
  check(failed, name);
  check(ended, name);
}

void NcclTransport::all_reduce(TensorView x, ReduceOp op) {
  const ncclRedOp_t how = op == ReduceOp::Sum ? ncclSum : ncclMax;
  const std::size_t item = size_of(x.dtype());
  in_pieces(x.bytes(), item, [&](std::size_t at, std::size_t n) {
    begin("all_reduce");
    check(locked([&] {
            return nccl_.AllReduce(bytes_of(x) + at, bytes_of(x) + at, n / item, type_of(x.dtype()), how, comm_,
                                   stream());
          }),
          "all_reduce");
  });
}

// What only travels, travels as bytes.
void NcclTransport::all_gather(TensorView out, TensorView in) {
  begin("all_gather");
  if (in.bytes() > 0)
    check(locked([&] { return nccl_.AllGather(in.raw(), out.raw(), in.bytes(), ncclUint8, comm_, stream()); }),
          "all_gather");
}

void NcclTransport::broadcast(TensorView x, int root) {
  in_pieces(x.bytes(), 1, [&](std::size_t at, std::size_t n) {
    begin("broadcast");
    check(locked(
              [&] { return nccl_.Broadcast(bytes_of(x) + at, bytes_of(x) + at, n, ncclUint8, root, comm_, stream()); }),
          "broadcast");
  });
}

/// Rank r's rows are the r-th of equal blocks: NCCL has calls of its own for that.
bool NcclTransport::in_equal_blocks(std::span<const RowRange> ranges) const {
  if (ranges.size() != idx(host_.size())) return false;
  const std::int64_t first = ranges.front().begin, each = ranges.front().end - first;
  for (std::size_t r = 0; r < ranges.size(); ++r) {
    const auto i = static_cast<std::int64_t>(r);
    if (ranges[r] != RowRange{first + i * each, first + (i + 1) * each, static_cast<int>(r)}) return false;
  }
  return true;
}

void NcclTransport::all_gather_v(TensorView x, std::span<const RowRange> ranges) {
  const std::size_t row = row_bytes(x);
  if (ranges.empty() || row == 0) return;
  if (in_equal_blocks(ranges)) {
    const std::size_t each = idx(ranges[0].end - ranges[0].begin) * row;
    std::uint8_t* const all = bytes_of(x) + idx(ranges[0].begin) * row;
    begin("all_gather_v");
    return check(
        locked([&] { return nccl_.AllGather(all + idx(host_.rank()) * each, all, each, ncclUint8, comm_, stream()); }),
        "all_gather_v");
  }
  for (std::size_t from = 0; from < ranges.size(); from += kRangesOfGroup)
    group("all_gather_v", [&](auto&& note) {
      for (const RowRange& r : ranges.subspan(from, std::min(kRangesOfGroup, ranges.size() - from)))
        in_pieces(idx(r.end - r.begin) * row, 1, [&](std::size_t at, std::size_t n) {
          std::uint8_t* const p = bytes_of(x) + idx(r.begin) * row + at;
          note(nccl_.Broadcast(p, p, n, ncclUint8, r.owner, comm_, stream()));
        });
    });
}

void NcclTransport::reduce_scatter(TensorView x, std::span<const RowRange> ranges) {
  const std::size_t row = row_bytes(x), item = size_of(x.dtype());
  if (ranges.empty() || row == 0) return;
  const ncclDataType_t type = type_of(x.dtype());
  if (in_equal_blocks(ranges)) {
    const std::size_t each = idx(ranges[0].end - ranges[0].begin) * row;
    std::uint8_t* const all = bytes_of(x) + idx(ranges[0].begin) * row;
    begin("reduce_scatter");
    return check(locked([&] {
                   return nccl_.ReduceScatter(all, all + idx(host_.rank()) * each, each / item, type, ncclSum, comm_,
                                              stream());
                 }),
                 "reduce_scatter");
  }
  for (std::size_t from = 0; from < ranges.size(); from += kRangesOfGroup)
    group("reduce_scatter", [&](auto&& note) {
      for (const RowRange& r : ranges.subspan(from, std::min(kRangesOfGroup, ranges.size() - from)))
        in_pieces(idx(r.end - r.begin) * row, item, [&](std::size_t at, std::size_t n) {
          std::uint8_t* const p = bytes_of(x) + idx(r.begin) * row + at;
          note(nccl_.Reduce(p, p, n / item, type, ncclSum, r.owner, comm_, stream()));
        });
    });
}

// One group for all tensors: sends and receives of a pair meet in the order in which they are named. Pairs without rows
// exchange no message.
void NcclTransport::exchange_start(std::span<const RowTransfer> transfers) {
  const auto any = [](std::span<const std::int64_t> rows) {
    return std::any_of(rows.begin(), rows.end(), [](std::int64_t n) { return n > 0; });
  };
  if (std::none_of(transfers.begin(), transfers.end(),
                   [&](const RowTransfer& t) { return any(t.send_rows) || any(t.recv_rows); }))
    return;
  group("all_to_all_v", [&](auto&& note) {
    for (const RowTransfer& t : transfers) {
      const std::size_t row = row_bytes(t.in);
      std::uint8_t *from = bytes_of(t.in), *to = bytes_of(t.out);
      for (int r = 0; r < host_.size(); ++r) {
        const std::size_t sent = idx(t.send_rows[idx(r)]) * row, received = idx(t.recv_rows[idx(r)]) * row;
        in_pieces(sent, 1, [&](std::size_t at, std::size_t n) {
          note(nccl_.Send(from + at, n, ncclUint8, r, comm_, stream()));
        });
        in_pieces(received, 1,
                  [&](std::size_t at, std::size_t n) { note(nccl_.Recv(to + at, n, ncclUint8, r, comm_, stream())); });
        from += sent, to += received;
      }
    }
  });
}

}  // namespace

std::string no_nccl() { return nccl_library().missing; }

std::string nccl_version() {
  int version = 0;
  const NcclLibrary& nccl = nccl_library();
  if (nccl.GetVersion == nullptr || nccl.GetVersion(&version) != ncclSuccess) return {};
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

std::unique_ptr<DeviceTransport> make_nccl_transport(Communicator& host, DeviceQueue& queue,
                                                     const NcclOptions& options) {
  return std::make_unique<NcclTransport>(host, queue, options);
}

}  // namespace emox
