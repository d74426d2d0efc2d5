// The inside of Runner::meet(), which warp.cpp uses for each of its functions.
#pragma once

#include "tests/support/cuda_emulator/block.h"
#include "tests/support/cuda_emulator/sanitizers.h"
#include "tests/support/cuda_emulator/state.h"

namespace emu {

template <typename Fill, typename Finish>
unsigned Runner::meet(unsigned mask, const char* op, Where where, Fill fill, Finish finish) {
  Lane& me = *lane_;
  Warp& w = *me.warp;
  const unsigned bit = 1U << me.number;
  if ((mask & bit) == 0) fail([&] { return std::string(op) + " by a lane outside of its mask, at " + at(where); });
  Meeting& m = mask == ~0U ? w.all : meeting(mask);
  if (m.arrived == 0) {
    m.op = op;
    m.where = where;
    m.votes[m.turn] = 0;
  } else if (m.op != op) {
    fail([&] { return std::string(op) + " at " + at(where) + " meets " + m.op + " at " + at(m.where); });
  }
  const unsigned turn = m.turn;
  fill(m, turn);
  m.arrived |= bit;
  release(m.sync[turn]);
  if (m.arrived == (mask & w.alive)) {
    finish(m, turn);
    complete(w, m);
  } else {
    me.waits = Waits::Warp;
    me.where = where;
    leave(false);
  }
  acquire(m.sync[turn]);
  return turn;
}

}  // namespace emu
