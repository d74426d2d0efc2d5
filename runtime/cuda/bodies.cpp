#include "runtime/cuda/kernels.h"

namespace emox::cuda {

const ops::Bodies* bodies() {
  static constexpr ops::Bodies kBodies{EMOX_OPS(EMOX_LIST_BODY)};
  return &kBodies;
}

}  // namespace emox::cuda
