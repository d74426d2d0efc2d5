// Hopper's products of warpgroups (wgmma), and what they see of shared memory.
//
// A product reads its operands, and its sums come, as late as may be: when the warp waits for its group. Until then the
// sums are NaN. So a wait that is missing shows, and so does a stage that is overwritten too early. What must have
// happened before it begins is checked when it begins: each piece of 16 bytes that it will read, if cp.async wrote it,
// has arrived; the thread that copied it has passed a fence of the async proxy since; and then the block a barrier.
//
// Not seen: writes by plain stores; a fence of the reader instead of the writer (taken for missing); sums that are
// touched between wgmma_fence() and the product.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/cuda_emulator/emulator.h"

namespace emu {

/// Which pieces of a block's shared memory the async proxy may read, and whether warps of one group do the same.
class AsyncProxy {
 public:
  static constexpr std::uint32_t kFirstAddress = 1024;  ///< of the block's shared memory, as on Hopper

  void begin_block(const std::uint8_t* shared, std::size_t bytes, unsigned threads);
  void barrier() { ++barriers_; }
  void copy_begins(const void* to) { mark(to, {true, 0, 0}); }
  void copy_ends(const void* to, unsigned thread);
  void fence(unsigned thread);

  std::uint32_t address_of(const void* p) const;
  /// The 16 bytes at the address; null: outside of the block's shared memory.
  const std::uint16_t* at(std::uint32_t address) const;
  /// Why a product must not read them now; empty: it may.
  std::string refusal(std::uint32_t address) const;
  /// The warp's next product; false: another warp of its group asked for another one.
  bool begin_product(unsigned warp, const Product& p);
  /// All warps of a group have asked for as many products.
  bool groups_agree() const;

 private:
  struct Piece {
    bool in_flight = false;
    std::uint16_t writer = 0;
    std::uint32_t fences = 0;  ///< of the writer before, and 1; 0: no copy wrote it
  };
  void mark(const void* to, Piece piece);
  const std::uint8_t* shared_ = nullptr;
  std::size_t bytes_ = 0;
  std::uint32_t barriers_ = 0;
  bool used_ = false;
  std::vector<Piece> pieces_;
  std::vector<std::vector<std::uint32_t>> fences_;  ///< of each thread: barriers before each
  struct Group {
    std::vector<Product> products;
    std::array<std::size_t, 4> asked{};
  };
  std::vector<Group> groups_;
};

/// A warp's products that are not done.
class WarpProducts {
 public:
  /// A fence, or a product with other sums: empty, or what is wrong.
  void fence() { fenced_ = true; }
  std::string begin(const Product& p, const std::array<float*, 32>& sums, const AsyncProxy& proxy, unsigned warp);
  void commit();
  void wait(std::size_t pending, const AsyncProxy& proxy, unsigned warp);
  bool empty() const { return waiting_.empty(); }
  void clear();

 private:
  struct Sums {  ///< taken from the threads until all products on them are done
    std::array<float*, 32> at{};
    unsigned columns = 0;
    std::size_t products = 0;
    std::vector<float> values;  ///< [16][columns]
  };
  struct Waiting {
    Product product;
    std::size_t sums = 0;  ///< its index
  };
  void finish(const Waiting& w, const AsyncProxy& proxy, unsigned warp);
  std::vector<Waiting> waiting_;
  std::vector<Sums> sums_;
  std::vector<std::size_t> ends_;  ///< of groups, in products that have begun
  std::size_t begun_ = 0, done_ = 0, groups_done_ = 0;
  bool fenced_ = false;
};

}  // namespace emu
