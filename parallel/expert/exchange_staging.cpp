#include "parallel/expert/exchange_staging.h"

#include <algorithm>

namespace emox {

void ExchangeStaging::reserve(Arena& arena, std::int64_t tokens, std::int64_t top_k, std::int64_t width, int ranks,
                              int hops) {
  // A source sends at most min(k, ranks) rows a token; with balanced load as many arrive. Picks have a quarter to
  // spare, as the experts' rows do.
  const std::int64_t rows = tokens * std::min<std::int64_t>(top_k, ranks), picks = tokens * top_k * 5 / 4;
  send = arena.growing_activation({rows, width});
  pick_send = arena.growing(DType::F32, {picks});
  for (GrowingTensor** t : {&packed_send, &packed_arrive, &experts}) *t = arena.growing(DType::I32, {picks});
  first = arena.growing(DType::I32, {rows + 1});
  for (int h = 0; h < hops; ++h) {
    arrive[h] = arena.growing_activation({rows, width});
    pick_arrive[h] = arena.growing(DType::F32, {picks});
  }
}

}  // namespace emox
