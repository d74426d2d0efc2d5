#include "runtime/ops/dispatch.h"

#include <string>

#include "runtime/core/error.h"

namespace emox::ops::detail {
namespace {

std::string text_of(Device device) {
  return device.type == DeviceType::Cpu ? std::string("the CPU") : fmt::format("CUDA device {}", device.index);
}

}  // namespace

void fail_without_bodies(Op op, Device device) {
  fail("[{}] is to run on {}, but this emox was built without CUDA", name_of(op), text_of(device));
}

void fail_elsewhere(Op op, int operand, int view, Device device, Device wanted) {
  fail<ShapeError>("[{}] {}operand {} lies on {}, but the op runs on {}: copy it there first", name_of(op),
                   view == 0 ? std::string() : fmt::format("view {} of ", view), operand, text_of(device),
                   text_of(wanted));
}

}  // namespace emox::ops::detail
