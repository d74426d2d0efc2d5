// Plans of dispatch, readable and serial: counting sorts over a micro-batch's picks, the oracle of every other backend.
#include <algorithm>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/cpu/kernels.h"

namespace emox::cpu {
namespace {

/// Destinations in send order: rising, this rank last.
template <typename Visit>
void in_send_order(std::int64_t destinations, std::int64_t self, Visit&& visit) {
  for (std::int64_t d = 0; d < destinations; ++d)
    if (d != self) visit(d);
  visit(self);
}

/// Kept from call to call, so that a step allocates nothing.
thread_local std::vector<std::int64_t> g_stamps, g_more_stamps, g_next_row, g_next_pick;
thread_local std::vector<std::int32_t> g_destinations;

/// Which destinations the row at hand has, one stamp each instead of a set a row.
class Seen {
 public:
  Seen(std::vector<std::int64_t>& stamps, std::int64_t destinations) : stamps_(stamps) {
    stamps_.assign(idx(destinations), -1);
  }
  /// True the first time that `row` asks for d.
  bool first(std::int32_t d, std::int64_t row) {
    std::int64_t& stamp = stamps_[idx(d)];
    if (stamp == row) return false;
    stamp = row;
    return true;
  }

 private:
  std::vector<std::int64_t>& stamps_;
};

/// Picks index the maps below; those of other ranks came over the network.
void require_expert(std::int32_t expert, std::int64_t experts) {
  require<ShapeError>(expert >= 0 && expert < experts,
                      "a row is for expert {}, but experts are numbered 0 to {}: what chose it, or the rank it came "
                      "from, sent wrong numbers",
                      expert, experts - 1);
}

}  // namespace

void first_picks(Context&, TensorView first, std::int64_t picks_per_row) {
  auto* const f = first.data<std::int32_t>();
  for (std::int64_t i = 0; i < first.numel(); ++i) f[i] = static_cast<std::int32_t>(i * picks_per_row);
}

void count_destinations(Context&, TensorView counts, const ops::RowPicks& in, TensorView destination) {
  const auto* const experts = in.experts.data<std::int32_t>();
  const auto* const first = in.first.data<std::int32_t>();
  const auto* const to = destination.data<std::int32_t>();
  auto* const count = counts.data<std::int64_t>();
  std::fill_n(count, counts.numel(), 0);
  Seen seen(g_stamps, counts.dim(0));
  for (std::int64_t i = 0; i < in.rows(); ++i)
    for (std::int32_t p = first[i]; p < first[i + 1]; ++p) {
      require_expert(experts[p], destination.numel());
      const std::int32_t d = to[experts[p]];
      if (seen.first(d, i)) ++count[2 * d];
      ++count[2 * d + 1];
    }
}

void plan_send(Context&, const ops::SendOrder& out, const ops::RowPicks& in, TensorView destination, TensorView counts,
               std::int64_t self) {
  const std::int64_t destinations = counts.dim(0), width = out.slots.dim(1);
  const auto* const experts = in.experts.data<std::int32_t>();
  const auto* const first = in.first.data<std::int32_t>();
  const auto* const to = destination.data<std::int32_t>();
  const auto* const count = counts.data<std::int64_t>();
  auto* const row = out.row.data<std::int32_t>();
  auto* const pick = out.pick.data<std::int32_t>();
  auto* const packed = out.packed.data<std::int32_t>();
  auto* const slots = out.slots.data<std::int32_t>();
  std::vector<std::int64_t>&next_row = g_next_row, &next_pick = g_next_pick;
  next_row.resize(idx(destinations));
  next_pick.resize(idx(destinations));
  std::int64_t row_at = 0, pick_at = 0;
  in_send_order(destinations, self, [&](std::int64_t d) {
    next_row[idx(d)] = row_at;
    next_pick[idx(d)] = pick_at;
    row_at += count[2 * d];
    pick_at += count[2 * d + 1];
  });
  require<ShapeError>(row_at == out.row.numel() && pick_at == in.picks(),
                      "[plan_send] {} rows and {} picks are counted, {} and {} are to be sent", row_at, pick_at,
                      out.row.numel(), in.picks());
  std::fill_n(slots, out.slots.numel(), -1);
  Seen seen(g_stamps, destinations);
  std::vector<std::int32_t>& of_row = g_destinations;  // rising
  of_row.resize(idx(width));
  for (std::int64_t i = 0; i < in.rows(); ++i) {
    std::int32_t* const places = slots + i * width;
    std::int64_t count_of_row = 0;
    for (std::int32_t p = first[i]; p < first[i + 1]; ++p) {
      const std::int32_t expert = experts[p], d = to[expert];
      const bool is_first = seen.first(d, i);
      if (is_first) {
        require<ShapeError>(count_of_row < width, "row {} goes to more than {} ranks", i, width);
        const std::int64_t place = next_row[idx(d)]++;
        row[place] = static_cast<std::int32_t>(i);
        std::int64_t j = count_of_row++;  // insertion: a row has few destinations
        for (; j > 0 && of_row[idx(j - 1)] > d; --j) {
          of_row[idx(j)] = of_row[idx(j - 1)];
          places[j] = places[j - 1];
        }
        of_row[idx(j)] = d;
        places[j] = static_cast<std::int32_t>(place);
      }
      const std::int64_t q = next_pick[idx(d)]++;
      pick[q] = p;
      packed[q] = 2 * expert + (is_first ? 1 : 0);
    }
  }
}

void unpack_picks(Context&, const ops::RowPicks& out, TensorView packed) {
  const auto* const in = packed.data<std::int32_t>();
  auto* const experts = out.experts.data<std::int32_t>();
  auto* const first = out.first.data<std::int32_t>();
  const std::int64_t picks = out.picks();
  std::int64_t rows = 0;
  for (std::int64_t p = 0; p < picks; ++p) {
    if ((in[p] & 1) != 0) {
      if (rows < out.rows()) first[rows] = static_cast<std::int32_t>(p);
      ++rows;
    }
    experts[p] = in[p] >> 1;
  }
  require<ShapeError>(rows == out.rows() && (picks == 0 || (in[0] & 1) != 0),
                      "the lists of picks that arrived hold {} rows, {} were announced", rows, out.rows());
  first[rows] = static_cast<std::int32_t>(picks);
}

void plan_experts(Context&, const ops::ExpertOrder& out, const ops::RowPicks& in, TensorView source_rows,
                  TensorView local_expert, std::int64_t self) {
  const std::int64_t local_experts = out.offsets.dim(0) - 1, width = out.slots.dim(1), picks = in.picks();
  const auto* const experts = in.experts.data<std::int32_t>();
  const auto* const first = in.first.data<std::int32_t>();
  const auto* const from = source_rows.data<std::int64_t>();
  const std::int32_t* const map = local_expert.null() ? nullptr : local_expert.data<std::int32_t>();
  auto* const offsets = out.offsets.data<std::int64_t>();
  auto* const row = out.row.data<std::int32_t>();
  auto* const pick = out.pick.data<std::int32_t>();
  auto* const slots = out.slots.data<std::int32_t>();
  const auto local = [&](std::int32_t expert) { return map == nullptr ? expert : map[expert]; };
  const std::int64_t all_experts = map == nullptr ? local_experts : local_expert.numel();
  std::fill_n(offsets, local_experts + 1, 0);
  for (std::int64_t p = 0; p < picks; ++p) {
    require_expert(experts[p], all_experts);
    const std::int32_t e = local(experts[p]);
    require<ShapeError>(e >= 0 && e < local_experts, "a row arrived for expert {}, which is not on this rank",
                        experts[p]);
    ++offsets[e + 1];
  }
  for (std::int64_t e = 1; e <= local_experts; ++e) offsets[e] += offsets[e - 1];
  std::vector<std::int64_t>& next = g_next_row;
  next.assign(offsets, offsets + local_experts);
  std::fill_n(slots, out.slots.numel(), -1);
  const auto place_rows = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      require<ShapeError>(first[i + 1] - first[i] <= width, "an arrived row is for {} experts, at most {} can be",
                          first[i + 1] - first[i], width);
      for (std::int32_t p = first[i]; p < first[i + 1]; ++p) {
        const std::int64_t place = next[idx(local(experts[p]))]++;
        row[place] = static_cast<std::int32_t>(i);
        pick[place] = p;
        slots[i * width + p - first[i]] = static_cast<std::int32_t>(place);
      }
    }
  };
  // This rank's own rows lie last, but take their turn among the sources.
  const std::int64_t ranks = source_rows.numel(), own = in.rows() - from[self];
  std::int64_t begin = 0;
  for (std::int64_t r = 0; r < ranks; ++r) {
    if (r == self) {
      place_rows(own, in.rows());
      continue;
    }
    place_rows(begin, begin + from[r]);
    begin += from[r];
  }
}

