#include "runtime/core/accelerator.h"
#include "runtime/ops/bodies.h"

namespace emox::cuda {

const ops::Bodies* bodies() { return nullptr; }
Accelerator* accelerator() { return nullptr; }

}  // namespace emox::cuda
