#include "parallel/comm/nccl/nccl_transport.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "parallel/comm/nccl/nccl_connection.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

/// Calls in a group of collectives, at most: NCCL keeps state for each until the group ends.
constexpr std::size_t kCallsOfGroup = 256;

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

std::uint8_t* bytes_of(const TensorView& x) { return static_cast<std::uint8_t*>(x.raw()); }
std::size_t row_bytes(const TensorView& x) { return idx(x.shape().tail().numel()) * size_of(x.dtype()); }

/// What one call moves.
struct Piece {
  std::size_t begin, bytes;
  int owner;
};

// What only travels, travels as bytes.
class NcclTransport final : public DeviceTransport {
 public:
  NcclTransport(Communicator& host, DeviceQueue& queue, const NcclOptions& options)
      : host_(host), queue_(queue), nccl_(host, queue, options) {}
  /// A part of `parent`.
  NcclTransport(NcclTransport& parent, int color, int key, Communicator& host, DeviceQueue& queue)
      : host_(host), queue_(queue), nccl_(parent.nccl_, color, key, host, queue) {}

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
  std::string trouble() const override { return nccl_.trouble(); }
  void abort() noexcept override { nccl_.abort(); }

 private:
  const NcclLibrary& lib() const { return nccl_.nccl(); }
  cudaStream_t stream() const { return static_cast<cudaStream_t>(queue_.native()); }
  /// f(first byte, bytes) for pieces of whole elements.
  template <typename F>
  void in_pieces(std::size_t bytes, std::size_t item, F&& f) const {
    const std::size_t most = std::max<std::size_t>(nccl_.options().most_bytes / item, 1) * item;
    for (std::size_t at = 0; at < bytes; at += most) f(at, std::min(most, bytes - at));
  }
  /// Bytes of each rank's rows, where rank r's are the r-th of equal blocks that need no cutting: NCCL has calls of its
  /// own for that. Else 0.
  std::size_t block_bytes(std::span<const RowRange> ranges, std::size_t row) const;
  void cut(std::span<const RowRange> ranges, std::size_t row, std::size_t item);
  /// f(communicator, piece) for all pieces, some hundred as one.
  template <typename F>
  void grouped(const char* name, F&& f) {
    const std::span<const Piece> all(pieces_);
    for (std::size_t from = 0; from < all.size(); from += kCallsOfGroup)
      nccl_.group(name, [&](ncclComm_t comm, auto&& note) {
        for (const Piece& p : all.subspan(from, std::min(kCallsOfGroup, all.size() - from))) note(f(comm, p));
      });
  }

  Communicator& host_;
  DeviceQueue& queue_;
  NcclConnection nccl_;
  std::vector<Piece> pieces_;  // of the call at hand
};

void NcclTransport::all_reduce(TensorView x, ReduceOp op) {
  const ncclRedOp_t how = op == ReduceOp::Sum ? ncclSum : ncclMax;
  const ncclDataType_t type = type_of(x.dtype());
  const std::size_t item = size_of(x.dtype());
  in_pieces(x.bytes(), item, [&](std::size_t at, std::size_t n) {
    std::uint8_t* const p = bytes_of(x) + at;
    nccl_.call("all_reduce",
               [&](ncclComm_t comm) { return lib().AllReduce(p, p, n / item, type, how, comm, stream()); });
  });
}

void NcclTransport::all_gather(TensorView out, TensorView in) {
  const std::size_t bytes = in.bytes();
  if (bytes == 0) return;
  if (bytes <= nccl_.options().most_bytes)
    return nccl_.call("all_gather", [&](ncclComm_t comm) {
      return lib().AllGather(in.raw(), out.raw(), bytes, ncclUint8, comm, stream());
    });
  pieces_.clear();
  for (int r = 0; r < host_.size(); ++r)
    in_pieces(bytes, 1, [&](std::size_t at, std::size_t n) { pieces_.push_back({idx(r) * bytes + at, n, r}); });
  grouped("all_gather", [&](ncclComm_t comm, const Piece& p) {
    std::uint8_t* const to = bytes_of(out) + p.begin;
    const std::uint8_t* const from = p.owner == host_.rank() ? bytes_of(in) + p.begin - idx(p.owner) * bytes : to;
    return lib().Broadcast(from, to, p.bytes, ncclUint8, p.owner, comm, stream());
  });
}

