// The functions of runtime/cuda/ptx/device_ptx.h on the emulator.
#pragma once

#include <cuda_runtime.h>

#include "runtime/core/bf16.h"

template <typename S>
S& shared_memory(emu::Where w = emu::Where::current()) {
  return *static_cast<S*>(emu::shared_base(sizeof(S), w));
}

inline void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                         emu::Where w = emu::Where::current()) {
  emu::mma(d, a, b, w);
}

inline void load_matrices_x4(std::uint32_t (&r)[4], const void* row, emu::Where w = emu::Where::current()) {
  emu::ldmatrix(r, row, false, w);
}
inline void load_matrices_x4_transposed(std::uint32_t (&r)[4], const void* row, emu::Where w = emu::Where::current()) {
  emu::ldmatrix(r, row, true, w);
}

inline void copy_async_16(void* to, const void* from, bool valid, emu::Where w = emu::Where::current()) {
  emu::copy_async(to, from, 16, valid, w);
}
inline void copy_async_commit() { emu::copy_commit(); }
template <int kPending>
void copy_async_wait() {
  emu::copy_wait(kPending);
}

inline std::uint32_t pack_bf16(float low, float high) {
  return emox::Bf16(low).bits() | static_cast<std::uint32_t>(emox::Bf16(high).bits()) << 16;
}
inline float exp2_fast(float x) { return x < -126.0F ? 0.0F : std::exp2(x); }
