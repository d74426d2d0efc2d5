// What the emulator tells ThreadSanitizer and AddressSanitizer, where the program is linked with them. The emulator's
// own files are compiled without ThreadSanitizer: which of its accesses are the kernel's, it says by hand.
#pragma once

#include <cstddef>

extern "C" {
[[gnu::weak]] void __tsan_read_range(void* address, unsigned long bytes);
[[gnu::weak]] void __tsan_write_range(void* address, unsigned long bytes);
[[gnu::weak]] void __tsan_acquire(void* object);
[[gnu::weak]] void __tsan_release(void* object);
[[gnu::weak]] void* __tsan_get_current_fiber();
[[gnu::weak]] void* __tsan_create_fiber(unsigned flags);
[[gnu::weak]] void __tsan_destroy_fiber(void* fibre);
[[gnu::weak]] void __tsan_switch_to_fiber(void* fibre, unsigned flags);
[[gnu::weak]] void AnnotateIgnoreReadsBegin(const char* file, int line);
[[gnu::weak]] void AnnotateIgnoreReadsEnd(const char* file, int line);
[[gnu::weak]] void AnnotateIgnoreWritesBegin(const char* file, int line);
[[gnu::weak]] void AnnotateIgnoreWritesEnd(const char* file, int line);
[[gnu::weak]] void __asan_poison_memory_region(const volatile void* address, std::size_t bytes);
[[gnu::weak]] void __asan_unpoison_memory_region(const volatile void* address, std::size_t bytes);
[[gnu::weak]] void __sanitizer_start_switch_fiber(void** save, const void* bottom, std::size_t bytes);
[[gnu::weak]] void __sanitizer_finish_switch_fiber(void* saved, const void** bottom, std::size_t* bytes);
}

namespace emu {

inline bool under_tsan() { return __tsan_create_fiber != nullptr; }
inline bool under_asan() { return __asan_poison_memory_region != nullptr; }

/// A kernel, copy or product reads or writes these bytes.
inline void note_read(const void* p, std::size_t bytes) {
  if (under_tsan()) __tsan_read_range(const_cast<void*>(p), bytes);
}
inline void note_write(void* p, std::size_t bytes) {
  if (under_tsan()) __tsan_write_range(p, bytes);
}
inline void acquire(void* object) {
  if (under_tsan()) __tsan_acquire(object);
}
inline void release(void* object) {
  if (under_tsan()) __tsan_release(object);
}
inline void poison(const void* p, std::size_t bytes) {
  if (under_asan()) __asan_poison_memory_region(p, bytes);
}
inline void unpoison(const void* p, std::size_t bytes) {
  if (under_asan()) __asan_unpoison_memory_region(p, bytes);
}

/// While it lives, ThreadSanitizer sees no memory access: lanes that use what the emulator keeps for them all, whose
/// memory comes and goes by functions that it watches.
class Quiet {
 public:
  Quiet() {
    if (under_tsan()) AnnotateIgnoreReadsBegin("", 0), AnnotateIgnoreWritesBegin("", 0);
  }
  ~Quiet() {
    if (under_tsan()) AnnotateIgnoreWritesEnd("", 0), AnnotateIgnoreReadsEnd("", 0);
  }
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;
};

}  // namespace emu
