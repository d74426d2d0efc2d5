#include "parallel/comm/thread_world.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "parallel/comm/layout.h"
#include "parallel/comm/reduce.h"
#include "parallel/comm/thread_board.h"
#include "parallel/comm/watchdog.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

std::byte* at(void* p, std::size_t offset) { return static_cast<std::byte*>(p) + offset; }
const std::byte* at(const void* p, std::size_t offset) { return static_cast<const std::byte*>(p) + offset; }

void copy_memory(void* to, const void* from, std::size_t bytes) {
  if (bytes != 0 && to != from) std::memcpy(to, from, bytes);
}

/// Bytes of the rows before entry `i`.
std::size_t offset_of(std::span<const std::int64_t> rows, std::size_t i, std::size_t row_bytes) {
  std::int64_t before = 0;
  for (const std::int64_t n : rows.first(i)) before += n;
  return idx(before) * row_bytes;
}

std::vector<int> nodes_of(const ThreadGroup& group, int ranks_per_node) {
  std::vector<int> names;
  for (const int r : group.world_ranks) names.push_back(ranks_per_node == 0 ? 0 : r / ranks_per_node);
  return number_nodes(names);
}

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(ThreadBoard& board, ThreadGroup& group, int rank, int ranks_per_node)
      : board_(board),
        group_(group),
        rank_(rank),
        ranks_per_node_(ranks_per_node),
        nodes_(nodes_of(group, ranks_per_node)) {}
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(group_.world_ranks.size()); }
  const std::vector<int>& nodes() const override { return nodes_; }
  std::string_view transport() const override { return "threads"; }

 private:
  void do_all_reduce(TensorView x, ReduceOp op) override;
  void do_all_gather(TensorView out, TensorView in) override;
  void do_all_gather_v(TensorView x, std::span<const RowRange> ranges) override;
  void do_reduce_scatter(TensorView x, std::span<const RowRange> ranges) override;
  void do_broadcast(TensorView x, int root) override;
  void do_all_to_all_v_start(std::span<const RowExchange>) override {}
  void do_all_to_all_v_finish(std::span<const RowExchange> exchanges) override {
    for (const RowExchange& e : exchanges) exchange_rows(e);
  }
  void exchange_rows(const RowExchange& e);
  void do_barrier() override { board_.meet(group_, rank_, {.op = "barrier"}); }
  std::unique_ptr<Communicator> do_split(int color, int key) override;

  /// The tensor that a member of a stage has handed in.
  const void* given_by(const ShareStage& stage, std::size_t member) const {
    return group_.calls[idx(stage.members[member])].in;
  }
  bool on_this_node(int rank) const { return nodes_[idx(rank)] == nodes_[idx(rank_)]; }

  ThreadBoard& board_;
  ThreadGroup& group_;
  int rank_;
  int ranks_per_node_;
  const std::vector<int> nodes_;
};

void ThreadCommunicator::do_all_reduce(TensorView x, ReduceOp op) {
  board_.meet(group_, rank_,
              {.op = "all_reduce", .bytes = x.bytes(), .dtype = x.dtype(), .reduce = op, .out = x.raw()});
  // Rank r reduces slice r for everybody: nobody else touches that slice, on any rank, before the parting.
  const std::int64_t begin = x.numel() * rank_ / size();
  const std::int64_t end = x.numel() * (rank_ + 1) / size();
  if (begin != end) {
    std::vector<void*> slices;
    for (const ThreadCall& call : group_.calls) slices.push_back(at(call.out, idx(begin) * size_of(x.dtype())));
    reduce_in_rank_order(std::vector<const void*>(slices.begin(), slices.end()), slices, end - begin, x.dtype(), op);
  }
  board_.part(group_);
}

void ThreadCommunicator::do_all_gather(TensorView out, TensorView in) {
  board_.meet(group_, rank_, {.op = "all_gather", .bytes = in.bytes(), .dtype = in.dtype(), .in = in.raw()});
  for (std::size_t r = 0; r < group_.calls.size(); ++r) {
    if (in.bytes() != 0) copy_memory(at(out.raw(), r * in.bytes()), group_.calls[r].in, in.bytes());
  }
  board_.part(group_);
}

