#include "parallel/expert/exchange_staging.h"

#include <algorithm>

#include "runtime/telemetry/log.h"

namespace emox {

void ExchangeStaging::reserve(Arena& arena, std::int64_t tokens, std::int64_t top_k, std::int64_t width, int ranks,
                              int hops) {
  // A source sends at most min(k, ranks) rows a token; with balanced load as many arrive.
  const std::int64_t rows = tokens * std::min<std::int64_t>(top_k, ranks), picks = tokens * top_k;
  send = arena.growing(DType::F32, {rows, width});
  pick_send = arena.growing(DType::F32, {picks});
  for (int h = 0; h < hops; ++h) {
    arrive[h] = arena.growing(DType::F32, {rows, width});
    pick_arrive[h] = arena.growing(DType::F32, {picks});
  }
}

void ensure_rows(Context& ctx, GrowingTensor* tensor, std::int64_t rows, const char* what) {
  const std::int64_t before = tensor->capacity();
  const std::size_t grown = tensor->ensure(rows);
  if (grown == 0 || ctx.log == nullptr) return;
  ctx.log->info("{} grew from {} to {} rows, {:.1f} MiB more: {:.1f} MiB now, {:.0f} MiB on this rank in all", what,
                before, tensor->capacity(), static_cast<double>(grown) / 1048576,
                static_cast<double>(tensor->bytes()) / 1048576,
                static_cast<double>(memory_stats().allocated) / 1048576);
}

}  // namespace emox
