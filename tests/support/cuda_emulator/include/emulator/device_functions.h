// Functions of device code: barriers, warps, atomics, bits, mathematics.
#pragma once

#include <emulator/types.h>
#include <math.h>

#include <cmath>
#include <cstring>
#include <type_traits>

// Set whenever a thread goes on.
extern constinit uint3 threadIdx, blockIdx;
extern constinit dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emu {

extern constinit unsigned lane;  ///< of the warp

/// Where threads of the block meet; the result is the number of them that said yes.
int sync_block(bool yes, Where where);
/// All lanes of `mask` meet; the result is the word that lane `from` brought. All bits set: it brought none.
std::uint64_t exchange(unsigned mask, std::uint64_t word, unsigned from, Where where);
/// The words of all lanes of `mask`.
void exchange_all(unsigned mask, std::uint64_t word, std::uint64_t (&all)[32], Where where);
unsigned vote(unsigned mask, bool yes, Where where);
void mma(float* d, const std::uint32_t* a, const std::uint32_t* b, Where where);
void ldmatrix(std::uint32_t* r, const void* row, bool transposed, Where where);
void copy_async(void* to, const void* from, std::size_t bytes, bool valid, Where where);
void copy_commit();
void copy_wait(int pending);
void* shared_base(std::size_t bytes, Where where);

/// One product as its threads asked for it.
struct Product {
  std::uint64_t a = 0, b = 0;  ///< descriptors
  bool across_a = false, across_b = false;
  unsigned columns = 0;
  bool operator==(const Product&) const = default;
};
enum class WgmmaStep { Fence, Commit, Wait };
std::uint32_t shared_address(const void* p);
void fence_proxy();
void wgmma(float* sums, const Product& p, Where where);
void wgmma_step(WgmmaStep step, int pending, Where where);

template <typename T>
T shuffle(unsigned mask, T v, unsigned from, Where where) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "as on the device");
  std::uint64_t word = 0;
  std::memcpy(&word, &v, sizeof v);
  word = exchange(mask, word, from, where);
  std::memcpy(&v, &word, sizeof v);
  return v;
}
template <typename To, typename From>
To same_bits(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &v, sizeof to);
  return to;
}
/// op over the words of the lanes of the mask, in the order of the lanes.
template <typename T, typename F>
T reduce(unsigned mask, T v, Where where, F op) {
  std::uint64_t words[32];
  exchange_all(mask, static_cast<std::uint64_t>(v), words, where);
  bool first = true;
  for (int l = 0; l < 32; ++l) {
    if ((mask >> l & 1U) == 0) continue;
    const T x = static_cast<T>(words[l]);
    v = first ? x : op(v, x);
    first = false;
  }
  return v;
}

}  // namespace emu

inline void __syncthreads(emu::Where w = emu::Where::current()) { emu::sync_block(false, w); }
inline int __syncthreads_count(int p, emu::Where w = emu::Where::current()) { return emu::sync_block(p != 0, w); }
inline int __syncthreads_or(int p, emu::Where w = emu::Where::current()) { return emu::sync_block(p != 0, w) != 0; }
inline int __syncthreads_and(int p, emu::Where w = emu::Where::current()) { return emu::sync_block(p == 0, w) == 0; }
inline void __syncwarp(unsigned mask = ~0U, emu::Where w = emu::Where::current()) { emu::vote(mask, false, w); }
// Blocks and threads run one after another, so there is nothing for a fence to order.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

