#include "launch/run/device_choice.h"

#include <fmt/format.h>

#include "runtime/core/accelerator.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

constexpr int kDevice = 0;  // of those that are visible

DeviceChoice on_cpu(Precision precision, std::string why) {
  require<UsageError>(precision != Precision::Bf16,
                      "train.precision = bf16, but the CPU computes f32 only ({}); use auto or f32", why);
  return {{}, DType::F32, std::move(why)};
}

DeviceChoice on_gpu(Precision precision, std::string why) {
  return {{DeviceType::Cuda, kDevice}, precision == Precision::F32 ? DType::F32 : DType::BF16, std::move(why)};
}

}  // namespace

std::string no_gpu(int ranks) {
  const Accelerator* const cuda = cuda::accelerator();
  if (cuda == nullptr)
    return "this emox was built without CUDA: configure it with -DEMOX_CUDA=ON where nvcc is, or use run.device = cpu";
  if (std::string trouble = cuda->trouble(); !trouble.empty()) return trouble;
  if (std::string unusable = cuda->unusable(kDevice); !unusable.empty()) return unusable;
  if (ranks > 1)
    return fmt::format(
        "there are {} ranks, and this version computes on one GPU with one rank: start one, or use run.device = cpu",
        ranks);
  return {};
}

DeviceChoice choose_device(DeviceKind device, Precision precision, int ranks) {
  std::string why = fmt::format("run.device = {}", kDeviceNames[idx(device)]);
  if (device == DeviceKind::Cpu) return on_cpu(precision, std::move(why));
  const std::string why_not = no_gpu(ranks);
  require<UsageError>(device != DeviceKind::Cuda || why_not.empty(), "run.device = cuda: {}", why_not);
  return why_not.empty() ? on_gpu(precision, std::move(why)) : on_cpu(precision, why + ": " + why_not);
}

DeviceChoice planned_device(const Recipe& recipe, int ranks) {
  if (recipe.run.device == DeviceKind::Cuda) return on_gpu(recipe.train.precision, "run.device = cuda");
  return choose_device(recipe.run.device, recipe.train.precision, ranks);
}

}  // namespace emox
