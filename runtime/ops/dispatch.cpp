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

}  // namespace emox::ops::detail
