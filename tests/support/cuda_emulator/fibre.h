// A stack on which a kernel's thread runs, and the way from one to another.
#pragma once

#include <boost/context/detail/fcontext.hpp>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace emu {

struct Fibre {
  boost::context::detail::fcontext_t context = nullptr;
  const void* stack = nullptr;  ///< its lowest byte
  std::size_t bytes = 0;
  void* fake_stack = nullptr;  ///< of AddressSanitizer
  bool middle = false;         ///< left in the middle of a kernel
};

/// Stacks, each with a page below it that stops what overruns it.
class Fibres {
 public:
  /// Ready to begin at `entry`.
  Fibre& take(void (*entry)(boost::context::detail::transfer_t));
  static void begin(Fibre& f, void (*entry)(boost::context::detail::transfer_t));
  void give(Fibre& f) { free_.push_back(&f); }
  /// Where the address lies in the page below a stack: that stack's upper end, else null.
  const void* overrun(const void* p) const;
  bool guards(const void* p) const { return overrun(p) != nullptr; }

 private:
  void grow();
  std::vector<std::unique_ptr<Fibre>> all_;
  std::vector<Fibre*> free_;
};

/// Leaves `from`, which is running, for `to`. Comes back when somebody jumps to `from`; never, where it is finished.
void jump(Fibre& from, Fibre& to, bool finished);
/// The first thing that a new fibre does.
void arrived(boost::context::detail::transfer_t t);

}  // namespace emu
