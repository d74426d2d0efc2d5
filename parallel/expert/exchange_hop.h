// One exchange of rows between the ranks of an expert group, by a plan, forth and back.
//
// Rows leave in send order (ops::SendOrder): those for other ranks first, the rank's own last. The own ones never meet
// the communicator: they are written straight to where arrived rows lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "parallel/comm/communicator.h"
#include "parallel/expert/dispatch_counters.h"
#include "parallel/expert/exchange_staging.h"
#include "parallel/expert/plan_counts.h"
#include "runtime/core/arena.h"
#include "runtime/core/context.h"
#include "runtime/ops/dispatch_plan.h"

namespace emox {

/// The plan of one hop: the counts here, the rows where ops and communicator can read them.
struct HopPlan {
  /// Rows to / from other ranks [ranks], 0 for this one; likewise picks.
  std::vector<std::int64_t> input_splits, output_splits, input_pick_splits, output_pick_splits;
  std::int64_t sent = 0, sent_away = 0;        ///< rows in send order, and how many of them leave this rank
  std::int64_t arrived = 0, arrived_away = 0;  ///< rows that are here after the hop, and how many came from others
  std::int64_t picks_away = 0, arrived_picks = 0, arrived_picks_away = 0;
  std::int64_t input_rows = 0, picks = 0;
  std::size_t grown = 0;           ///< bytes by which memory had to grow for this plan
  GrowingTensor* row = nullptr;    ///< i32 [sent] input row of each sent row
  GrowingTensor* pick = nullptr;   ///< i32 [picks] input pick of each sent pick
  GrowingTensor* slots = nullptr;  ///< i32 [input rows, max_destinations] places in send order, -1: none
  TensorView counts;               ///< i64 [ranks, 2] as sent, for ops::plan_send
};

class ExchangeHop {
 public:
  /// `index`: which of the staging's buffers arrived rows use. `max_destinations`: the most that a row can have.
  ExchangeHop(Communicator& comm, int index, std::int64_t max_destinations, ExchangeStaging& staging,
              DispatchCounters& counters)
      : comm_(comm), index_(index), max_destinations_(max_destinations), staging_(staging), counters_(counters) {}

  HopPlan reserve(Arena& arena, std::int64_t rows, std::int64_t picks) const;
  /// Makes room for `input_rows` rows that leave as `sends` says, and for what arrives as `receives` says; both count
  /// this rank's own as well. Error when more picks arrive than a plan can number.
  void set_counts(Context& ctx, HopPlan& plan, std::int64_t input_rows, const RankCounts& sends,
                  const RankCounts& receives) const;

  /// What is here after the hop, in staging.
  struct Arrived {
    TensorView rows;      ///< [arrived, D]
    ops::RowPicks picks;  ///< of those rows
    TensorView gates;     ///< [arrived picks]
  };
  /// Plans the rows of `picks` and sends them with their picks and gates: rows in[input rows, D], gates[picks].
  void dispatch_start(Context& ctx, const HopPlan& plan, TensorView in, const ops::RowPicks& picks, TensorView gates,
                      TensorView destination);
  Arrived dispatch_finish(Context& ctx, const HopPlan& plan);

  /// The same way again, rows only: in[input rows, D] -> arrived rows, in staging.
  void send_start(Context& ctx, const HopPlan& plan, TensorView in);
  TensorView send_finish(Context& ctx, const HopPlan& plan);

  /// The way back. An arrived row's value is the sum of rows[...] at its entries of slots[arrived, m] (-1: none); it
  /// returns to where it came from. `pick_values`: values of arrived picks, which lie in staging.pick_send, go with
  /// the rows.
  void return_start(Context& ctx, const HopPlan& plan, TensorView rows, TensorView slots, bool pick_values);
  /// The returned rows in send order, in staging: HopPlan::slots says which belong to an input row.
  TensorView return_finish(Context& ctx, const HopPlan& plan);
  /// out[...] at input picks = the values of picks that came back with the rows.
  void take_pick_values(Context& ctx, const HopPlan& plan, TensorView out) const;

  /// Counts what goes to other ranks.
  void count_bytes(const std::vector<std::int64_t>& items, std::size_t item_bytes);

 private:
  void gather_own(Context& ctx, const HopPlan& plan, TensorView in) const;
  Communicator& comm_;
  int index_;
  std::int64_t max_destinations_;
  ExchangeStaging& staging_;
  DispatchCounters& counters_;
};

}  // namespace emox
