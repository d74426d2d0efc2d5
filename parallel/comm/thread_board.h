// Where ranks that are threads meet: each writes down which collective it has entered, the last to arrive compares.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/comm/communicator.h"

namespace emox {

struct ThreadGroup;

/// One rank's side of a collective.
struct ThreadCall {
  // What all ranks must agree on.
  std::string_view op;
  std::size_t bytes = 0;  ///< left 0 where ranks may differ
  DType dtype = DType::U8;
  ReduceOp reduce = ReduceOp::Sum;
  int root = 0;
  std::size_t row_bytes = 0;
  // What they give.
  const void* in = nullptr;
  void* out = nullptr;
  std::span<const RowRange> ranges{};  ///< all ranks must agree on these as well
  std::span<const std::int64_t> send_rows{};
  std::span<const std::int64_t> recv_rows{};
  int color = 0;
  int key = 0;
  // What split() gives back.
  ThreadGroup* part = nullptr;
  int part_rank = 0;
};

/// The ranks of one communicator.
struct ThreadGroup {
  explicit ThreadGroup(std::vector<int> ranks) : world_ranks(std::move(ranks)), calls(world_ranks.size()) {}
  std::vector<int> world_ranks;
  std::vector<ThreadCall> calls;  ///< one a rank; others' may be read between meet() and part()
  int arrived = 0;
  std::uint64_t meetings = 0;
  int departed = 0;
  std::uint64_t partings = 0;
};

/// All groups of one world share a lock, so that a rank that gives up wakes everyone, wherever they wait.
class ThreadBoard {
 public:
  explicit ThreadBoard(int size);
  /// Safe to call while ranks run.
  ThreadGroup& world() { return world_; }

  /// Returns when all ranks of the group have entered the same collective; throws CommError on all of them when their
  /// calls do not fit together, and when a rank has given up.
  void meet(ThreadGroup& group, int rank, const ThreadCall& call);
  /// Returns when all ranks have finished reading each other's memory. Does not give up early: a rank that left would
  /// free what others still read, and between meet() and part() no rank can fail or wait for long.
  void part(ThreadGroup& group);
  void abort(int rank, const std::string& message);

 private:
  void set_failure(std::string text);
  std::string mismatch(const ThreadGroup& group) const;
  std::string range_mismatch(const ThreadGroup& group) const;
  std::string row_mismatch(const ThreadGroup& group) const;
  void make_parts(ThreadGroup& group);

  std::mutex mutex_;
  std::condition_variable wake_;
  std::string failure_;  // not empty: this world is over
  ThreadGroup world_;
  std::deque<std::unique_ptr<ThreadGroup>> parts_;  // made by split()
};

}  // namespace emox
