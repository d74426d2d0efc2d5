// What the ranks of an expert group tell each other before rows travel: how many rows and picks go where, for one hop
// or for two.
//
// Every rank publishes its counts to whoever it can reach, and to its gateways, which need them to say what they pass
// on; then the gateways tell the ranks of their node. So all hops are known before any row travels, and the host reads
// once. On a device both exchanges are given to the queue one after the other.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "parallel/comm/communicator.h"
#include "parallel/expert/dispatch_counters.h"
#include "parallel/expert/plan_numbers.h"
#include "runtime/core/arena.h"
#include "runtime/core/context.h"
#include "runtime/core/pinned.h"

namespace emox {

/// Rows and picks for or from each rank: [ranks, 2], as ops::count_destinations counts them.
using RankCounts = std::vector<std::int64_t>;

class PlanCounts {
 public:
  /// rank_of_expert: the layer's placement. `by_node`: two hops, by way of the nodes.
  PlanCounts(Communicator& comm, std::span<const std::int32_t> rank_of_expert, bool by_node);

  /// The rank that passes rows on to each expert's node: [experts].
  const std::vector<std::int32_t>& gateways() const { return gateway_; }

  /// Of one micro-batch.
  struct Memory {
    PlanNumbers<TensorView> counted;  ///< what the plan's ops fill

   private:
    friend class PlanCounts;
    TensorView book;  ///< i64: the counted numbers, then what the other ranks tell, exchange after exchange
    TensorView out;   ///< i64: what they are told
    struct Tables {
      TensorView first, index;  ///< ops::sum_counts
    };
    std::array<Tables, 2> tables;
    bool tables_are_there = false;
    std::shared_ptr<DeviceEvent> read;  ///< on a device: the book is in host memory
  };
  Memory reserve(Arena& arena) const;

  /// Tells and is told; `counted` has been filled. `read` holds the book on the host until finish. Collective.
  void start(Context& ctx, Memory& memory, PinnedMemory& read, DispatchCounters& counters);
  /// Afterwards the calls below hold. On a device this is the one wait of a plan. Collective.
  void finish(Context& ctx, Memory& memory, const PinnedMemory& read);
  /// What finish has read: kept, it makes the calls below hold again without asking anybody.
  const std::vector<std::int64_t>& book() const { return host_book_; }
  void recall(const std::vector<std::int64_t>& book);

  const PlanNumbers<std::span<const std::int64_t>>& numbers() const { return numbers_; }
  struct Hop {
    RankCounts sends, receives;
  };
  /// In the order of the hops.
  const std::vector<Hop>& hops() const { return hops_; }

 private:
  /// Integers for ranks that expect them, each a sum of entries of the book.
  struct Exchange {
    std::vector<std::int64_t> lengths, expected;  ///< [ranks]
    std::vector<std::int32_t> first{0}, index{};
    std::int64_t in_begin = 0, in = 0, out = 0;  ///< in the book; how many come, and go
    void tell(std::size_t rank, std::span<const std::int64_t> entries);
  };
  Exchange flat(std::span<const std::int32_t> rank_of) const;
  Exchange to_gateways(std::span<const std::int32_t> rank_of) const;
  Exchange inside(std::span<const std::int32_t> rank_of, const Exchange& outside) const;
  RankCounts told(const Exchange& x) const;
  void look();
  void read_flat();
  void read_two_level();

  std::int64_t counted() const { return PlanNumbers<TensorView>::size(comm_.size(), nodes_); }
  Communicator& comm_;
  std::int64_t nodes_;
  bool by_node_;
  std::vector<std::int32_t> gateway_;
  std::vector<int> gateway_of_node_;  ///< -1: no experts there
  std::vector<Exchange> exchanges_;
  std::int64_t book_ = 0;
  std::vector<std::int64_t> host_book_;
  PlanNumbers<std::span<const std::int64_t>> numbers_;  ///< look at host_book_
  std::vector<Hop> hops_;
};

}  // namespace emox
