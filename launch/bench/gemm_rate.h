// The machine's matrix-product speed, the limit that a step is measured against (design section 5, bench JSON).
#pragma once

#include "runtime/core/context.h"

namespace emox {

/// FLOP/s of 2048^3 products: `repetitions` of them, each timed; the median. Uses ctx.threads.
double gemm_rate(Context& ctx, int repetitions);

}  // namespace emox
