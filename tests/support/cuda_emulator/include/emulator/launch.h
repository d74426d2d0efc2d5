// Launching kernels.
#pragma once

#include <emulator/runtime_api.h>
#include <emulator/types.h>

#include <functional>
#include <initializer_list>
#include <tuple>
#include <type_traits>
#include <utility>

struct cudaLaunchAttribute;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

namespace emu {

/// What every thread of a kernel calls, and what ends the arguments' life when the work is done. No smart pointers:
/// ThreadSanitizer would see their counters.
struct Body {
  void (*call)(const void* arguments) = nullptr;
  void (*destroy)(const void* arguments) = nullptr;
  const void* arguments = nullptr;
};
/// `pointers`: the arguments that are pointers, in order; null for the others.
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, std::initializer_list<const void*> pointers,
                   const Body& body);
/// Work that a stream does in its turn, on the host.
cudaError_t enqueue(cudaStream_t stream, std::function<void()> work, const Body& body = {});

template <typename T>
const void* pointer_or_null(const T& v) {
  if constexpr (std::is_pointer_v<T> && !std::is_function_v<std::remove_pointer_t<T>>)
    return v;
  else
    return nullptr;
}

}  // namespace emu

/// The arguments are taken now, as on a device.
template <typename... P, typename... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... args) {
  static_assert((std::is_trivially_copyable_v<P> && ...), "kernel parameters are copied as bytes");
  // NOLINTNEXTLINE(bugprone-sizeof-expression): pointers are passed as pointers
  static_assert((sizeof(P) + ... + 0) <= 32764, "more parameters than a kernel may have");
  using All = std::pair<void (*)(P...), std::tuple<P...>>;
  const auto* all = new All(kernel, std::tuple<P...>(std::forward<A>(args)...));
  const emu::Body body{
      [](const void* p) { std::apply(static_cast<const All*>(p)->first, static_cast<const All*>(p)->second); },
      [](const void* p) { delete static_cast<const All*>(p); }, all};
  return std::apply(
      [&](const P&... a) {
        return emu::launch(*config, reinterpret_cast<const void*>(kernel), {emu::pointer_or_null(a)...}, body);
      },
      all->second);
}
