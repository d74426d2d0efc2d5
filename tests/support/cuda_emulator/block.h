// Runs kernels: a block's threads are lanes of warps that take turns on one OS thread, blocks run one after another.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/cuda_emulator/fibre.h"
#include "tests/support/cuda_emulator/wgmma.h"

namespace emu {

struct Warp;

/// cp.async of one thread, in order; a group is done when it has been waited for.
class Copies {
 public:
  struct Copy {
    std::uint8_t* to;
    const std::uint8_t* from;
    std::size_t bytes;
    bool valid;
  };
  void add(const Copy& copy);
  void commit();
  void wait(std::size_t pending);
  void clear();

 private:
  std::vector<Copy> all_;
  std::vector<std::size_t> ends_;  // of groups
  std::size_t done_ = 0, groups_done_ = 0;
};

enum class Waits : std::uint8_t { Nothing, Barrier, Warp };
struct Lane {
  uint3 index{};
  unsigned linear = 0, number = 0;  ///< in the block; in the warp
  Warp* warp = nullptr;
  Fibre* fibre = nullptr;
  void* tsan = nullptr;
  Waits waits = Waits::Nothing;
  Where where;
  Copies copies;
};

/// The lanes of one mask meet. Two sets of slots, so that a fast lane may enter the next meeting.
struct Meeting {
  unsigned mask = 0, arrived = 0, turn = 0;
  const char* op = nullptr;
  Where where;
  std::array<std::uint64_t, 32> words[2];
  unsigned votes[2] = {};
  char* sync[2] = {};  ///< for ThreadSanitizer
};
/// What mma and ldmatrix exchange.
struct MatrixSlots {
  std::uint32_t fragments[2][32][6];
  float product[2][16][8];
  std::uint16_t rows[2][32][8];
  const void* addresses[2][32];
};
struct Warp {
  Lane* lanes = nullptr;
  unsigned number = 0, alive = 0, ready = 0, at_barrier = 0;
  bool give_way = false;  ///< another warp goes on first
  unsigned first = 0;     ///< the lane that goes on first, up or down from it
  bool down = false;
  Meeting all;  ///< of the whole warp
  static constexpr unsigned kOthers = 32;
  std::array<Meeting, kOthers> others;  ///< of parts of it, by their masks
  unsigned next_other = 0;
  std::unique_ptr<MatrixSlots> slots = std::make_unique<MatrixSlots>();
  // What the lanes bring to wgmma.
  std::array<float*, 32> sums{};
  std::array<Product, 32> asked;
  WarpProducts products;
};

class Runner {
 public:
  Runner();
  /// Throws LaunchFailure.
  void run(const cudaLaunchConfig_t& config, const Body& body);

  bool active() const { return lane_ != nullptr; }
  Lane& running() const { return *lane_; }
  /// Ends the kernel at once, from one of its threads, which is never left in order: so the text is made in a function
  /// that is.
  template <typename F>
  [[noreturn]] void fail(F text) {
    to_main();
    failure_ = text();
    give_up();
  }
  /// Whether the address belongs to what no thread may touch, beside stacks and shared memory; what it is.
  /// The upper end of the stack that ends above this address, if one was overrun there.
  const void* overrun(const void* address) const { return fibres_.overrun(address); }
  bool guards(const void* address) const { return beside_shared(address) || fibres_.guards(address); }
  std::string describe(const void* address) const;

  void* shared(std::size_t bytes, Where where);
  int sync(bool yes, Where where);
  /// Lane by lane: fill(meeting, turn) for everyone, finish(meeting, turn) for the last. Returns when all have come;
  /// what lies in the slots of that turn stays until the next meeting.
  template <typename Fill, typename Finish>
  unsigned meet(unsigned mask, const char* op, Where where, Fill fill, Finish finish);

  AsyncProxy proxy;

 private:
  static void enter(boost::context::detail::transfer_t t);
  void run_block(unsigned threads);
  void begin_block(unsigned threads);
  void place_shared();
  void clear_shared();
  void leave_shared();
  std::string shared_edge() const;
  bool beside_shared(const void* address) const;
  void end_lane();
  bool open_barrier();
  Meeting& meeting(unsigned mask);
  void complete(Warp& w, Meeting& m);
  void wake(Warp& w, unsigned lanes);
  void leave(bool finished);
  Lane* choose();
  void become(Lane& lane);
  void to_main();
  [[noreturn]] void give_up();
  void abandon();
  std::string deadlock(unsigned threads) const;
  char* sync_object();

  Fibres fibres_;
  Fibre main_;
  Lane* lane_ = nullptr;
  Body body_;
  cudaLaunchConfig_t config_;
  uint3 block_{};
  std::vector<Lane> lanes_;
  // Under ThreadSanitizer a thread has its own stack, which it shares with the same of its threads in every block: so
  // that locals of two are not taken for one variable. Which of these a lane gets changes from block to block, so that
  // lanes of one number in two blocks are two threads.
  struct Own {
    void* tsan = nullptr;
    Fibre* fibre = nullptr;
  };
  std::vector<Own> own_;
  unsigned turn_ = 0, threads_ = 0, alive_ = 0, waiting_ = 0, ready_warps_ = 0, current_ = 0;
  std::array<Warp, 32> warps_;
  Where barrier_;
  unsigned phase_ = 0;
  int yes_[2] = {};
  std::string failure_;
  std::uint8_t *area_ = nullptr, *shared_ = nullptr;
  // What happens-before hangs on, for ThreadSanitizer: new objects for each block, so that blocks are not ordered.
  void* main_tsan_ = nullptr;
  std::unique_ptr<char[]> objects_;
  std::size_t objects_used_ = 0;
  char* phases_[2] = {};
  char* start_ = nullptr;
  char end_ = 0;
};

Runner& runner();
}  // namespace emu

#include "tests/support/cuda_emulator/meet.h"
