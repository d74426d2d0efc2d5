// What dispatch cost, counted on the rank that sends; sums over ranks are the job's (design section 5, metrics.jsonl).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "runtime/core/idx.h"

namespace emox {

/// Sums over the layers and micro-batches of a step, forward and backward. Doubles, so that one sum over ranks carries
/// them all; counts stay exact to 2^53.
struct DispatchCounters {
  enum Name : std::size_t {
    TokenVisits,     ///< tokens x layers planned
    Rows,            ///< rows sent to other ranks in forward, all hops
    Ranks,           ///< distinct ranks with an expert of the token, the source's own included
    Nodes,           ///< distinct nodes, the source's own included
    BytesIntra,      ///< sent to other ranks of the same node: rows, gates, plans, both passes
    BytesInter,      ///< sent to other nodes
    BytesCopies,     ///< what k copies would have sent instead: one row a pick, same gates and plans
    DocumentRanks,   ///< ranks that a document's pool can reach, summed over documents and layers: formula (5); a
                     ///< token that is free of the pool may go to others: Ranks and Rows count where it went
    Documents,       ///< documents x layers
    ExposedSeconds,  ///< spent inside exchanges
    ReceivedRows,    ///< rows that this rank's experts worked on in forward
    kCount
  };
  std::array<double, kCount> values{};
  double& operator[](Name n) { return values[n]; }
  double operator[](Name n) const { return values[n]; }
  void clear() { values.fill(0); }
  /// items[ranks] of so many bytes leave rank `self`: to ranks of its node (nodes[ranks]), or to others.
  void count_sent(const std::vector<int>& nodes, int self, const std::vector<std::int64_t>& items,
                  std::size_t item_bytes) {
    const auto me = idx(self);
    for (std::size_t r = 0; r < items.size(); ++r) {
      if (r == me) continue;
      values[nodes[r] == nodes[me] ? BytesIntra : BytesInter] +=
          static_cast<double>(items[r]) * static_cast<double>(item_bytes);
    }
  }
};

}  // namespace emox
