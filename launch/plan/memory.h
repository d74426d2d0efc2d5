// What a run would take on each of its ranks, known before it is submitted.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "launch/config/recipe.h"
#include "launch/run/device_choice.h"

namespace emox {

/// Bytes, of the memory of the device that computes: a GPU's, or the host's.
struct RankMemory {
  std::int64_t weights_and_gradients = 0;
  std::int64_t expert_weights = 0;  ///< of these, the routed experts' weights alone
  std::int64_t optimizer = 0;
  std::int64_t activations = 0;  ///< with scratch, receive buffers as reserved at the start
  std::int64_t checkpoint = 0;   ///< host memory: the copy that is written, with checkpoint.async or from a GPU
  std::int64_t libraries = 0;    ///< of a GPU: what CUDA and its libraries take before anything is allocated; a guess
  std::int64_t op_scratch = 0;   ///< of a GPU: what its ops share for intermediate results; at most
  std::int64_t staging = 0;      ///< host memory beside a GPU: where copies to and from it pass through
  std::int64_t total = 0;        ///< everything that is allocated before the first step, and the two above
  bool recompute = false;        ///< the forward pass runs twice for lack of memory on this machine, or by the recipe
};

/// What a context and the libraries' code and handles take of a GPU: about half a GiB, by driver and GPU.
inline constexpr std::int64_t kGpuLibraries = std::int64_t{512} << 20;
/// Pinned, of each queue: two halves of 16 MiB and a page.
inline constexpr std::int64_t kGpuStaging = std::int64_t{32} << 20;

/// What the ops of a GPU take for intermediate results, at most: they share one block, as large as the one that needs
/// most, and a quarter beyond it (runtime/cuda/queue.h).
std::int64_t gpu_op_scratch(const ModelConfig& model, std::int64_t tokens, DType activations);

/// Makes model, optimizer and training step of `rank` of `ranks` under a MemoryMeasurement: the code that allocates,
/// without the memory; for a GPU, too, where there is none. UsageError when the recipe does not fit these ranks.
RankMemory plan_rank_memory(const Recipe& recipe, int ranks, int ranks_per_node, int rank, int threads,
                            const DeviceChoice& device = {});

/// The ranks with the least and the most memory: {"ranks", "mesh", "device", "precision", "least": {...}, "most":
/// {...}} (bytes).
nlohmann::ordered_json plan_memory(const Recipe& recipe, int ranks, int ranks_per_node, int threads,
                                   const DeviceChoice& device = {});

/// The parts of the rank with the most memory, a line each, for people; of what plan_memory gave.
std::string memory_lines(const nlohmann::ordered_json& plan);

}  // namespace emox
