#include "runtime/ops/bodies.h"
#include "runtime/core/accelerator.h"

namespace emox::cuda {

const ops::Bodies* bodies() { return nullptr; }
Accelerator* accelerator() { return nullptr; }

}  // namespace emox::cuda
