#include <sys/mman.h>

#include <cstring>

#include "runtime/core/idx.h"
#include "tests/support/cuda_emulator/block.h"
#include "tests/support/cuda_emulator/sanitizers.h"
#include "tests/support/cuda_emulator/state.h"

namespace emu {
namespace {

constexpr std::size_t kPage = 4096, kArea = std::size_t{256} << 10, kAlign = 1024;

}  // namespace

// Shared memory lies at the end of an area between two pages that nothing may touch.
Runner::Runner() {
  area_ = static_cast<std::uint8_t*>(
      mmap(nullptr, kArea + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  area_ += kPage;
  mprotect(area_, kArea, PROT_READ | PROT_WRITE);
  poison(area_ - kPage, kPage);
  poison(area_ + kArea, kPage);
  for (unsigned i = 0; i < 32; ++i) warps_[i].number = i;
}

bool Runner::beside_shared(const void* address) const {
  return address >= area_ - kPage && address < area_ + kArea + kPage;
}
std::string Runner::describe(const void* address) const {
  if (beside_shared(address))
    return "an access outside of the block's shared memory of " + std::to_string(config_.dynamicSmemBytes) + " bytes";
  return fibres_.guards(address) ? "a thread needs more stack than there is" : "";
}

void Runner::place_shared() { shared_ = area_ + kArea - (config_.dynamicSmemBytes + kAlign - 1) / kAlign * kAlign; }
void Runner::leave_shared() { unpoison(area_, kArea); }

// What no thread of the block has written reads as NaN.
void Runner::clear_shared() {
  unpoison(area_, kArea);
  // ThreadSanitizer forgets who used it in the block before.
  if (under_tsan() && shared_ != area_ + kArea) {
    auto* const from =
        area_ + (shared_ - area_) / static_cast<std::ptrdiff_t>(kPage) * static_cast<std::ptrdiff_t>(kPage);
    mmap(from, emox::idx(area_ + kArea - from), PROT_READ | PROT_WRITE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  }
  std::memset(shared_, 0xff, emox::idx(area_ + kArea - shared_));
  poison(area_, emox::idx(shared_ - area_));
  const std::size_t used = (config_.dynamicSmemBytes + 7) / 8 * 8;
  poison(shared_ + used, emox::idx(area_ + kArea - shared_) - used);
}

[[gnu::no_sanitize("address", "undefined")]] std::string Runner::shared_edge() const {
  for (const std::uint8_t* p = shared_ + config_.dynamicSmemBytes; p < area_ + kArea; ++p)
    if (*p != 0xff) return "the block wrote after the end of its shared memory";
  return {};
}

void* Runner::shared(std::size_t bytes, Where where) {
  if (bytes > config_.dynamicSmemBytes)
    fail([&] {
      return "the kernel uses " + std::to_string(bytes) + " bytes of shared memory at " + at(where) +
             ", launched with " + std::to_string(config_.dynamicSmemBytes);
    });
  return shared_;
}

}  // namespace emu
