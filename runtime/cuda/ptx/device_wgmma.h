// Hopper's products of whole warpgroups (wgmma): nvcc's side. The emulator has a file of the same name. The
// instructions are those of sm_90a alone: compiled for anything else, a kernel that comes to one stops.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define EMOX_WGMMA(...) asm volatile(__VA_ARGS__)
#else
#define EMOX_WGMMA(...) __trap()
#endif

/// Where one operand of a product lies in shared memory, swizzled by 128 bytes: bits 4..6 of an address are XORed with
/// its bits 7..9, and so `at` lies in the first of 8 rows of 128 bytes that begin at a multiple of 1024.
///
/// Along K: a line (of A a row, of B a column) is 16 elements in a row of 128 bytes, 8 lines are 1024 bytes;
/// stride_bytes from 8 lines to the next 8; leading_bytes is not used.
/// Across K: 64 lines side by side are a row of 128 bytes, rows follow along K; stride_bytes from 8 of K to the next 8,
/// leading_bytes from 64 lines to the next 64.
__device__ __forceinline__ std::uint64_t wgmma_operand(const void* at, int leading_bytes, int stride_bytes) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(at));
  return static_cast<std::uint64_t>((address & 0x3ffffU) >> 4) | static_cast<std::uint64_t>(leading_bytes >> 4) << 16 |
         static_cast<std::uint64_t>(stride_bytes >> 4) << 32 | std::uint64_t{1} << 62;
}
/// The operand `bytes` further on.
__device__ __forceinline__ std::uint64_t wgmma_advance(std::uint64_t operand, int bytes) {
  return operand + static_cast<std::uint64_t>(bytes >> 4);
}

/// What this thread wrote to shared memory, its finished cp.async too, is there for wgmma of whoever meets it at a
/// barrier afterwards.
__device__ __forceinline__ void fence_async_proxy() { EMOX_WGMMA("fence.proxy.async.shared::cta;" ::: "memory"); }
/// Before the first product after the sums were touched.
__device__ __forceinline__ void wgmma_fence() { EMOX_WGMMA("wgmma.fence.sync.aligned;" ::: "memory"); }
/// Ends the warpgroup's group of products.
__device__ __forceinline__ void wgmma_commit() { EMOX_WGMMA("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most kPending groups are on their way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  EMOX_WGMMA("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

#define EMOX_4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define EMOX_16(i) EMOX_4(i), EMOX_4((i) + 4), EMOX_4((i) + 8), EMOX_4((i) + 12)
#define EMOX_64(i) EMOX_16(i), EMOX_16((i) + 16), EMOX_16((i) + 32), EMOX_16((i) + 48)

/// Keeps the compiler from moving uses of the sums across this place: it does not know that products write them later.
__device__ __forceinline__ void wgmma_hold(float (&d)[128]) { EMOX_WGMMA("" : EMOX_64(0), EMOX_64(64)::"memory"); }

/// d += a b for the warpgroup, later: A 64x16, B 16x256, bf16, in shared memory; whether they lie across K. With
/// g = lane / 4, t = 2 (lane % 4), d[4 j + ..] of the warpgroup's warp w are (16 w + g, 8 j + t) (.., 8 j + t + 1)
/// (16 w + g + 8, 8 j + t) (.., 8 j + t + 1). Nobody touches d or the operands until wgmma_wait() says that it is done.
template <bool kAcrossA, bool kAcrossB>
__device__ __forceinline__ void wgmma_m64n256k16(float (&d)[128], std::uint64_t a, std::uint64_t b) {
  EMOX_WGMMA(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
      " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
      " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63,"
      " %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79,"
      " %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95,"
      " %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111,"
      " %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127},"
      " %128, %129, add, 1, 1, %130, %131;\n"
      "}\n"
      : EMOX_64(0), EMOX_64(64)
      : "l"(a), "l"(b), "n"(kAcrossA ? 1 : 0), "n"(kAcrossB ? 1 : 0)
      : "memory");
}

#undef EMOX_64
#undef EMOX_16
#undef EMOX_4
#undef EMOX_WGMMA
