#include "parallel/comm/mpi_communicator.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "parallel/comm/layout.h"
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

/// Where each rank's block of rows lies.
class Blocks {
 public:
  Blocks(std::span<const std::int64_t> cuts, std::size_t row) : cuts_(cuts), row_(row) {}
  std::size_t begin(int rank) const { return static_cast<std::size_t>(cuts_[static_cast<std::size_t>(rank)]) * row_; }
  std::size_t bytes(int rank) const { return begin(rank + 1) - begin(rank); }
  std::size_t largest() const {
    std::size_t most = 0;
    for (int r = 0; r + 1 < static_cast<int>(cuts_.size()); ++r) most = std::max(most, bytes(r));
    return most;
  }

 private:
  std::span<const std::int64_t> cuts_;
  std::size_t row_;
};

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(MpiComm comm, MpiTuning tuning)
      : comm_(std::move(comm)),
        tuning_(tuning),
        rank_(comm_.rank()),
        size_(comm_.size()),
        exchange_(comm_.get(), tuning.max_message) {
    const MpiComm node =
        tuning.node < 0 ? MpiComm::shared_memory_part(comm_.get()) : MpiComm::split(comm_.get(), tuning.node, 0);
    // Inside a node the order is that of the ranks: its first rank is the lowest.
    int first = rank_;
    MPI_CHECK(MPI_Bcast(&first, 1, MPI_INT, 0, node.get()));
    std::vector<int> firsts(static_cast<std::size_t>(size_));
    MPI_CHECK(MPI_Allgather(&first, 1, MPI_INT, firsts.data(), 1, MPI_INT, comm_.get()));
    nodes_ = number_nodes(firsts);
  }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::vector<int>& nodes() const override { return nodes_; }
  std::string_view transport() const override { return "mpi"; }

 private:
  void do_all_reduce(TensorView x, ReduceOp op) override;
  void do_all_gather(TensorView out, TensorView in) override;
  void do_all_gather_v(TensorView x, std::span<const std::int64_t> cuts) override;
  void do_reduce_scatter(TensorView x, std::span<const std::int64_t> cuts) override;
  void do_broadcast(TensorView x, int root) override;
  void do_all_to_all_v_start(const RowExchange& e) override;
  void do_all_to_all_v_finish(const RowExchange&) override { exchange_.wait(); }
  void do_all_to_all_v_abandon() noexcept override { exchange_.abandon(); }
  void do_barrier() override { MPI_CHECK(MPI_Barrier(comm_.get())); }
  std::unique_ptr<Communicator> do_split(int color, int key) override {
    return make_mpi_communicator(MpiComm::split(comm_.get(), color, key), tuning_);
  }

  /// Of floats: MPI's own sum has an order that may follow the nodes, which another start of the job can change.
  void sum_in_rank_order(TensorView x);
  /// The peer `step` places further: every rank starts with another one, so that no rank is everybody's first.
  int peer(int step) const { return (rank_ + step) % size_; }

  MpiComm comm_;
  MpiTuning tuning_;
  int rank_;
  int size_;
  std::vector<int> nodes_;
  MpiExchange exchange_;            // messages under way: between the halves of all_to_all_v, or inside one call
  std::vector<std::byte> staging_;  // of sums; kept, so that later calls allocate nothing
};

void MpiCommunicator::sum_in_rank_order(TensorView x) {
  const std::size_t ranks = static_cast<std::size_t>(size_), block = x.bytes();
  if (ranks * block > tuning_.reduce_piece) {  // more than everybody should receive from everybody
    std::vector<std::int64_t> cuts;
    for (int r = 0; r <= size_; ++r) cuts.push_back(x.numel() * r / size_);
    const TensorView flat = x.reshape({x.numel()});
    do_reduce_scatter(flat, cuts);
    do_all_gather_v(flat, cuts);
    return;
  }
  if (block == 0) return;
  staging_.resize(std::max(staging_.size(), ranks * block));
  const int n = static_cast<int>(block);
  MPI_CHECK(MPI_Allgather(x.raw(), n, MPI_BYTE, staging_.data(), n, MPI_BYTE, comm_.get()));
  std::vector<const void*> parts;
  for (std::size_t r = 0; r < ranks; ++r) parts.push_back(staging_.data() + r * block);
  void* const out = x.raw();
  reduce_in_rank_order(parts, {&out, 1}, x.numel(), x.dtype(), ReduceOp::Sum);
}

void MpiCommunicator::do_all_reduce(TensorView x, ReduceOp op) {
  if (op == ReduceOp::Sum && (x.dtype() == DType::F32 || x.dtype() == DType::F64)) return sum_in_rank_order(x);
  // In pieces: past the cache, MPI's temporary buffers cost more than the additional calls.
  const auto piece = static_cast<std::int64_t>(std::max<std::size_t>(1, tuning_.reduce_piece / size_of(x.dtype())));
  for (std::int64_t begin = 0; begin < x.numel(); begin += piece) {
    std::byte* p = bytes_of(x) + static_cast<std::size_t>(begin) * size_of(x.dtype());
    const int count = static_cast<int>(std::min(piece, x.numel() - begin));
    MPI_CHECK(MPI_Allreduce(MPI_IN_PLACE, p, count, type_of(x.dtype()), op == ReduceOp::Sum ? MPI_SUM : MPI_MAX,
                            comm_.get()));
  }
}

