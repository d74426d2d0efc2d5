#include "parallel/comm/mpi_communicator.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "parallel/comm/arguments.h"
#include "parallel/comm/reduce.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

std::byte* bytes_of(const TensorView& t) { return static_cast<std::byte*>(t.raw()); }

void copy_bytes(void* to, const void* from, std::size_t bytes) {
  if (bytes != 0 && to != from) std::memcpy(to, from, bytes);
}

MPI_Datatype type_of(DType t) {
  switch (t) {
    case DType::F32:
      return MPI_FLOAT;
    case DType::F64:
      return MPI_DOUBLE;
    case DType::I32:
      return MPI_INT32_T;
    case DType::I64:
      return MPI_INT64_T;
    case DType::U8:
      break;
  }
  return MPI_BYTE;
}

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(MpiComm comm, MpiTuning tuning)
      : comm_(std::move(comm)), tuning_(tuning), rank_(comm_.rank()), size_(comm_.size()) {
    const MpiComm node =
        tuning.node < 0 ? MpiComm::shared_memory_part(comm_.get()) : MpiComm::split(comm_.get(), tuning.node, 0);
    node_rank_ = node.rank();
    node_size_ = node.size();
  }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int node_size() const override { return node_size_; }
  int node_rank() const override { return node_rank_; }
  std::string_view transport() const override { return "mpi"; }

  void all_reduce(TensorView x, ReduceOp op) override;
  void all_gather(TensorView out, TensorView in) override;
  void reduce_scatter(TensorView out, TensorView in) override;
  void broadcast(TensorView x, int root) override;
  void all_to_all_v(TensorView out, std::span<const std::int64_t> recv_rows, TensorView in,
                    std::span<const std::int64_t> send_rows) override;
  void barrier() override { MPI_CHECK(MPI_Barrier(comm_.get())); }
  std::unique_ptr<Communicator> split(int color, int key) override {
    check_split(color);
    return make_mpi_communicator(MpiComm::split(comm_.get(), color, key), tuning_);
  }

 private:
  /// The peer `step` places further: every rank starts with another one, so that no rank is everybody's first.
  int peer(int step) const { return (rank_ + step) % size_; }

  MpiComm comm_;
  MpiTuning tuning_;
  int rank_;
  int size_;
  int node_rank_ = 0;
  int node_size_ = 1;
  std::vector<std::byte> staging_;  // of reduce_scatter; kept, so that later calls allocate nothing
};

void MpiCommunicator::all_reduce(TensorView x, ReduceOp op) {
  check_all_reduce(x);
  // In pieces: past the cache, MPI's temporary buffers cost more than the additional calls.
  const auto piece = static_cast<std::int64_t>(std::max<std::size_t>(1, tuning_.reduce_piece / size_of(x.dtype())));
  for (std::int64_t begin = 0; begin < x.numel(); begin += piece) {
    std::byte* p = bytes_of(x) + static_cast<std::size_t>(begin) * size_of(x.dtype());
    const int count = static_cast<int>(std::min(piece, x.numel() - begin));
    MPI_CHECK(MPI_Allreduce(MPI_IN_PLACE, p, count, type_of(x.dtype()), op == ReduceOp::Sum ? MPI_SUM : MPI_MAX,
                            comm_.get()));
  }
}

void MpiCommunicator::all_gather(TensorView out, TensorView in) {
  check_all_gather(out, in, size_);
  const std::size_t block = in.bytes();
  std::byte* mine = bytes_of(out) + static_cast<std::size_t>(rank_) * block;
  copy_bytes(mine, in.raw(), block);
  if (out.bytes() <= tuning_.max_message) {
    const int n = static_cast<int>(block);
    MPI_CHECK(MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, out.raw(), n, MPI_BYTE, comm_.get()));
    return;
  }
  MpiExchange exchange(comm_.get(), tuning_.max_message);
  for (int step = 1; step < size_; ++step) {
    const int from = peer(size_ - step);
    exchange.receive(bytes_of(out) + static_cast<std::size_t>(from) * block, block, from);
  }
  for (int step = 1; step < size_; ++step) exchange.send(mine, block, peer(step));
  exchange.wait();
}