template <typename T>
T __shfl_sync(unsigned mask, T v, int from, int width = 32, emu::Where w = emu::Where::current()) {
  const auto part = static_cast<unsigned>(width) - 1;
  return emu::shuffle(mask, v, (emu::lane & ~part) | (static_cast<unsigned>(from) & part), w);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32, emu::Where w = emu::Where::current()) {
  const auto part = static_cast<unsigned>(width) - 1;
  const unsigned from = emu::lane ^ static_cast<unsigned>(lanes);
  return emu::shuffle(mask, v, (from & ~part) > (emu::lane & ~part) ? emu::lane : from, w);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, emu::Where w = emu::Where::current()) {
  const auto part = static_cast<unsigned>(width) - 1;
  return emu::shuffle(mask, v, (emu::lane & part) + by > part ? emu::lane : emu::lane + by, w);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, emu::Where w = emu::Where::current()) {
  const auto part = static_cast<unsigned>(width) - 1;
  return emu::shuffle(mask, v, (emu::lane & part) < by ? emu::lane : emu::lane - by, w);
}
inline unsigned __ballot_sync(unsigned mask, int p, emu::Where w = emu::Where::current()) {
  return emu::vote(mask, p != 0, w);
}
inline int __any_sync(unsigned mask, int p, emu::Where w = emu::Where::current()) {
  return emu::vote(mask, p != 0, w) != 0;
}
inline int __all_sync(unsigned mask, int p, emu::Where w = emu::Where::current()) {
  return emu::vote(mask, p == 0, w) == 0;
}
/// The lanes of the mask that hold the same word.
template <typename T>
unsigned __match_any_sync(unsigned mask, T v, emu::Where w = emu::Where::current()) {
  static_assert(std::is_integral_v<T>);
  std::uint64_t words[32];
  emu::exchange_all(mask, static_cast<std::uint64_t>(v), words, w);
  unsigned same = 0;
  for (int l = 0; l < 32; ++l)
    if ((mask >> l & 1U) != 0 && static_cast<T>(words[l]) == v) same |= 1U << l;
  return same;
}
template <typename T>
T __reduce_add_sync(unsigned mask, T v, emu::Where w = emu::Where::current()) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);
  return emu::reduce(mask, v, w,
                     [](T a, T b) { return static_cast<T>(static_cast<unsigned>(a) + static_cast<unsigned>(b)); });
}
template <typename T>
T __reduce_max_sync(unsigned mask, T v, emu::Where w = emu::Where::current()) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);
  return emu::reduce(mask, v, w, [](T a, T b) { return a > b ? a : b; });
}
template <typename T>
T __reduce_min_sync(unsigned mask, T v, emu::Where w = emu::Where::current()) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);
  return emu::reduce(mask, v, w, [](T a, T b) { return a < b ? a : b; });
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned v, emu::Where w = emu::Where::current()) {
  return emu::reduce(mask, v, w, [](unsigned a, unsigned b) { return a | b; });
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned v, emu::Where w = emu::Where::current()) {
  return emu::reduce(mask, v, w, [](unsigned a, unsigned b) { return a & b; });
}

// Integers only: float atomics would make sums depend on the order.
template <typename T>
T atomicAdd(T* p, T v) {
  static_assert(std::is_integral_v<T>);
  return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
template <typename T>
T atomicMax(T* p, T v) {
  static_assert(std::is_integral_v<T>);
  T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (old < v && !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
template <typename T>
T atomicMin(T* p, T v) {
  static_assert(std::is_integral_v<T>);
  T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (old > v && !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
template <typename T>
T atomicOr(T* p, T v) {
  return __atomic_fetch_or(p, v, __ATOMIC_RELAXED);
}
template <typename T>
T atomicAnd(T* p, T v) {
  return __atomic_fetch_and(p, v, __ATOMIC_RELAXED);
}
template <typename T>
T atomicExch(T* p, T v) {
  return __atomic_exchange_n(p, v, __ATOMIC_RELAXED);
}
template <typename T>
T atomicCAS(T* p, T expected, T v) {
  __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __float_as_int(float x) { return emu::same_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emu::same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return emu::same_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emu::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emu::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emu::same_bits<double>(x); }

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
void __stcs(T* p, T v) {
  *p = v;
}

constexpr int min(int a, int b) { return b < a ? b : a; }
constexpr unsigned min(unsigned a, unsigned b) { return b < a ? b : a; }
constexpr long min(long a, long b) { return b < a ? b : a; }
constexpr unsigned long min(unsigned long a, unsigned long b) { return b < a ? b : a; }
constexpr long long min(long long a, long long b) { return b < a ? b : a; }
inline float min(float a, float b) { return fminf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
constexpr int max(int a, int b) { return a < b ? b : a; }
constexpr unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
constexpr long max(long a, long b) { return a < b ? b : a; }
constexpr unsigned long max(unsigned long a, unsigned long b) { return a < b ? b : a; }
constexpr long long max(long long a, long long b) { return a < b ? b : a; }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

// Exact here; on the device the last bits differ.
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __saturatef(float x) { return x > 0 ? x < 1 ? x : 1.0F : 0.0F; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float rsqrtf(float x) { return 1.0F / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
