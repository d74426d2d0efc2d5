// The memory of the emulated devices. Only device work reaches it: at any other time a touch of it ends the program
// with a message. Fresh memory holds 0xff everywhere: NaN, -1. Between allocations lie pages that nothing may touch,
// and an address is never given out twice, so that what reads beyond the end of a block, or one that was freed, stops.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace emu {

class DeviceHeap {
 public:
  struct Block {
    std::size_t bytes = 0;
    int device = 0;
    bool live = true, open = false;
  };

  DeviceHeap();
  /// Null: the device has no room.
  void* allocate(int device, std::size_t bytes);
  /// False: that is not the begin of a live block.
  bool release(void* p);

  bool reserved(const void* p) const;
  /// The live block that holds the address.
  const Block* find(const void* p) const;
  std::size_t bytes_at(const void* p) const;
  std::size_t used(int device) const;
  std::size_t live() const;

  /// Device work touches the address, which is closed: opens its block. False: it may not touch it. Takes no memory: it
  /// is called while a signal is handled.
  bool touch(const void* p, int device);
  /// What lies at the address, for messages.
  std::string describe(const void* p) const;
  /// After a piece of work: whether it wrote beside the blocks that it used; empty: no.
  std::string check_edges();
  /// No more device work: out of reach.
  void close();

 private:
  using Blocks = std::map<std::uintptr_t, Block>;
  Blocks::const_iterator at_or_before(const void* p) const;
  Blocks blocks_;  // by their begin, the freed ones too
  std::vector<Blocks::iterator> open_;
  std::vector<std::size_t> used_;
  std::uintptr_t base_ = 0, next_ = 0;
};

DeviceHeap& heap();

}  // namespace emu
