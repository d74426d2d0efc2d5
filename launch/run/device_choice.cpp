#include "launch/run/device_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "parallel/comm/together.h"
#include "runtime/core/accelerator.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

DeviceChoice on_cpu(Precision precision, std::string why) {
  require<UsageError>(precision != Precision::Bf16,
                      "train.precision = bf16, but the CPU computes f32 only ({}); use auto or f32", why);
  return {{}, DType::F32, std::move(why)};
}

DeviceChoice on_gpu(int index, Precision precision, std::string why) {
  return {{DeviceType::Cuda, index}, precision == Precision::F32 ? DType::F32 : DType::BF16, std::move(why)};
}

std::string why_text(DeviceKind device) { return fmt::format("run.device = {}", kDeviceNames[idx(device)]); }

/// Which of the devices that it sees is a rank's: a mask leaves it one, else it is that of its place in the node.
int own_device(const Communicator& world) {
  const Accelerator* const cuda = cuda::accelerator();
  const int count = cuda == nullptr ? 0 : cuda->count();
  return count == 0 ? 0 : world.node_rank() % count;
}

std::string bus_of(const DeviceChoice& choice) {
  return choice.on_gpu() ? cuda::accelerator()->properties(choice.device.index).bus : "";
}

/// The PCI addresses of all ranks' devices, on every rank.
std::vector<std::string> all_buses(Communicator& world, const std::string& own) {
  constexpr std::size_t kLongest = 32;
  std::vector<std::uint8_t> mine(kLongest, 0), all(kLongest * idx(world.size()));
  std::copy_n(own.begin(), std::min(own.size(), kLongest - 1), mine.begin());
  world.all_gather(TensorView(all.data(), DType::U8, {world.size(), kLongest}),
                   TensorView(mine.data(), DType::U8, {kLongest}));
  std::vector<std::string> buses;
  for (int r = 0; r < world.size(); ++r) buses.emplace_back(reinterpret_cast<const char*>(&all[idx(r) * kLongest]));
  return buses;
}

/// Two ranks of one node that have the same device.
std::optional<std::pair<int, int>> sharing(const Communicator& world, const std::vector<std::string>& buses) {
  for (int a = 0; a < world.size(); ++a)
    for (int b = a + 1; b < world.size(); ++b)
      if (world.nodes()[idx(a)] == world.nodes()[idx(b)] && buses[idx(a)] == buses[idx(b)]) return std::pair(a, b);
  return std::nullopt;
}

}  // namespace

std::string no_gpu(int index) {
  const Accelerator* const cuda = cuda::accelerator();
  if (cuda == nullptr)
    return "this emox was built without CUDA: configure it with -DEMOX_CUDA=ON where nvcc is, or use run.device = cpu";
  if (std::string trouble = cuda->trouble(); !trouble.empty()) return trouble;
  return cuda->unusable(index);
}

DeviceChoice choose_device(DeviceKind device, Precision precision) {
  const std::unique_ptr<Communicator> alone = make_self_communicator();
  return choose_device(*alone, device, precision, CommunicatorKind::Auto);
}

DeviceChoice choose_device(Communicator& world, DeviceKind device, Precision precision, CommunicatorKind communicator) {
  std::string why = why_text(device);
  if (device == DeviceKind::Cpu) return on_cpu(precision, std::move(why));
  const int index = own_device(world);
  // All ranks or none: one that computes elsewhere would hold up the others.
  const std::string own = no_gpu(index);
  const std::optional<int> without = first_rank_with(world, !own.empty());
  if (without) {
    std::string why_not = broadcast_text(world, own, *without);
    if (world.size() > 1) why_not = fmt::format("rank {}: {}", *without, why_not);
    require<UsageError>(device != DeviceKind::Cuda, "run.device = cuda: {}", why_not);
    return on_cpu(precision, why + ": " + why_not);
  }
  DeviceChoice choice = on_gpu(index, precision, std::move(why));
  if (world.size() == 1 || communicator == CommunicatorKind::Staged) return choice;
  if (std::getenv("NCCL_HOSTID") != nullptr) return choice;  // NCCL is told that ranks are on other hosts than they are
  const std::vector<std::string> buses = all_buses(world, bus_of(choice));
  const auto pair = sharing(world, buses);
  require<UsageError>(
      !pair,
      "ranks {} and {} have the same GPU (PCI {}): start one rank a GPU{}, or let ranks share one through host "
      "memory with parallel.communicator = staged, which is slower",
      pair->first, pair->second, pair ? buses[idx(pair->first)] : "",
      world.node_size() > cuda::accelerator()->count()
          ? fmt::format(" (this node has {} ranks and shows them {})", world.node_size(), cuda::accelerator()->count())
          : "");
  return choice;
}

std::vector<std::string> binding_lines(Communicator& world, const DeviceChoice& choice) {
  std::string own = "the CPU";
  if (choice.on_gpu()) {
    const DeviceProperties p = cuda::accelerator()->properties(choice.device.index);
    own = fmt::format("GPU {} ({}, PCI {})", choice.device.index, p.name, p.bus);
  }
  const std::vector<std::string> texts = gather_texts(world, own);
  std::map<int, std::string> lines;
  for (std::size_t r = 0; r < texts.size(); ++r) {
    std::string& line = lines[world.nodes()[r]];
    line += fmt::format("{}rank {} on {}", line.empty() ? "" : ", ", r, texts[r]);
  }
  std::vector<std::string> out;
  for (const auto& [node, line] : lines) out.push_back(fmt::format("node {}: {}", node, line));
  return out;
}

DeviceChoice planned_device(const Recipe& recipe) {
  if (recipe.run.device == DeviceKind::Cuda) return on_gpu(0, recipe.train.precision, "run.device = cuda");
  return choose_device(recipe.run.device, recipe.train.precision);
}

}  // namespace emox
