#include "runtime/ops/dispatch.h"

#include <string>

#include "runtime/core/error.h"

namespace emox::ops::detail {
namespace {

std::string text_of(Device device) {
  return device.type == DeviceType::Cpu ? std::string("the CPU") : fmt::format("CUDA device {}", device.index);
}

}  // namespace

const Bodies& other_bodies(Op op, const Context& ctx) {
  require(ctx.device.type != DeviceType::Cpu, "[{}] is to compute {} activations on the CPU, which computes f32 only",
          name_of(op), name_of(ctx.activations));
  const Bodies* bodies = cuda::bodies();
  require(bodies != nullptr, "[{}] is to run on {}, but this emox was built without CUDA", name_of(op),
          text_of(ctx.device));
  return *bodies;
}

void fail_elsewhere(Op op, int operand, int view, Device device, Device wanted) {
  fail<ShapeError>("[{}] {}operand {} lies on {}, but the op runs on {}: copy it there first", name_of(op),
                   view == 0 ? std::string() : fmt::format("view {} of ", view), operand, text_of(device),
                   text_of(wanted));
}

void round_to_bf16(Op op, const TensorView& x) {
  if (x.null()) return;
  require(x.device().type == DeviceType::Cpu, "[{}] activations are rounded on the CPU only, where they are f32",
          name_of(op));
  auto* p = x.data<float>();
  for (std::int64_t i = 0; i < x.numel(); ++i) p[i] = rounded_to_bf16(p[i]);
}

}  // namespace emox::ops::detail
