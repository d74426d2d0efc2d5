#include "parallel/comm/mpi_communicator.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "parallel/comm/layout.h"
#include "parallel/comm/reduce.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

std::byte* bytes_of(const TensorView& t) { return static_cast<std::byte*>(t.raw()); }

void copy_bytes(void* to, const void* from, std::size_t bytes) {
  if (bytes != 0 && to != from) std::memcpy(to, from, bytes);
}

constexpr std::size_t kAllReducePiece = std::size_t{4} << 20;

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
    case DType::BF16:
      break;
  }
  return MPI_BYTE;
}

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(MpiComm comm, MpiTuning tuning)
      : comm_(std::move(comm)),
        tuning_(tuning),
        rank_(comm_.rank()),
        size_(comm_.size()),
        exchange_(comm_.get(), tuning.max_message),
        rounds_{MpiExchange(comm_.get(), tuning.max_message), MpiExchange(comm_.get(), tuning.max_message)} {
    const MpiComm node =
        tuning.node < 0 ? MpiComm::shared_memory_part(comm_.get()) : MpiComm::split(comm_.get(), tuning.node, 0);
    // Inside a node the order is that of the ranks: its first rank is the lowest.
    int first = rank_;
    MPI_CHECK(MPI_Bcast(&first, 1, MPI_INT, 0, node.get()));
    std::vector<int> firsts(idx(size_));
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
  void do_all_gather_v(TensorView x, std::span<const RowRange> ranges) override;
  void do_reduce_scatter(TensorView x, std::span<const RowRange> ranges) override;
  void do_broadcast(TensorView x, int root) override;
  void do_all_to_all_v_start(std::span<const RowExchange> exchanges) override {
    for (const RowExchange& e : exchanges) start_rows(e);
  }
  void do_all_to_all_v_finish(std::span<const RowExchange>) override { exchange_.wait(); }
  void start_rows(const RowExchange& e);
  void do_all_to_all_v_abandon() noexcept override { exchange_.abandon(); }
  void do_barrier() override { MPI_CHECK(MPI_Barrier(comm_.get())); }
  std::unique_ptr<Communicator> do_split(int color, int key) override {
    return make_mpi_communicator(MpiComm::split(comm_.get(), color, key), tuning_);
  }

  /// Of floats: MPI's own sum has an order that may follow the nodes, which another start of the job can change.
  void sum_in_rank_order(TensorView x);
  /// Every member of the stage gets the sum of its part over the members, in their order.
  void sum(TensorView x, const ShareStage& stage);
  /// The pieces of round `round`: this rank's own from everybody, everybody's from this rank.
  void start_round(TensorView x, const ShareStage& stage, const std::vector<std::vector<SharePiece>>& pieces,
                   std::size_t round, std::size_t stride);
  /// Every member gets the parts of all.
  void gather(TensorView x, const ShareStage& stage);
  bool on_this_node(int rank) const { return nodes_[idx(rank)] == nodes_[idx(rank_)]; }
  std::byte* staging(std::size_t round, std::size_t member, std::size_t members, std::size_t stride) {
    return staging_.data() + (round % 2 * members + member) * stride;
  }
  /// The peer `step` places further: every rank starts with another one, so that no rank is everybody's first.
  int peer(int step) const { return (rank_ + step) % size_; }

  MpiComm comm_;
  MpiTuning tuning_;
  int rank_;
  int size_;
  std::vector<int> nodes_;
  MpiExchange exchange_;            // messages under way: between the halves of all_to_all_v, or inside one call
  MpiExchange rounds_[2];           // of a sum: one round is added up while the next one travels
  std::vector<std::byte> staging_;  // of sums; kept, so that later calls allocate nothing
};

