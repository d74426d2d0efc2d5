#include "parallel/comm/thread_board.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

auto agreed(const ThreadCall& c) { return std::tie(c.op, c.bytes, c.dtype, c.reduce, c.root, c.row_bytes); }

std::string describe(const ThreadCall& c) {
  if (c.op == "barrier" || c.op == "split") return std::string(c.op);
  if (c.op == "broadcast") return fmt::format("broadcast({} bytes of {}, root {})", c.bytes, name_of(c.dtype), c.root);
  if (c.op == "all_to_all_v") return fmt::format("all_to_all_v({}, rows of {} bytes)", name_of(c.dtype), c.row_bytes);
  return fmt::format("{}({}{} bytes of {})", c.op, c.reduce == ReduceOp::Max ? "max, " : "", c.bytes, name_of(c.dtype));
}

std::vector<int> all_ranks(int size) {
  require<CommError>(size >= 1, "a world of {} ranks", size);
  std::vector<int> all(idx(size));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

}  // namespace

ThreadBoard::ThreadBoard(int size) : world_(all_ranks(size)) {}

void ThreadBoard::meet(ThreadGroup& group, int rank, const ThreadCall& call) {
  std::unique_lock lock(mutex_);
  if (failure_.empty()) {
    group.calls[idx(rank)] = call;
    const std::uint64_t meeting = group.meetings;
    if (++group.arrived == static_cast<int>(group.calls.size())) {
      if (std::string text = mismatch(group); !text.empty()) {
        set_failure(std::move(text));
      } else {
        if (call.op == "split") make_parts(group);
        group.arrived = 0;
        ++group.meetings;
        wake_.notify_all();
      }
    }
    wake_.wait(lock, [&] { return group.meetings != meeting || !failure_.empty(); });
    if (group.meetings != meeting) return;
  }
  fail<CommError>("{} cannot finish: {}", call.op, failure_);
}

void ThreadBoard::part(ThreadGroup& group) {
  std::unique_lock lock(mutex_);
  const std::uint64_t parting = group.partings;
  if (++group.departed == static_cast<int>(group.calls.size())) {
    group.departed = 0;
    ++group.partings;
    wake_.notify_all();
  }
  wake_.wait(lock, [&] { return group.partings != parting; });
}

void ThreadBoard::abort(int rank, const std::string& message) {
  const std::lock_guard lock(mutex_);
  set_failure(fmt::format("rank {} stopped: {}", rank, message));
}

void ThreadBoard::set_failure(std::string text) {
  if (failure_.empty()) failure_ = std::move(text);
  wake_.notify_all();
}

std::string ThreadBoard::mismatch(const ThreadGroup& group) const {
  const ThreadCall& first = group.calls.front();
  for (std::size_t r = 1; r < group.calls.size(); ++r) {
    if (agreed(group.calls[r]) != agreed(first))
      return fmt::format("the ranks' calls differ: rank {} calls {}, rank {} calls {}", group.world_ranks[0],
                         describe(first), group.world_ranks[r], describe(group.calls[r]));
  }
  return first.op == "all_to_all_v" ? row_mismatch(group) : range_mismatch(group);
}

std::string ThreadBoard::range_mismatch(const ThreadGroup& group) const {
  const auto text = [](std::span<const RowRange> ranges, std::size_t i) {
    return i < ranges.size() ? fmt::format("rows [{}, {}) of rank {}", ranges[i].begin, ranges[i].end, ranges[i].owner)
                             : std::string("none");
  };
  const ThreadCall& first = group.calls.front();
  for (std::size_t r = 1; r < group.calls.size(); ++r) {
    const auto own = first.ranges, theirs = group.calls[r].ranges;
    for (std::size_t i = 0; i < std::max(own.size(), theirs.size()); ++i)
      if (i >= own.size() || i >= theirs.size() || own[i] != theirs[i])
        return fmt::format("the ranks' ranges differ: rank {} calls {} with range {} = {}, rank {} with {}",
                           group.world_ranks[0], first.op, i, text(own, i), group.world_ranks[r], text(theirs, i));
  }
  return {};
}

std::string ThreadBoard::row_mismatch(const ThreadGroup& group) const {
  for (std::size_t from = 0; from < group.calls.size(); ++from) {
    for (std::size_t to = 0; to < group.calls.size(); ++to) {
      const std::int64_t sent = group.calls[from].send_rows[to];
      const std::int64_t expected = group.calls[to].recv_rows[from];
      if (sent != expected)
        return fmt::format("rank {} calls all_to_all_v with {} rows for rank {}, which calls it expecting {} of them",
                           group.world_ranks[from], sent, group.world_ranks[to], expected);
    }
  }
  return {};
}

void ThreadBoard::make_parts(ThreadGroup& group) {
  std::map<int, std::vector<int>> members;  // color -> ranks, ordered by (key, rank)
  for (int r = 0; r < static_cast<int>(group.calls.size()); ++r) members[group.calls[idx(r)].color].push_back(r);
  for (auto& [color, ranks] : members) {
    std::stable_sort(ranks.begin(), ranks.end(),
                     [&](int a, int b) { return group.calls[idx(a)].key < group.calls[idx(b)].key; });
    std::vector<int> world_ranks;
    for (const int r : ranks) world_ranks.push_back(group.world_ranks[idx(r)]);
    parts_.push_back(std::make_unique<ThreadGroup>(std::move(world_ranks)));
    for (std::size_t i = 0; i < ranks.size(); ++i) {
      ThreadCall& call = group.calls[idx(ranks[i])];
      call.part = parts_.back().get();
      call.part_rank = static_cast<int>(i);
    }
  }
}

}  // namespace emox
