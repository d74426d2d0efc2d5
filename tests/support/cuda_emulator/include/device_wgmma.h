// The functions of runtime/cuda/ptx/device_wgmma.h on the emulator.
#pragma once

#include <cuda_runtime.h>

inline std::uint64_t wgmma_operand(const void* at, int leading_bytes, int stride_bytes) {
  return static_cast<std::uint64_t>((emu::shared_address(at) & 0x3ffffU) >> 4) |
         static_cast<std::uint64_t>(leading_bytes >> 4) << 16 | static_cast<std::uint64_t>(stride_bytes >> 4) << 32 |
         std::uint64_t{1} << 62;
}
inline std::uint64_t wgmma_advance(std::uint64_t operand, int bytes) {
  return operand + static_cast<std::uint64_t>(bytes >> 4);
}

inline void fence_async_proxy() { emu::fence_proxy(); }
inline void wgmma_fence(emu::Where w = emu::Where::current()) { emu::wgmma_step(emu::WgmmaStep::Fence, 0, w); }
inline void wgmma_commit(emu::Where w = emu::Where::current()) { emu::wgmma_step(emu::WgmmaStep::Commit, 0, w); }
template <int kPending>
void wgmma_wait(emu::Where w = emu::Where::current()) {
  emu::wgmma_step(emu::WgmmaStep::Wait, kPending, w);
}
inline void wgmma_hold(float (&)[128]) {}
template <bool kAcrossA, bool kAcrossB>
void wgmma_m64n256k16(float (&d)[128], std::uint64_t a, std::uint64_t b, emu::Where w = emu::Where::current()) {
  emu::wgmma(d, {a, b, kAcrossA, kAcrossB, 256}, w);
}
