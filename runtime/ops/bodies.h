// The bodies of a backend: for every op a function of the op's name and signature.
//
// The CPU's are always there. The CUDA backend is chosen by linking: runtime/cuda answers cuda::bodies() with its
// table, runtime/no_cuda with null.
#pragma once

#include <cstddef>

#include "runtime/ops/balance.h"
#include "runtime/ops/basic.h"
#include "runtime/ops/dispatch_plan.h"
#include "runtime/ops/expert_scores.h"
#include "runtime/ops/experts.h"
#include "runtime/ops/layers.h"
#include "runtime/ops/loss.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/moe.h"
#include "runtime/ops/op_list.h"
#include "runtime/ops/optim.h"

namespace emox::ops {

struct Bodies {
#define EMOX_BODY(op) decltype(ops::op)* op;
  EMOX_OPS(EMOX_BODY)
#undef EMOX_BODY
};

/// Where an op's body stands in Bodies.
template <Op op>
inline constexpr std::nullptr_t kBodyOf = nullptr;
#define EMOX_PLACE(op) \
  template <>          \
  inline constexpr auto kBodyOf<Op::op> = &Bodies::op;
EMOX_OPS(EMOX_PLACE)
#undef EMOX_PLACE

}  // namespace emox::ops

// Declares the bodies in a backend's namespace, and fills its table.
#define EMOX_DECLARE_BODY(op) decltype(::emox::ops::op) op;
#define EMOX_LIST_BODY(op) op,

namespace emox::cuda {

/// Null: this emox was built without CUDA.
const ops::Bodies* bodies();

}  // namespace emox::cuda
