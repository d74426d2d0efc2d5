// One exchange of rows between the ranks of an expert group, by a plan, forth and back.
//
// Rows leave in send order (dispatch_plan.h): those for other ranks first, the rank's own last. The own ones never meet
// the communicator: they are written straight to where arrived rows lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "parallel/comm/communicator.h"
#include "parallel/expert/dispatch_counters.h"
#include "parallel/expert/dispatch_plan.h"
#include "parallel/expert/exchange_staging.h"
#include "runtime/core/arena.h"
#include "runtime/core/context.h"

namespace emox {

/// The plan of one hop where ops and communicator can read it.
struct HopPlan {
  /// Rows to / from other ranks [ranks], 0 for this one; likewise picks.
  std::vector<std::int64_t> send_rows, recv_rows, send_picks, recv_picks;
  std::int64_t sent = 0, sent_away = 0;        ///< rows in send order, and how many of them leave this rank
  std::int64_t arrived = 0, arrived_away = 0;  ///< rows that are here after the hop, and how many came from others
  std::int64_t picks_away = 0, arrived_picks = 0, arrived_picks_away = 0;
  std::int64_t input_rows = 0, picks = 0;
  std::size_t grown = 0;            ///< bytes by which memory had to grow for this plan
  GrowingTensor* row = nullptr;     ///< i32 [sent] input row of each sent row
  GrowingTensor* pick = nullptr;    ///< i32 [picks] input pick of each sent pick
  GrowingTensor* places = nullptr;  ///< i32 [input rows, fan] places in send order, -1: none
};

/// A pick as it travels: SendPlan::wire, and its gate.
struct PickOnWire {
  std::int32_t expert;
  float gate;
};

class ExchangeHop {
 public:
  /// The other ranks that rows of this hop can go to, and come from, whatever is picked: [ranks], 1 or 0. Only they
  /// tell each other how many do.
  struct Reach {
    std::vector<std::int64_t> to, from;
  };
  /// `index`: which of the staging's buffers arrived rows use. `fan`: the most destinations of a row.
  ExchangeHop(Communicator& comm, Reach reach, int index, std::int64_t fan, ExchangeStaging& staging,
              DispatchCounters& counters)
      : comm_(comm), reach_(std::move(reach)), index_(index), fan_(fan), staging_(staging), counters_(counters) {}

  HopPlan reserve(Arena& arena, std::int64_t rows, std::int64_t picks) const;
  /// Collective: plans the rows of `in`, tells the other ranks, and replaces `in` and the gates [picks] of its picks by
  /// those of the rows that arrive. arrived_from[ranks]: rows by source, this rank's own included.
  void plan(Context& ctx, HopPlan& plan, RowPicks& in, std::vector<float>& gates,
            const std::vector<std::int32_t>& destination, std::vector<std::int64_t>& arrived_from);

  /// in[input rows, D] -> arrived rows, in staging.
  void send_start(Context& ctx, const HopPlan& plan, TensorView in);
  TensorView send_finish(Context& ctx, const HopPlan& plan);

  /// The way back. An arrived row's value is the sum of rows[...] at its entries of table[arrived, m] (-1: none); it
  /// returns to where it came from.
  void return_start(Context& ctx, const HopPlan& plan, TensorView rows, TensorView table);
  /// The returned rows in send order, in staging: `places` says which belong to an input row.
  TensorView return_finish(Context& ctx, const HopPlan& plan);
  /// out[...] at input picks = the values of arrived picks, which lie in staging.pick_send.
  void return_picks(Context& ctx, const HopPlan& plan, TensorView out);

 private:
  struct Exposed;
  void count_bytes(const std::vector<std::int64_t>& items, std::size_t item_bytes);
  void exchange_picks(Context& ctx, const HopPlan& plan, RowPicks& in, std::vector<float>& gates);
  Communicator& comm_;
  Reach reach_;
  int index_;
  std::int64_t fan_;
  ExchangeStaging& staging_;
  DispatchCounters& counters_;
  // Host side, kept so that a step allocates nothing.
  SendPlan send_;
  std::vector<std::int64_t> counts_out_, counts_in_;
  std::vector<PickOnWire> wire_out_, wire_in_;
  std::vector<std::int32_t> picks_in_;
};

}  // namespace emox
