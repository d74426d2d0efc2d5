// The emulated NCCL in the place of the one that is loaded (parallel/comm/nccl/nccl_library.cpp).
#include "parallel/comm/nccl/nccl_library.h"

namespace emox {

const NcclLibrary& nccl_library() {
  static const NcclLibrary only = [] {
    NcclLibrary all;
#define EMOX_TAKE(name) all.name = &::nccl##name;
    EMOX_NCCL_FUNCTIONS(EMOX_TAKE)
#undef EMOX_TAKE
    return all;
  }();
  return only;
}

}  // namespace emox
