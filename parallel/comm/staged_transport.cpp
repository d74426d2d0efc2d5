#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "parallel/comm/device_transport.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/core/pinned.h"

namespace emox {
namespace {

/// What a large tensor is moved in pieces of, so that a whole model's gradients need no copy in host memory.
constexpr std::int64_t kPiece = std::int64_t{64} << 20;

std::size_t item_bytes(const TensorView& x) { return idx(x.shape().tail().numel()) * size_of(x.dtype()); }

class StagedTransport final : public DeviceTransport {
 public:
  StagedTransport(Communicator& host, DeviceQueue& queue) : host_(host), queue_(queue) {}
  // Copies out of pinned memory may be under way.
  ~StagedTransport() override {
    try {
      queue_.synchronize();
    } catch (const std::exception&) {  // the device failed: it copies nothing any more
    }
  }
  StagedTransport(const StagedTransport&) = delete;
  StagedTransport& operator=(const StagedTransport&) = delete;

  std::string_view name() const override { return "staged"; }

  void all_reduce(TensorView x, ReduceOp op) override {
    in_pieces(x, [&](TensorView piece, std::int64_t) { host_.all_reduce(piece, op); });
  }
  void all_gather(TensorView out, TensorView in) override {
    const std::size_t bytes = in.bytes();
    if (out.bytes() == 0) return;
    room(memory_, bytes + out.bytes());
    auto* const own = static_cast<std::uint8_t*>(memory_.data());
    queue_.copy_to_pinned(own, in.raw(), bytes);
    queue_.synchronize();
    host_.all_gather(TensorView(own + bytes, out.dtype(), {out.numel()}), TensorView(own, in.dtype(), {in.numel()}));
    queue_.copy_from_pinned(out.raw(), own + bytes, out.bytes());
  }
  void all_gather_v(TensorView x, std::span<const RowRange> ranges) override {
    in_row_pieces(x, ranges, [&](TensorView piece, std::span<const RowRange> r) { host_.all_gather_v(piece, r); });
  }
  void reduce_scatter(TensorView x, std::span<const RowRange> ranges) override {
    in_row_pieces(x, ranges, [&](TensorView piece, std::span<const RowRange> r) { host_.reduce_scatter(piece, r); });
  }
  void broadcast(TensorView x, int root) override {
    in_pieces(x, [&](TensorView piece, std::int64_t) { host_.broadcast(piece, root); });
  }

  void exchange_start(std::span<const RowTransfer> transfers) override {
    std::size_t bytes = 0;
    for (const RowTransfer& t : transfers) bytes += t.in.bytes() + t.out.bytes();
    room(exchanged_, bytes);
    auto* at = static_cast<std::uint8_t*>(exchanged_.data());
    open_.clear();
    for (const RowTransfer& t : transfers) {
      const auto here = [&](const TensorView& x) {
        TensorView copy(x.bytes() == 0 ? nullptr : at, x.dtype(), x.shape());
        at += x.bytes();
        return copy;
      };
      const TensorView in = here(t.in), out = here(t.out);
      queue_.copy_to_pinned(in.raw(), t.in.raw(), in.bytes());
      open_.push_back({out, t.recv_rows, in, t.send_rows});
    }
    queue_.synchronize();
    host_.all_to_all_v_start(open_);
  }
  void exchange_finish(std::span<const RowTransfer> transfers) override {
    host_.all_to_all_v_finish();
    for (std::size_t i = 0; i < transfers.size(); ++i)
      queue_.copy_from_pinned(transfers[i].out.raw(), open_[i].out.raw(), transfers[i].out.bytes());
  }

  std::unique_ptr<DeviceTransport> split(int, int, Communicator& host, DeviceQueue& queue) override {
    return make_staged_transport(host, queue);
  }

 private:
  /// Memory that copies under way may still read has to wait for them before it grows.
  void room(PinnedMemory& memory, std::size_t bytes) {
    if (bytes > memory.bytes() && memory.bytes() > 0) queue_.synchronize();
    memory.ensure(bytes);
  }

  /// f(piece in host memory, its first element) for the elements of x; what it leaves goes back.
  template <typename F>
  void in_pieces(TensorView x, F&& f) {
    const auto size = static_cast<std::int64_t>(size_of(x.dtype()));
    const std::int64_t most = kPiece / size, n = x.numel();
    const TensorView flat = x.reshape({n});
    for (std::int64_t from = 0; from < n; from += most) {
      const TensorView piece = flat.rows(from, std::min(n, from + most));
      room(memory_, piece.bytes());
      queue_.copy_to_pinned(memory_.data(), piece.raw(), piece.bytes());
      queue_.synchronize();  // the copy of the piece before has left, too
      f(TensorView(memory_.data(), x.dtype(), piece.shape()), from);
      queue_.copy_from_pinned(piece.raw(), memory_.data(), piece.bytes());
    }
  }
  /// The same by rows: f(piece, the parts of the ranges in it). Rows in no range stay where they are.
  template <typename F>
  void in_row_pieces(TensorView x, std::span<const RowRange> ranges, F&& f) {
    const std::int64_t most = std::max<std::int64_t>(1, kPiece / static_cast<std::int64_t>(item_bytes(x)));
    std::vector<RowRange> parts;  // of the piece that begins at `begin`
    std::int64_t begin = 0;
    const auto flush = [&] {
      if (!parts.empty()) move(x.rows(begin, begin + parts.back().end), parts, f);
      parts.clear();
    };
    for (const RowRange& r : ranges)
      for (std::int64_t from = r.begin; from < r.end;) {
        if (from >= begin + most) flush();
        if (parts.empty()) begin = from;
        const std::int64_t to = std::min(r.end, begin + most);
        parts.push_back({from - begin, to - begin, r.owner});
        from = to;
      }
    flush();
  }
  template <typename F>
  void move(TensorView rows, std::span<const RowRange> parts, F& f) {
    room(memory_, rows.bytes());
    queue_.copy_to_pinned(memory_.data(), rows.raw(), rows.bytes());
    queue_.synchronize();
    f(TensorView(memory_.data(), rows.dtype(), rows.shape()), parts);
    // Not beside the ranges: those rows are not the transfer's.
    for (const RowRange& r : parts) {
      const TensorView to = rows.rows(r.begin, r.end);
      queue_.copy_from_pinned(to.raw(), static_cast<std::uint8_t*>(memory_.data()) + idx(r.begin) * item_bytes(rows),
                              to.bytes());
    }
  }

  Communicator& host_;
  DeviceQueue& queue_;
  PinnedMemory memory_, exchanged_;
  std::vector<RowTransfer> open_;
};

}  // namespace

std::unique_ptr<DeviceTransport> make_staged_transport(Communicator& host, DeviceQueue& queue) {
  return std::make_unique<StagedTransport>(host, queue);
}

}  // namespace emox
