#include "tests/support/cuda_emulator/heap.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <stdexcept>

#include "tests/support/cuda_emulator/sanitizers.h"
#include "tests/support/cuda_emulator/state.h"

namespace emu {
namespace {

constexpr std::size_t kReserved = std::size_t{512} << 30, kPage = 4096, kGap = std::size_t{256} << 10, kAlign = 256;

std::size_t rounded(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }
/// A block lies at the end of its pages.
std::uintptr_t first_page(std::uintptr_t begin) { return begin / kPage * kPage; }
std::uintptr_t last_page(std::uintptr_t begin, std::size_t bytes) { return begin + rounded(bytes, kAlign); }

void protect(std::uintptr_t begin, std::size_t bytes, int rights) {
  const std::uintptr_t from = first_page(begin);
  if (mprotect(reinterpret_cast<void*>(from), last_page(begin, bytes) - from, rights) != 0)
    throw std::runtime_error("the emulator's memory cannot be protected: too many allocations");
}

/// Whether all bytes are 0xff.
[[gnu::no_sanitize("address", "undefined")]] bool untouched(std::uintptr_t from, std::uintptr_t to) {
  for (; from < to; ++from)
    if (*reinterpret_cast<const volatile std::uint8_t*>(from) != 0xff) return false;
  return true;
}

}  // namespace

// By the bare system call: sanitizers would prepare their own memory for all of it.
DeviceHeap::DeviceHeap() {
  const long p = syscall(SYS_mmap, nullptr, kReserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == -1) throw std::runtime_error("no address space for the emulator's device memory");
  base_ = next_ = static_cast<std::uintptr_t>(p);
}

void* DeviceHeap::allocate(int device, std::size_t bytes) {
  const std::size_t whole = rounded(bytes, kAlign), pages = rounded(whole, kPage);
  if (used_.size() <= static_cast<unsigned>(device)) used_.resize(static_cast<unsigned>(device) + 1U);
  if (whole < bytes || whole > options().memory - std::min(options().memory, used(device))) return nullptr;
  if (next_ + kGap + pages + kGap > base_ + kReserved) throw std::runtime_error("the emulator's addresses are used up");
  const std::uintptr_t begin = next_ + kGap + pages - whole;
  next_ += kGap + pages;
  used_[static_cast<unsigned>(device)] += whole;
  const auto at = blocks_.insert({begin, {bytes, device}}).first;
  if (open_.capacity() < blocks_.size()) open_.reserve(2 * blocks_.size());
  protect(begin, bytes, PROT_READ | PROT_WRITE);
  for (std::uintptr_t w = first_page(begin); w < begin + whole; w += sizeof(std::uint64_t))
    *reinterpret_cast<volatile std::uint64_t*>(w) = ~std::uint64_t{0};
  protect(at->first, bytes, PROT_NONE);
  const std::uintptr_t used_until = begin + rounded(bytes, 8);
  poison(reinterpret_cast<void*>(first_page(begin) - kGap), begin - first_page(begin) + kGap);
  poison(reinterpret_cast<void*>(used_until), next_ + kGap - used_until);
  return reinterpret_cast<void*>(begin);
}

bool DeviceHeap::release(void* p) {
  const auto at = blocks_.find(reinterpret_cast<std::uintptr_t>(p));
  if (at == blocks_.end() || !at->second.live) return false;
  const auto& [begin, block] = *at;
  const std::size_t whole = rounded(block.bytes, kAlign);
  used_[static_cast<unsigned>(block.device)] -= whole;
  std::erase(open_, at);
  protect(begin, block.bytes, PROT_NONE);
  const std::uintptr_t from = first_page(begin);
  madvise(reinterpret_cast<void*>(from), begin + whole - from, MADV_DONTNEED);
  poison(p, whole);
  at->second.live = at->second.open = false;
  return true;
}

bool DeviceHeap::reserved(const void* p) const {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  return address >= base_ && address < base_ + kReserved;
}
DeviceHeap::Blocks::const_iterator DeviceHeap::at_or_before(const void* p) const {
  const auto at = blocks_.upper_bound(reinterpret_cast<std::uintptr_t>(p));
  return at == blocks_.begin() ? blocks_.end() : std::prev(at);
}
const DeviceHeap::Block* DeviceHeap::find(const void* p) const {
  const auto at = at_or_before(p);
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  return at != blocks_.end() && at->second.live && address < at->first + at->second.bytes ? &at->second : nullptr;
}
std::size_t DeviceHeap::bytes_at(const void* p) const {
  if (find(p) == nullptr) return 0;
  const auto at = at_or_before(p);
  return at->first + at->second.bytes - reinterpret_cast<std::uintptr_t>(p);
}
std::size_t DeviceHeap::used(int device) const {
  return static_cast<unsigned>(device) < used_.size() ? used_[static_cast<unsigned>(device)] : 0;
}
std::size_t DeviceHeap::live() const {
  return static_cast<std::size_t>(std::count_if(blocks_.begin(), blocks_.end(), [](auto& b) { return b.second.live; }));
}

std::string DeviceHeap::describe(const void* p) const {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  const auto before = at_or_before(p);
  if (before != blocks_.end()) {
    const auto& [begin, block] = *before;
    const std::string name = (block.live ? "a block of " : "a freed block of ") + std::to_string(block.bytes) +
                             " bytes of device " + std::to_string(block.device);
    if (address < begin + block.bytes) return "byte " + std::to_string(address - begin) + " of " + name;
    const auto after = blocks_.upper_bound(address);
    if (after == blocks_.end() || address - begin - block.bytes < after->first - address)
      return std::to_string(address - begin - block.bytes) + " bytes after the end of " + name;
  }
  const auto after = blocks_.upper_bound(address);
  if (after == blocks_.end()) return "device memory that was never given out";
  return std::to_string(after->first - address) + " bytes before " +
         (after->second.live ? "a block of " : "a freed block of ") + std::to_string(after->second.bytes) + " bytes";
}

bool DeviceHeap::touch(const void* p, int device) {
  // A block's pages reach to both sides of it; what is wrong there, check_edges() sees.
  auto at = blocks_.upper_bound(reinterpret_cast<std::uintptr_t>(p));
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  const auto has = [&](auto b) {
    return address >= first_page(b->first) && address < last_page(b->first, b->second.bytes);
  };
  if (at == blocks_.end() || !has(at)) {
    if (at == blocks_.begin() || !has(std::prev(at))) return false;
    --at;
  }
  Block& block = at->second;
  if (!block.live || block.open || block.device != device) return false;
  protect(at->first, block.bytes, PROT_READ | PROT_WRITE);
  block.open = true;
  open_.push_back(at);
  return true;
}

std::string DeviceHeap::check_edges() {
  for (const auto& at : open_) {
    const auto& [begin, block] = *at;
    const std::string name =
        "a block of " + std::to_string(block.bytes) + " bytes of device " + std::to_string(block.device);
    if (!untouched(begin + block.bytes, last_page(begin, block.bytes))) return "wrote after the end of " + name;
    if (!untouched(first_page(begin), begin)) return "wrote before the begin of " + name;
  }
  return {};
}

void DeviceHeap::close() {
  for (const auto& at : open_) {
    protect(at->first, at->second.bytes, PROT_NONE);
    at->second.open = false;
  }
  open_.clear();
}

DeviceHeap& heap() {
  static DeviceHeap& all = *new DeviceHeap;  // outlives whoever frees memory at the end of the program
  return all;
}

}  // namespace emu