void MpiCommunicator::sum_in_rank_order(TensorView x) {
  const std::size_t ranks = idx(size_), block = x.bytes();
  if (ranks * block > tuning_.reduce_piece) {  // more than everybody should receive from everybody
    std::vector<std::int64_t> cuts;
    for (int r = 0; r <= size_; ++r) cuts.push_back(x.numel() * r / size_);
    const TensorView flat = x.reshape({x.numel()});
    const ShareStage all = flat_stage(ranges_of(cuts), ranks, rank_);
    sum(flat, all);
    gather(flat, all);
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
  const std::size_t bytes = std::min(kAllReducePiece, 16 * tuning_.reduce_piece);
  const auto piece = static_cast<std::int64_t>(std::max<std::size_t>(1, bytes / size_of(x.dtype())));
  for (std::int64_t begin = 0; begin < x.numel(); begin += piece) {
    std::byte* p = bytes_of(x) + idx(begin) * size_of(x.dtype());
    const int count = static_cast<int>(std::min(piece, x.numel() - begin));
    MPI_CHECK(MPI_Allreduce(MPI_IN_PLACE, p, count, type_of(x.dtype()), op == ReduceOp::Sum ? MPI_SUM : MPI_MAX,
                            comm_.get()));
  }
}

void MpiCommunicator::do_all_gather(TensorView out, TensorView in) {
  const std::size_t block = in.bytes();
  std::byte* of_this_rank = bytes_of(out) + idx(rank_) * block;
  copy_bytes(of_this_rank, in.raw(), block);
  if (out.bytes() <= tuning_.max_message) {
    const int n = static_cast<int>(block);
    MPI_CHECK(MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, out.raw(), n, MPI_BYTE, comm_.get()));
    return;
  }
  for (int step = 1; step < size_; ++step) {
    const int from = peer(size_ - step);
    exchange_.receive(bytes_of(out) + idx(from) * block, block, from);
  }
  for (int step = 1; step < size_; ++step) exchange_.send(of_this_rank, block, peer(step));
  exchange_.wait();
}

void MpiCommunicator::do_all_gather_v(TensorView x, std::span<const RowRange> ranges) {
  for (const ShareStage& stage : gather_stages(ranges, nodes_, rank_)) gather(x, stage);
}

void MpiCommunicator::gather(TensorView x, const ShareStage& stage) {
  const std::size_t members = stage.members.size(), row = row_bytes(x);
  const auto pieces = [&](std::size_t member) { return pieces_of(stage.parts[member], row, 1, tuning_.max_message); };
  // Every member starts with another one, so that nobody is everybody's first.
  for (std::size_t step = 1; step < members; ++step) {
    const std::size_t from = (stage.self + members - step) % members;
    for (const SharePiece& p : pieces(from)) {
      exchange_.receive(bytes_of(x) + p.begin, p.bytes, stage.members[from]);
      traffic_.add(on_this_node(stage.members[from]), p.bytes);
    }
  }
  const std::vector<SharePiece> own = pieces(stage.self);
  for (std::size_t step = 1; step < members; ++step)
    for (const SharePiece& p : own)
      exchange_.send(bytes_of(x) + p.begin, p.bytes, stage.members[(stage.self + step) % members]);
  exchange_.wait();
}

void MpiCommunicator::do_reduce_scatter(TensorView x, std::span<const RowRange> ranges) {
  for (const ShareStage& stage : sum_stages(ranges, nodes_, rank_)) sum(x, stage);
}

void MpiCommunicator::start_round(TensorView x, const ShareStage& stage,
                                  const std::vector<std::vector<SharePiece>>& pieces, std::size_t round,
                                  std::size_t stride) {
  MpiExchange& exchange = rounds_[round % 2];
  const std::size_t members = stage.members.size(), self = stage.self;
  for (std::size_t step = 1; step < members && round < pieces[self].size(); ++step) {
    const std::size_t from = (self + members - step) % members;
    exchange.receive(staging(round, from, members, stride), pieces[self][round].bytes, stage.members[from]);
    traffic_.add(on_this_node(stage.members[from]), pieces[self][round].bytes);
  }
  for (std::size_t step = 1; step < members; ++step) {
    const std::size_t to = (self + step) % members;
    if (round >= pieces[to].size()) continue;
    const SharePiece& p = pieces[to][round];
    exchange.send(bytes_of(x) + p.begin, p.bytes, stage.members[to]);
  }
}