void pool_reach(Context&, TensorView limit, TensorView reached, TensorView pool, TensorView segments,
                TensorView destination, TensorView free_tokens) {
  const std::int64_t experts = destination.numel(), documents = segments.numel() - 1;
  const auto* const begin = segments.data<std::int32_t>();
  const auto* const to = destination.data<std::int32_t>();
  const std::uint8_t* const masks = pool.null() ? nullptr : pool.data<std::uint8_t>();
  const std::uint8_t* const free = free_tokens.null() ? nullptr : free_tokens.data<std::uint8_t>();
  auto* const rows = limit.data<std::int64_t>();
  std::int64_t& sum = *reached.data<std::int64_t>();
  std::fill_n(rows, limit.numel(), 0);
  sum = 0;
  Seen pooled(g_stamps, limit.numel()), freed(g_more_stamps, limit.numel());
  for (std::int64_t doc = 0; doc < documents; ++doc) {
    const std::int64_t tokens = begin[doc + 1] - begin[doc];
    const std::uint8_t* const mask = masks == nullptr ? nullptr : masks + doc * experts;
    for (std::int64_t e = 0; e < experts; ++e) {
      if ((mask != nullptr && mask[e] == 0) || !pooled.first(to[e], doc)) continue;
      ++sum;
      rows[to[e]] += tokens;
      freed.first(to[e], doc);
    }
    if (free == nullptr || mask == nullptr) continue;
    const std::int64_t beyond = std::count_if(free + begin[doc], free + begin[doc + 1], [](auto f) { return f != 0; });
    for (std::int64_t e = 0; e < experts && beyond > 0; ++e)
      if (freed.first(to[e], doc)) rows[to[e]] += beyond;  // the pool does not reach it
  }
}

void sum_counts(Context&, TensorView out, TensorView in, TensorView first, TensorView index) {
  auto* const to = out.data<std::int64_t>();
  const auto* const from = in.data<std::int64_t>();
  const auto *const begin = first.data<std::int32_t>(), *const at = index.data<std::int32_t>();
  for (std::int64_t i = 0; i < out.numel(); ++i) {
    to[i] = 0;
    for (std::int32_t j = begin[i]; j < begin[i + 1]; ++j) to[i] += from[at[j]];
  }
}

}  // namespace emox::cpu
