#include "parallel/comm/thread_world.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "parallel/comm/arguments.h"
#include "parallel/comm/reduce.h"
#include "parallel/comm/thread_board.h"
#include "parallel/comm/watchdog.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

std::byte* at(void* p, std::size_t offset) { return static_cast<std::byte*>(p) + offset; }
const std::byte* at(const void* p, std::size_t offset) { return static_cast<const std::byte*>(p) + offset; }

void copy_bytes(void* to, const void* from, std::size_t bytes) {
  if (bytes != 0 && to != from) std::memcpy(to, from, bytes);
}

/// Bytes of the rows before entry `i`.
std::size_t offset_of(std::span<const std::int64_t> rows, std::size_t i, std::size_t row_bytes) {
  std::int64_t before = 0;
  for (const std::int64_t n : rows.first(i)) before += n;
  return static_cast<std::size_t>(before) * row_bytes;
}

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(ThreadBoard& board, ThreadGroup& group, int rank, int ranks_per_node)
      : board_(board), group_(group), rank_(rank), ranks_per_node_(ranks_per_node) {
    for (int r = 0; r < size(); ++r) {
      if (node_of(r) != node_of(rank)) continue;
      if (r < rank) ++node_rank_;
      ++node_size_;
    }
  }
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(group_.world_ranks.size()); }
  int node_size() const override { return node_size_; }
  int node_rank() const override { return node_rank_; }
  std::string_view transport() const override { return "threads"; }

  void all_reduce(TensorView x, ReduceOp op) override;
  void all_gather(TensorView out, TensorView in) override;
  void reduce_scatter(TensorView out, TensorView in) override;
  void broadcast(TensorView x, int root) override;
  void all_to_all_v(TensorView out, std::span<const std::int64_t> recv_rows, TensorView in,
                    std::span<const std::int64_t> send_rows) override;
  void barrier() override { board_.meet(group_, rank_, {.op = "barrier"}); }
  std::unique_ptr<Communicator> split(int color, int key) override;

 private:
  int node_of(int r) const {
    return ranks_per_node_ == 0 ? 0 : group_.world_ranks[static_cast<std::size_t>(r)] / ranks_per_node_;
  }

  ThreadBoard& board_;
  ThreadGroup& group_;
  int rank_;
  int ranks_per_node_;
  int node_size_ = 0;
  int node_rank_ = 0;
};

void ThreadCommunicator::all_reduce(TensorView x, ReduceOp op) {
  check_all_reduce(x);
  board_.meet(group_, rank_,
              {.op = "all_reduce", .bytes = x.bytes(), .dtype = x.dtype(), .reduce = op, .out = x.raw()});
  // Rank r reduces slice r for everybody: nobody else touches that slice, on any rank, before the parting.
  const std::int64_t begin = x.numel() * rank_ / size();
  const std::int64_t end = x.numel() * (rank_ + 1) / size();
  if (begin != end) {
    std::vector<void*> slices;
    for (const ThreadCall& call : group_.calls)
      slices.push_back(at(call.out, static_cast<std::size_t>(begin) * size_of(x.dtype())));
    reduce_in_rank_order(std::vector<const void*>(slices.begin(), slices.end()), slices, end - begin, x.dtype(), op);
  }
  board_.part(group_);
}

void ThreadCommunicator::all_gather(TensorView out, TensorView in) {
  check_all_gather(out, in, size());
  board_.meet(group_, rank_, {.op = "all_gather", .bytes = in.bytes(), .dtype = in.dtype(), .in = in.raw()});
  for (std::size_t r = 0; r < group_.calls.size(); ++r) {
    if (in.bytes() != 0) copy_bytes(at(out.raw(), r * in.bytes()), group_.calls[r].in, in.bytes());
  }
  board_.part(group_);
}

void ThreadCommunicator::reduce_scatter(TensorView out, TensorView in) {
  check_reduce_scatter(out, in, size());
  board_.meet(group_, rank_, {.op = "reduce_scatter", .bytes = in.bytes(), .dtype = in.dtype(), .in = in.raw()});
  if (out.bytes() != 0) {
    std::vector<const void*> blocks;
    for (const ThreadCall& call : group_.calls)
      blocks.push_back(at(call.in, static_cast<std::size_t>(rank_) * out.bytes()));
    void* const mine = out.raw();
    reduce_in_rank_order(blocks, {&mine, 1}, out.numel(), out.dtype(), ReduceOp::Sum);
  }
  board_.part(group_);
}