void ThreadCommunicator::do_all_gather_v(TensorView x, std::span<const RowRange> ranges) {
  const std::size_t row = row_bytes(x);
  for (const ShareStage& stage : gather_stages(ranges, nodes_, rank_)) {
    board_.meet(group_, rank_,
                {.op = "all_gather_v", .bytes = x.bytes(), .dtype = x.dtype(), .in = x.raw(), .ranges = ranges});
    // A rank's own rows are read by all and written by none.
    for (std::size_t m = 0; m < stage.members.size(); ++m) {
      if (m == stage.self) continue;
      for (const SharePiece& p : pieces_of(stage.parts[m], row, 1, kLongestMessage)) {
        copy_memory(at(x.raw(), p.begin), at(given_by(stage, m), p.begin), p.bytes);
        traffic_.add(on_this_node(stage.members[m]), p.bytes);
      }
    }
    board_.part(group_);
  }
}

void ThreadCommunicator::do_reduce_scatter(TensorView x, std::span<const RowRange> ranges) {
  const std::size_t item = size_of(x.dtype());
  for (const ShareStage& stage : sum_stages(ranges, nodes_, rank_)) {
    board_.meet(group_, rank_,
                {.op = "reduce_scatter", .bytes = x.bytes(), .dtype = x.dtype(), .in = x.raw(), .ranges = ranges});
    // Nobody else looks at this rank's rows of the stage, on any rank.
    for (const SharePiece& p : pieces_of(stage.parts[stage.self], row_bytes(x), item, kSharePiece)) {
      std::vector<const void*> parts;
      for (std::size_t m = 0; m < stage.members.size(); ++m) {
        parts.push_back(at(given_by(stage, m), p.begin));
        if (m != stage.self) traffic_.add(on_this_node(stage.members[m]), p.bytes);
      }
      void* const to = at(x.raw(), p.begin);
      reduce_in_rank_order(parts, {&to, 1}, static_cast<std::int64_t>(p.bytes / item), x.dtype(), ReduceOp::Sum);
    }
    board_.part(group_);
  }
}

void ThreadCommunicator::do_broadcast(TensorView x, int root) {
  board_.meet(group_, rank_, {.op = "broadcast", .bytes = x.bytes(), .dtype = x.dtype(), .root = root, .in = x.raw()});
  copy_memory(x.raw(), group_.calls[idx(root)].in, x.bytes());
  board_.part(group_);
}

void ThreadCommunicator::exchange_rows(const RowExchange& e) {
  const std::size_t row = row_bytes(e.in);
  board_.meet(group_, rank_,
              {.op = "all_to_all_v",
               .dtype = e.in.dtype(),
               .row_bytes = row,
               .in = e.in.raw(),
               .send_rows = e.send_rows,
               .recv_rows = e.recv_rows});
  std::size_t offset = 0;
  for (std::size_t r = 0; r < group_.calls.size(); ++r) {
    const ThreadCall& from = group_.calls[r];
    const std::size_t bytes = idx(e.recv_rows[r]) * row;
    if (bytes == 0) continue;
    copy_memory(at(e.out.raw(), offset), at(from.in, offset_of(from.send_rows, idx(rank_), row)), bytes);
    offset += bytes;
  }
  board_.part(group_);
}

std::unique_ptr<Communicator> ThreadCommunicator::do_split(int color, int key) {
  board_.meet(group_, rank_, {.op = "split", .color = color, .key = key});
  // This rank's own line, which only this rank overwrites, in its next call: no parting is needed.
  const ThreadCall& call = group_.calls[idx(rank_)];
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
    for (const int r : ranks) replies.push_back(logs_[idx(r)]->status(comm_id));
    return replies;
  }
  int ranks() const override { return static_cast<int>(logs_.size()); }
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
    impl_->watchdogs.push_back(std::make_unique<Watchdog>(r, WatchdogLimits{options.watchdog_s, options.io_watchdog_s},
                                                          *impl_->logs[idx(r)], *impl_->peers.back()));
  }
}

ThreadWorld::~ThreadWorld() = default;

int ThreadWorld::size() const { return static_cast<int>(impl_->board.world().world_ranks.size()); }

std::unique_ptr<Communicator> ThreadWorld::communicator(int rank) {
  require<CommError>(rank >= 0 && rank < size(), "rank {} of {}", rank, size());
  auto comm =
      std::make_unique<ThreadCommunicator>(impl_->board, impl_->board.world(), rank, impl_->options.ranks_per_node);
  if (!impl_->logs.empty()) watch(*comm, *impl_->logs[idx(rank)]);
  return comm;
}

void ThreadWorld::abort(int rank, const std::string& message) { impl_->board.abort(rank, message); }

}  // namespace emox