void MpiCommunicator::reduce_scatter(TensorView out, TensorView in) {
  check_reduce_scatter(out, in, size_);
  // Every rank collects its block from all ranks, piece by piece, and adds in rank order: each byte crosses the wire
  // once, the sum has a fixed order, and the staging buffer stays small.
  const std::size_t item = size_of(in.dtype());
  const std::size_t ranks = static_cast<std::size_t>(size_);
  const std::size_t piece = std::max<std::size_t>(tuning_.reduce_piece / ranks / item, 1) * item;
  staging_.resize(std::max(staging_.size(), ranks * std::min(piece, out.bytes())));
  MpiExchange exchange(comm_.get(), tuning_.max_message);
  std::vector<const void*> parts(ranks);
  for (std::size_t begin = 0; begin < out.bytes(); begin += piece) {
    const std::size_t bytes = std::min(piece, out.bytes() - begin);
    const auto part_of = [&](int block) {
      return bytes_of(in) + static_cast<std::size_t>(block) * out.bytes() + begin;
    };
    for (std::size_t r = 0; r < ranks; ++r) parts[r] = staging_.data() + r * bytes;
    for (int step = 1; step < size_; ++step) {
      const int from = peer(size_ - step);
      exchange.receive(staging_.data() + static_cast<std::size_t>(from) * bytes, bytes, from);
    }
    for (int step = 1; step < size_; ++step) exchange.send(part_of(peer(step)), bytes, peer(step));
    copy_bytes(staging_.data() + static_cast<std::size_t>(rank_) * bytes, part_of(rank_), bytes);
    exchange.wait();
    void* const to = bytes_of(out) + begin;
    reduce_in_rank_order(parts, {&to, 1}, static_cast<std::int64_t>(bytes / item), in.dtype(), ReduceOp::Sum);
  }
}

void MpiCommunicator::broadcast(TensorView x, int root) {
  check_broadcast(x, root, size_);
  for (std::size_t done = 0; done < x.bytes(); done += tuning_.max_message) {
    const int n = static_cast<int>(std::min(tuning_.max_message, x.bytes() - done));
    MPI_CHECK(MPI_Bcast(bytes_of(x) + done, n, MPI_BYTE, root, comm_.get()));
  }
}

void MpiCommunicator::all_to_all_v(TensorView out, std::span<const std::int64_t> recv_rows, TensorView in,
                                   std::span<const std::int64_t> send_rows) {
  const std::size_t row_bytes = check_all_to_all_v(out, recv_rows, in, send_rows, size_);
  // Point to point instead of MPI_Alltoallv: its int displacements overflow, and whether to cut must be agreed by each
  // pair only, not by all ranks.
  std::vector<std::size_t> recv_at(recv_rows.size()), send_at(send_rows.size());
  for (std::size_t r = 1; r < send_at.size(); ++r) {
    recv_at[r] = recv_at[r - 1] + static_cast<std::size_t>(recv_rows[r - 1]) * row_bytes;
    send_at[r] = send_at[r - 1] + static_cast<std::size_t>(send_rows[r - 1]) * row_bytes;
  }
  const auto self = static_cast<std::size_t>(rank_);
  require<ShapeError>(send_rows[self] == recv_rows[self], "all_to_all_v: {} rows sent to oneself, {} expected",
                      send_rows[self], recv_rows[self]);
  MpiExchange exchange(comm_.get(), tuning_.max_message);
  for (int step = 1; step < size_; ++step) {
    const auto from = static_cast<std::size_t>(peer(size_ - step));
    exchange.receive(bytes_of(out) + recv_at[from], static_cast<std::size_t>(recv_rows[from]) * row_bytes,
                     static_cast<int>(from));
  }
  for (int step = 1; step < size_; ++step) {
    const auto to = static_cast<std::size_t>(peer(step));
    exchange.send(bytes_of(in) + send_at[to], static_cast<std::size_t>(send_rows[to]) * row_bytes,
                  static_cast<int>(to));
  }
  if (send_rows[self] != 0)
    copy_bytes(bytes_of(out) + recv_at[self], bytes_of(in) + send_at[self],
               static_cast<std::size_t>(send_rows[self]) * row_bytes);
  exchange.wait();
}

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(MpiComm comm, MpiTuning tuning) {
  return std::make_unique<MpiCommunicator>(std::move(comm), tuning);
}

}  // namespace emox
