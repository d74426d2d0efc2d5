// Launching a kernel: the only way, and the only place that knows how. Includes what every .cu file needs.
//
// Kernels never use <<<>>>, __shared__ variables or inline PTX: shared memory is one struct, shared_memory<S>(), and
// instructions beyond C++ are functions of device_ptx.h. So the same files compile with nvcc and, over the emulator of
// tests/support/cuda_emulator, with a host compiler.
#pragma once

#include <cuda_runtime.h>
#include <device_ptx.h>

#include <cstddef>
#include <cstdint>

#include "runtime/cuda/queue.h"
#include "runtime/ops/op_list.h"

namespace emox::cuda {

struct Shape3 {
  dim3 blocks, threads;
  std::size_t shared = 0;  ///< bytes of shared memory, sizeof the kernel's struct
};

/// Enqueues the kernel; nothing when there are no blocks. Arguments convert to the kernel's parameters. Errors name the
/// op.
template <typename... P, typename... A>
void launch(Queue& queue, ops::Op op, void (*kernel)(P...), const Shape3& shape, A&&... arguments) {
  if (shape.blocks.x == 0 || shape.blocks.y == 0 || shape.blocks.z == 0) return;
  queue.count_launch(op);
  if (shape.shared > 48 * 1024)
    queue.check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     static_cast<int>(shape.shared)),
                "shared memory of a kernel");
  cudaLaunchConfig_t config{};
  config.gridDim = shape.blocks;
  config.blockDim = shape.threads;
  config.dynamicSmemBytes = shape.shared;
  config.stream = queue.handle();
  queue.check(cudaLaunchKernelEx(&config, kernel, P(arguments)...), "launching a kernel");
}

/// Blocks of `threads` that cover n items, one thread an item; at most 2^31 - 1.
inline dim3 blocks_of(std::int64_t n, int threads) { return {static_cast<unsigned>((n + threads - 1) / threads)}; }

}  // namespace emox::cuda