// Every rank collects its rows from all members, piece by piece, and adds in their order: each byte crosses the wire
// once, the sum has a fixed order, and the staging buffer is two of this rank's pieces for each member.
void MpiCommunicator::sum(TensorView x, const ShareStage& stage) {
  const std::size_t members = stage.members.size(), item = size_of(x.dtype());
  std::vector<std::vector<SharePiece>> pieces;
  std::size_t rounds = 0;
  for (const auto& part : stage.parts) {
    pieces.push_back(pieces_of(part, row_bytes(x), item, tuning_.reduce_piece));
    rounds = std::max(rounds, pieces.back().size());
  }
  std::size_t stride = 0;  // as much as this rank's own pieces need, aligned for any type
  for (const SharePiece& p : pieces[stage.self]) stride = std::max(stride, (p.bytes + 63) / 64 * 64);
  staging_.resize(std::max(staging_.size(), 2 * members * stride));
  std::vector<const void*> parts(members);
  try {
    for (std::size_t round = 0; round < std::min<std::size_t>(rounds, 2); ++round)
      start_round(x, stage, pieces, round, stride);
    for (std::size_t round = 0; round < rounds; ++round) {
      rounds_[round % 2].wait();
      if (round < pieces[stage.self].size()) {
        const SharePiece& own = pieces[stage.self][round];
        void* const of_this_rank = bytes_of(x) + own.begin;
        for (std::size_t m = 0; m < members; ++m)
          parts[m] = m == stage.self ? of_this_rank : staging(round, m, members, stride);
        reduce_in_rank_order(parts, {&of_this_rank, 1}, static_cast<std::int64_t>(own.bytes / item), x.dtype(),
                             ReduceOp::Sum);
      }
      if (round + 2 < rounds) start_round(x, stage, pieces, round + 2, stride);
    }
  } catch (...) {  // the other round is still under way, to and from memory that is about to go
    for (MpiExchange& round : rounds_) round.abandon();
    throw;
  }
}

void MpiCommunicator::do_broadcast(TensorView x, int root) {
  for (std::size_t done = 0; done < x.bytes(); done += tuning_.max_message) {
    const int n = static_cast<int>(std::min(tuning_.max_message, x.bytes() - done));
    MPI_CHECK(MPI_Bcast(bytes_of(x) + done, n, MPI_BYTE, root, comm_.get()));
  }
}

void MpiCommunicator::start_rows(const RowExchange& e) {
  // Point to point instead of MPI_Alltoallv: its int displacements overflow, and whether to cut must be agreed by each
  // pair only, not by all ranks.
  const std::size_t row = row_bytes(e.in);
  const std::size_t ranks = idx(size_);
  std::vector<std::size_t> recv_at(ranks), send_at(ranks);
  for (std::size_t r = 1; r < ranks; ++r) {
    recv_at[r] = recv_at[r - 1] + idx(e.recv_rows[r - 1]) * row;
    send_at[r] = send_at[r - 1] + idx(e.send_rows[r - 1]) * row;
  }
  for (int step = 1; step < size_; ++step) {
    const auto from = idx(peer(size_ - step));
    exchange_.receive(bytes_of(e.out) + recv_at[from], idx(e.recv_rows[from]) * row, static_cast<int>(from));
  }
  for (int step = 1; step < size_; ++step) {
    const auto to = idx(peer(step));
    exchange_.send(bytes_of(e.in) + send_at[to], idx(e.send_rows[to]) * row, static_cast<int>(to));
  }
  const auto self = idx(rank_);
  if (e.send_rows[self] != 0)
    copy_bytes(bytes_of(e.out) + recv_at[self], bytes_of(e.in) + send_at[self], idx(e.send_rows[self]) * row);
}

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(MpiComm comm, MpiTuning tuning) {
  return std::make_unique<MpiCommunicator>(std::move(comm), tuning);
}

}  // namespace emox