void ThreadCommunicator::broadcast(TensorView x, int root) {
  check_broadcast(x, root, size());
  board_.meet(group_, rank_, {.op = "broadcast", .bytes = x.bytes(), .dtype = x.dtype(), .root = root, .in = x.raw()});
  copy_bytes(x.raw(), group_.calls[static_cast<std::size_t>(root)].in, x.bytes());
  board_.part(group_);
}

void ThreadCommunicator::all_to_all_v(TensorView out, std::span<const std::int64_t> recv_rows, TensorView in,
                                      std::span<const std::int64_t> send_rows) {
  const std::size_t row_bytes = check_all_to_all_v(out, recv_rows, in, send_rows, size());
  board_.meet(group_, rank_,
              {.op = "all_to_all_v",
               .dtype = in.dtype(),
               .row_bytes = row_bytes,
               .in = in.raw(),
               .send_rows = send_rows,
               .recv_rows = recv_rows});
  std::size_t offset = 0;
  for (std::size_t r = 0; r < group_.calls.size(); ++r) {
    const ThreadCall& from = group_.calls[r];
    const std::size_t bytes = static_cast<std::size_t>(recv_rows[r]) * row_bytes;
    if (bytes == 0) continue;
    copy_bytes(at(out.raw(), offset),
               at(from.in, offset_of(from.send_rows, static_cast<std::size_t>(rank_), row_bytes)), bytes);
    offset += bytes;
  }
  board_.part(group_);
}

std::unique_ptr<Communicator> ThreadCommunicator::split(int color, int key) {
  check_split(color);
  board_.meet(group_, rank_, {.op = "split", .color = color, .key = key});
  // This rank's own line, which only this rank overwrites, in its next call: no parting is needed.
  const ThreadCall& call = group_.calls[static_cast<std::size_t>(rank_)];
  return std::make_unique<ThreadCommunicator>(board_, *call.part, call.part_rank, ranks_per_node_);
}

/// Ranks in one process look into each other's logs.
class ThreadPeers final : public WatchdogPeers {
 public:
  ThreadPeers(int rank, ThreadBoard& board, const std::vector<std::unique_ptr<ActivityLog>>& logs)
      : rank_(rank), board_(board), logs_(logs) {}
  void answer() override {}
  std::vector<std::optional<RankStatus>> ask(const std::vector<int>& ranks, std::uint64_t comm_id, double) override {
    std::vector<std::optional<RankStatus>> replies;
    for (const int r : ranks) replies.push_back(logs_[static_cast<std::size_t>(r)]->status(comm_id));
    return replies;
  }
  void end_job(const std::string& report) override { board_.abort(rank_, report); }

 private:
  int rank_;
  ThreadBoard& board_;
  const std::vector<std::unique_ptr<ActivityLog>>& logs_;
};

}  // namespace

struct ThreadWorld::Impl {
  Impl(int size, ThreadWorldOptions o) : options(o), board(size) {}
  ThreadWorldOptions options;
  ThreadBoard board;
  std::vector<std::unique_ptr<ActivityLog>> logs;  // empty without a watchdog
  std::vector<std::unique_ptr<ThreadPeers>> peers;
  std::vector<std::unique_ptr<Watchdog>> watchdogs;  // last: their threads use everything above
};

ThreadWorld::ThreadWorld(int size, ThreadWorldOptions options) : impl_(std::make_unique<Impl>(size, options)) {
  require<CommError>(options.ranks_per_node >= 0, "{} ranks per node", options.ranks_per_node);
  if (options.watchdog_s <= 0) return;
  for (int r = 0; r < size; ++r) impl_->logs.push_back(std::make_unique<ActivityLog>());
  for (int r = 0; r < size; ++r) {
    impl_->peers.push_back(std::make_unique<ThreadPeers>(r, impl_->board, impl_->logs));
    impl_->watchdogs.push_back(std::make_unique<Watchdog>(
        r, options.watchdog_s, *impl_->logs[static_cast<std::size_t>(r)], *impl_->peers.back()));
  }
}

ThreadWorld::~ThreadWorld() = default;

int ThreadWorld::size() const { return static_cast<int>(impl_->board.world().world_ranks.size()); }

std::unique_ptr<Communicator> ThreadWorld::communicator(int rank) {
  require<CommError>(rank >= 0 && rank < size(), "rank {} of {}", rank, size());
  auto comm =
      std::make_unique<ThreadCommunicator>(impl_->board, impl_->board.world(), rank, impl_->options.ranks_per_node);
  if (impl_->logs.empty()) return comm;
  return make_watched(std::move(comm), *impl_->logs[static_cast<std::size_t>(rank)]);
}

void ThreadWorld::abort(int rank, const std::string& message) { impl_->board.abort(rank, message); }

}  // namespace emox
