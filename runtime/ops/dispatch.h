// From the entry of an op to the body for the context's device: the only way. An entry checks shapes and types, then
//
//   run<Op::gather_rows>(ctx, Work{.bytes = 2 * bytes_of(out)}, out, x, index);
//
// which checks that there is a body and that all operands lie on the context's device, and times the body.
#pragma once

#include <concepts>
#include <string_view>
#include <type_traits>

#include "runtime/core/context.h"
#include "runtime/core/tensor.h"
#include "runtime/cpu/kernels.h"
#include "runtime/ops/bodies.h"
#include "runtime/telemetry/spans.h"

namespace emox::ops {

/// What an op has to do at least, for its span.
struct Work {
  double flops = 0;            ///< multiplications and additions counted apart
  double bytes = 0;            ///< each operand read or written once
  std::string_view name = {};  ///< of the span, where ops share one; otherwise the op's
};

/// Bytes of all of them together.
template <typename... Views>
double bytes_of(const Views&... views) {
  return (0.0 + ... + static_cast<double>(views.bytes()));
}

/// Marks an output that layers pass on, in the call of run(): it has the type of Context::activations.
struct Activation {
  TensorView view;
  operator const TensorView&() const { return view; }
};
inline Activation activation(const TensorView& x) { return {x}; }

namespace detail {

/// Calls f with every view that an argument holds. An argument that is a struct of views has its own for_each_view
/// beside it (TopkResult).
template <typename F>
void for_each_view(const TensorView& x, F&& f) {
  f(x);
}

template <typename F>
void for_each_view(const Activation& x, F&& f) {
  f(x.view);
}

template <typename T>
concept HoldsViews = requires(const T& x) {
  for_each_view(x, [](const TensorView&) {});
};

/// A struct of views that layers pass on has its own for_each_activation, as Activation for a single one.
template <typename T>
concept HoldsActivations = requires(const T& x) {
  for_each_activation(x, [](const TensorView&) {});
};

/// So that a struct of views is not taken for numbers: these hold none.
template <typename T>
concept HoldsNoViews = std::is_arithmetic_v<T> || std::is_pointer_v<T> || std::same_as<T, Philox> ||
    std::same_as<T, LmLossOptions> || std::same_as<T, AdamW> || std::same_as<T, BalanceOptions>;

/// The CUDA bodies; Error when there are none, and for bf16 activations on the CPU.
const Bodies& other_bodies(Op op, const Context& ctx);
/// Throws ShapeError. Operands count from 1, views of a struct too; 0: the operand is the view.
[[noreturn]] void fail_elsewhere(Op op, int operand, int view, Device device, Device wanted);

inline const Bodies& bodies_for(Op op, const Context& ctx) {
  if (ctx.device.type == DeviceType::Cpu && ctx.activations == DType::F32) [[likely]]
    return cpu::kBodies;
  return other_bodies(op, ctx);
}

template <typename T>
void check_device(Op op, const Context& ctx, int operand, const T& argument) {
  if constexpr (HoldsViews<T>) {
    int view = 0;
    for_each_view(argument, [&](const TensorView& x) {
      if constexpr (!std::same_as<T, TensorView> && !std::same_as<T, Activation>) ++view;
      if (!x.null() && x.device() != ctx.device) [[unlikely]]
        fail_elsewhere(op, operand, view, x.device(), ctx.device);
    });
  } else {
    static_assert(HoldsNoViews<T>, "a struct of views needs for_each_view beside it");
  }
}

/// Context::round_activations.
void round_to_bf16(Op op, const TensorView& x);

template <typename T>
void round_activation(Op op, const T& argument) {
  if constexpr (std::same_as<T, Activation>) round_to_bf16(op, argument.view);
  if constexpr (HoldsActivations<T>) for_each_activation(argument, [op](const TensorView& x) { round_to_bf16(op, x); });
}

}  // namespace detail

template <Op op, typename... Args>
void run(Context& ctx, const Args&... args) {
  const Bodies& bodies = detail::bodies_for(op, ctx);
  int operand = 0;
  (detail::check_device(op, ctx, ++operand, args), ...);
  (bodies.*kBodyOf<op>)(ctx, args...);
  if (ctx.round_activations) [[unlikely]]
    (detail::round_activation(op, args), ...);
}

/// The same inside a span.
template <Op op, typename... Args>
void run(Context& ctx, const Work& work, const Args&... args) {
  const Span span(ctx, work.name.empty() ? name_of(op) : work.name, work.flops, work.bytes);
  run<op>(ctx, args...);
}

}  // namespace emox::ops