void MpiCommunicator::do_all_gather(TensorView out, TensorView in) {
  const std::size_t block = in.bytes();
  std::byte* mine = bytes_of(out) + static_cast<std::size_t>(rank_) * block;
  copy_bytes(mine, in.raw(), block);
  if (out.bytes() <= tuning_.max_message) {
    const int n = static_cast<int>(block);
    MPI_CHECK(MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, out.raw(), n, MPI_BYTE, comm_.get()));
    return;
  }
  for (int step = 1; step < size_; ++step) {
    const int from = peer(size_ - step);
    exchange_.receive(bytes_of(out) + static_cast<std::size_t>(from) * block, block, from);
  }
  for (int step = 1; step < size_; ++step) exchange_.send(mine, block, peer(step));
  exchange_.wait();
}

void MpiCommunicator::do_all_gather_v(TensorView x, std::span<const std::int64_t> cuts) {
  const Blocks blocks(cuts, row_bytes(x));
  if (x.bytes() <= tuning_.max_message) {
    std::vector<int> counts, offsets;
    for (int r = 0; r < size_; ++r) {
      counts.push_back(static_cast<int>(blocks.bytes(r)));
      offsets.push_back(static_cast<int>(blocks.begin(r)));
    }
    MPI_CHECK(MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, x.raw(), counts.data(), offsets.data(), MPI_BYTE,
                             comm_.get()));
    return;
  }
  for (int step = 1; step < size_; ++step) {
    const int from = peer(size_ - step);
    exchange_.receive(bytes_of(x) + blocks.begin(from), blocks.bytes(from), from);
  }
  for (int step = 1; step < size_; ++step)
    exchange_.send(bytes_of(x) + blocks.begin(rank_), blocks.bytes(rank_), peer(step));
  exchange_.wait();
}

void MpiCommunicator::do_reduce_scatter(TensorView x, std::span<const std::int64_t> cuts) {
  // Every rank collects its block from all ranks, piece by piece, and adds in rank order: each byte crosses the wire
  // once, the sum has a fixed order, and the staging buffer stays small.
  const Blocks blocks(cuts, row_bytes(x));
  const std::size_t item = size_of(x.dtype());
  const std::size_t ranks = static_cast<std::size_t>(size_);
  const std::size_t piece = std::max<std::size_t>(tuning_.reduce_piece / ranks / item, 1) * item;
  staging_.resize(std::max(staging_.size(), ranks * std::min(piece, blocks.bytes(rank_))));
  std::vector<const void*> parts(ranks);
  for (std::size_t begin = 0; begin < blocks.largest(); begin += piece) {
    const auto size_in = [&](int r) { return begin < blocks.bytes(r) ? std::min(piece, blocks.bytes(r) - begin) : 0; };
    const std::size_t bytes = size_in(rank_);
    for (int step = 1; step < size_; ++step) {
      const auto from = static_cast<std::size_t>(peer(size_ - step));
      parts[from] = staging_.data() + from * bytes;
      exchange_.receive(staging_.data() + from * bytes, bytes, static_cast<int>(from));
    }
    for (int step = 1; step < size_; ++step) {
      const int to = peer(step);
      if (size_in(to) != 0) exchange_.send(bytes_of(x) + blocks.begin(to) + begin, size_in(to), to);
    }
    exchange_.wait();
    if (bytes == 0) continue;  // the others' blocks are longer
    void* const mine = bytes_of(x) + blocks.begin(rank_) + begin;
    parts[static_cast<std::size_t>(rank_)] = mine;
    reduce_in_rank_order(parts, {&mine, 1}, static_cast<std::int64_t>(bytes / item), x.dtype(), ReduceOp::Sum);
  }
}

void MpiCommunicator::do_broadcast(TensorView x, int root) {
  for (std::size_t done = 0; done < x.bytes(); done += tuning_.max_message) {
    const int n = static_cast<int>(std::min(tuning_.max_message, x.bytes() - done));
    MPI_CHECK(MPI_Bcast(bytes_of(x) + done, n, MPI_BYTE, root, comm_.get()));
  }
}

void MpiCommunicator::do_all_to_all_v_start(const RowExchange& e) {
  // Point to point instead of MPI_Alltoallv: its int displacements overflow, and whether to cut must be agreed by each
  // pair only, not by all ranks.
  const std::size_t row = row_bytes(e.in);
  const std::size_t ranks = static_cast<std::size_t>(size_);
  std::vector<std::size_t> recv_at(ranks), send_at(ranks);
  for (std::size_t r = 1; r < ranks; ++r) {
    recv_at[r] = recv_at[r - 1] + static_cast<std::size_t>(e.recv_rows[r - 1]) * row;
    send_at[r] = send_at[r - 1] + static_cast<std::size_t>(e.send_rows[r - 1]) * row;
  }
  for (int step = 1; step < size_; ++step) {
    const auto from = static_cast<std::size_t>(peer(size_ - step));
    exchange_.receive(bytes_of(e.out) + recv_at[from], static_cast<std::size_t>(e.recv_rows[from]) * row,
                      static_cast<int>(from));
  }
  for (int step = 1; step < size_; ++step) {
    const auto to = static_cast<std::size_t>(peer(step));
    exchange_.send(bytes_of(e.in) + send_at[to], static_cast<std::size_t>(e.send_rows[to]) * row, static_cast<int>(to));
  }
  const auto self = static_cast<std::size_t>(rank_);
  if (e.send_rows[self] != 0)
    copy_bytes(bytes_of(e.out) + recv_at[self], bytes_of(e.in) + send_at[self],
               static_cast<std::size_t>(e.send_rows[self]) * row);
}

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(MpiComm comm, MpiTuning tuning) {
  return std::make_unique<MpiCommunicator>(std::move(comm), tuning);
}

}  // namespace emox
