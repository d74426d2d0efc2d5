// The CPU bodies, one for every op: same name, same signature. Arguments were checked by the op.
#pragma once

#include "runtime/ops/bodies.h"

namespace emox::cpu {

EMOX_OPS(EMOX_DECLARE_BODY)

inline constexpr ops::Bodies kBodies{EMOX_OPS(EMOX_LIST_BODY)};

}  // namespace emox::cpu
