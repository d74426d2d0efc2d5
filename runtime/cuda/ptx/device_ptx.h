// Instructions that C++ has no word for, and shared memory: nvcc's side. The emulator has a file of the same name.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

/// The block's dynamic shared memory as an S; the launch gives sizeof(S) bytes. Its content is undefined.
template <typename S>
__device__ __forceinline__ S& shared_memory() {
  extern __shared__ __align__(1024) unsigned char emox_shared_bytes[];
  return *reinterpret_cast<S*>(emox_shared_bytes);
}

/// d += a b for the warp: A 16x16 row-major, B 16x8 column-major, bf16; d f32. The layout of PTX's
/// mma.sync.m16n8k16: with g = lane / 4, t = 2 (lane % 4), d[0..3] are (g,t) (g,t+1) (g+8,t) (g+8,t+1).
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  asm(  // not volatile: the compiler may move it, as any multiplication
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// Four 8x8 matrices of 16-bit elements from shared memory: lane l gives the address of row l % 8 of matrix l / 8, 16
/// bytes, aligned; lane l gets elements 2 (l % 4) and the next of row l / 4 of each matrix.
__device__ __forceinline__ void load_matrices_x4(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}
/// The same, each matrix transposed: lane l gets elements (row 2 (l % 4), and the next row) of column l / 4.
__device__ __forceinline__ void load_matrices_x4_transposed(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

/// 16 bytes global -> shared while the thread goes on; zeros where !valid (the address is not read then). Both
/// addresses are multiples of 16.
__device__ __forceinline__ void copy_async_16(void* to, const void* from, bool valid) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(to))),
      "l"(from), "r"(valid ? 16 : 0)
      : "memory");
}
/// Ends this thread's group of copies.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most kPending of this thread's groups are on their way.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// Two floats rounded to bf16, to nearest, ties to even; the first in the lower half. NaN stays NaN.
__device__ __forceinline__ std::uint32_t pack_bf16(float low, float high) {
  std::uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
/// 2^x within 2 units of the last place; results below 2^-126 are 0.
__device__ __forceinline__ float exp2_fast(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
