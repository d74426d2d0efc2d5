// The CUDA bodies, one for every op: same name, same signature as on the CPU. Arguments were checked by the op.
#pragma once

#include "runtime/ops/bodies.h"

namespace emox::cuda {

EMOX_OPS(EMOX_DECLARE_BODY)

}  // namespace emox::cuda
