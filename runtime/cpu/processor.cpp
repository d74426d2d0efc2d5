#include "runtime/cpu/processor.h"

namespace emox::cpu {

std::string missing_instructions() {
  std::string missing;
  const auto need = [&](bool have, const char* name) {
    if (!have) missing += (missing.empty() ? "" : ", ") + std::string(name);
  };
  (void)need;
#ifdef __x86_64__
  __builtin_cpu_init();
#ifdef __AVX2__
  need(__builtin_cpu_supports("avx2"), "AVX2");
#endif
#ifdef __FMA__
  need(__builtin_cpu_supports("fma"), "FMA");
#endif
#ifdef __AVX512F__
  need(__builtin_cpu_supports("avx512f"), "AVX-512F");
#endif
#ifdef __AVX512VL__
  need(__builtin_cpu_supports("avx512vl"), "AVX-512VL");
#endif
#ifdef __AVX512DQ__
  need(__builtin_cpu_supports("avx512dq"), "AVX-512DQ");
#endif
#endif
  return missing;
}

std::string compiled_instructions() {
#if defined(__AVX512F__)
  return "avx512f";
#elif defined(__AVX2__)
  return "avx2";
#elif defined(__x86_64__)
  return "sse2";
#else
  return "baseline";
#endif
}

}  // namespace emox::cpu
