#include "tests/support/cuda_emulator/fibre.h"

#include <sys/mman.h>

#include <stdexcept>

#include "tests/support/cuda_emulator/sanitizers.h"

namespace emu {
namespace {

constexpr std::size_t kStack = std::size_t{128} << 10, kGuard = 4096, kChunk = 32;

// Who jumped, and who was jumped to.
Fibre *leaving = nullptr, *running = nullptr;

}  // namespace

void Fibres::grow() {
  void* const chunk =
      mmap(nullptr, kStack * kChunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (chunk == MAP_FAILED) throw std::runtime_error("no memory for the emulator's stacks");
  for (std::size_t i = 0; i < kChunk; ++i) {
    auto* const low = static_cast<std::uint8_t*>(chunk) + i * kStack;
    mprotect(low, kGuard, PROT_NONE);
    // The stacks of neighbours begin in different lines of the cache.
    const std::size_t shift = (i * 512 + i / 8 * 64) % 4096;
    all_.push_back(std::make_unique<Fibre>(Fibre{.stack = low + kGuard, .bytes = kStack - kGuard - shift}));
  }
  for (std::size_t i = 1; i <= kChunk; ++i) free_.push_back(all_[all_.size() - i].get());
}

Fibre& Fibres::take(void (*entry)(boost::context::detail::transfer_t)) {
  if (free_.empty()) grow();
  Fibre& f = *free_.back();
  free_.pop_back();
  begin(f, entry);
  return f;
}

void Fibres::begin(Fibre& f, void (*entry)(boost::context::detail::transfer_t)) {
  if (f.middle) unpoison(f.stack, f.bytes);
  f.middle = false;
  f.fake_stack = nullptr;
  auto* const top = const_cast<std::uint8_t*>(static_cast<const std::uint8_t*>(f.stack)) + f.bytes;
  f.context = boost::context::detail::make_fcontext(top, f.bytes, entry);
}

const void* Fibres::overrun(const void* p) const {
  for (const auto& f : all_) {
    const auto* low = static_cast<const std::uint8_t*>(f->stack);
    if (p < low && p >= low - kGuard) return low + f->bytes;
  }
  return nullptr;
}

void jump(Fibre& from, Fibre& to, bool finished) {
  leaving = &from;
  running = &to;
  if (under_asan()) __sanitizer_start_switch_fiber(finished ? nullptr : &from.fake_stack, to.stack, to.bytes);
  arrived(boost::context::detail::jump_fcontext(to.context, nullptr));
}

void arrived(boost::context::detail::transfer_t t) {
  leaving->context = t.fctx;
  if (!under_asan()) return;
  const void* bottom = nullptr;
  std::size_t bytes = 0;
  __sanitizer_finish_switch_fiber(running->fake_stack, &bottom, &bytes);
  running->fake_stack = nullptr;
  leaving->stack = bottom;  // of the thread's own stack, nobody knew it before
  leaving->bytes = bytes;
}

}  // namespace emu