void NcclTransport::broadcast(TensorView x, int root) {
  in_pieces(x.bytes(), 1, [&](std::size_t at, std::size_t n) {
    std::uint8_t* const p = bytes_of(x) + at;
    nccl_.call("broadcast", [&](ncclComm_t comm) { return lib().Broadcast(p, p, n, ncclUint8, root, comm, stream()); });
  });
}

std::size_t NcclTransport::block_bytes(std::span<const RowRange> ranges, std::size_t row) const {
  if (ranges.size() != idx(host_.size())) return 0;
  const std::int64_t first = ranges.front().begin, each = ranges.front().end - first;
  for (std::size_t r = 0; r < ranges.size(); ++r) {
    const auto i = static_cast<std::int64_t>(r);
    if (ranges[r] != RowRange{first + i * each, first + (i + 1) * each, static_cast<int>(r)}) return 0;
  }
  const std::size_t bytes = idx(each) * row;
  return bytes <= nccl_.options().most_bytes ? bytes : 0;
}

void NcclTransport::cut(std::span<const RowRange> ranges, std::size_t row, std::size_t item) {
  pieces_.clear();
  for (const RowRange& r : ranges)
    in_pieces(idx(r.end - r.begin) * row, item, [&](std::size_t at, std::size_t n) {
      pieces_.push_back({idx(r.begin) * row + at, n, r.owner});
    });
}

void NcclTransport::all_gather_v(TensorView x, std::span<const RowRange> ranges) {
  const std::size_t row = row_bytes(x);
  if (const std::size_t each = block_bytes(ranges, row); each > 0) {
    std::uint8_t* const all = bytes_of(x) + idx(ranges[0].begin) * row;
    return nccl_.call("all_gather_v", [&](ncclComm_t comm) {
      return lib().AllGather(all + idx(host_.rank()) * each, all, each, ncclUint8, comm, stream());
    });
  }
  cut(ranges, row, 1);
  grouped("all_gather_v", [&](ncclComm_t comm, const Piece& p) {
    std::uint8_t* const at = bytes_of(x) + p.begin;
    return lib().Broadcast(at, at, p.bytes, ncclUint8, p.owner, comm, stream());
  });
}

void NcclTransport::reduce_scatter(TensorView x, std::span<const RowRange> ranges) {
  const std::size_t row = row_bytes(x), item = size_of(x.dtype());
  const ncclDataType_t type = type_of(x.dtype());
  if (const std::size_t each = block_bytes(ranges, row); each > 0) {
    std::uint8_t* const all = bytes_of(x) + idx(ranges[0].begin) * row;
    return nccl_.call("reduce_scatter", [&](ncclComm_t comm) {
      return lib().ReduceScatter(all, all + idx(host_.rank()) * each, each / item, type, ncclSum, comm, stream());
    });
  }
  cut(ranges, row, item);
  grouped("reduce_scatter", [&](ncclComm_t comm, const Piece& p) {
    std::uint8_t* const at = bytes_of(x) + p.begin;
    return lib().Reduce(at, at, p.bytes / item, type, ncclSum, p.owner, comm, stream());
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
  nccl_.group("all_to_all_v", [&](ncclComm_t comm, auto&& note) {
    for (const RowTransfer& t : transfers) {
      const std::size_t row = row_bytes(t.in);
      std::uint8_t *from = bytes_of(t.in), *to = bytes_of(t.out);
      for (int r = 0; r < host_.size(); ++r) {
        const std::size_t sent = idx(t.send_rows[idx(r)]) * row, received = idx(t.recv_rows[idx(r)]) * row;
        in_pieces(sent, 1,
                  [&](std::size_t at, std::size_t n) { note(lib().Send(from + at, n, ncclUint8, r, comm, stream())); });
        in_pieces(received, 1,
                  [&](std::size_t at, std::size_t n) { note(lib().Recv(to + at, n, ncclUint8, r, comm, stream())); });
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
