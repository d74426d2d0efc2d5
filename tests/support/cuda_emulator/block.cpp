#include "tests/support/cuda_emulator/block.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <exception>
#include <map>

#include "tests/support/cuda_emulator/sanitizers.h"
#include "tests/support/cuda_emulator/state.h"

constinit uint3 threadIdx{}, blockIdx{};
constinit dim3 blockDim, gridDim;

namespace emu {

constinit unsigned lane = 0;

namespace {

// Of 8 bytes each, for two turns of every meeting of every warp, and three more.
constexpr std::size_t kObjects = 8 * (32 * 2 * (1 + Warp::kOthers) + 3);
std::uint64_t switched = 0;

std::string text(uint3 i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}
/// The n-th set bit's place, where n is less than their number.
unsigned bit_at(unsigned bits, std::uint64_t n) {
  for (; n > 0; --n) bits &= bits - 1;
  return static_cast<unsigned>(std::countr_zero(bits));
}

}  // namespace

std::uint64_t switches() { return switched; }

Runner& runner() {
  static Runner& only = *new Runner;
  return only;
}

void Runner::run(const cudaLaunchConfig_t& config, const Body& body) {
  config_ = config;
  body_ = body;
  failure_.clear();
  const dim3 g = config.gridDim, b = config.blockDim;
  threads_ = b.x * b.y * b.z;
  blockDim = b;
  gridDim = g;
  place_shared();
  if (under_tsan()) main_tsan_ = __tsan_get_current_fiber();

  std::vector<std::uint64_t> order(std::uint64_t{g.x} * g.y * g.z);
  for (std::uint64_t i = 0; i < order.size(); ++i) {
    const std::uint64_t j = options().shuffle ? random().below(i + 1) : i;
    order[i] = order[j];
    order[j] = i;
  }
  for (const std::uint64_t i : order) {
    block_ = {static_cast<unsigned>(i % g.x), static_cast<unsigned>(i / g.x % g.y),
              static_cast<unsigned>(i / g.x / g.y)};
    run_block(threads_);
  }
  acquire(&end_);
  leave_shared();
  body_ = {};
}

// What it keeps from block to block belongs to no stream, so streams that nothing orders take it over from each other.
void Runner::begin_block(unsigned threads) {
  const Quiet quiet;
  blockIdx = block_;
  clear_shared();
  proxy.begin_block(shared_, config_.dynamicSmemBytes, threads);
  alive_ = threads;
  waiting_ = phase_ = ready_warps_ = current_ = 0;
  yes_[0] = yes_[1] = 0;
  if (under_tsan()) {
    turn_ += 33;
    if (own_.size() < threads) own_.resize(threads);
    objects_.reset(new char[kObjects]);
    objects_used_ = 0;
    start_ = sync_object();
    for (char*& p : phases_) p = sync_object();
  }
  while (lanes_.size() < threads) {
    const auto i = static_cast<unsigned>(lanes_.size());
    Lane& l = lanes_.emplace_back();
    l.linear = i;
    l.number = i % 32;
    l.warp = &warps_[i / 32];
  }
  const dim3 b = config_.blockDim;
  uint3 index{};
  for (unsigned i = 0; i < threads; ++i) {
    Lane& l = lanes_[i];
    l.index = index;
    if (++index.x == b.x) index.x = 0, ++index.y;
    if (index.y == b.y) index.y = 0, ++index.z;
    l.waits = Waits::Nothing;
    l.copies.clear();
    if (under_tsan()) {
      Own& own = own_[(i + turn_) % threads];
      if (own.tsan == nullptr) own.tsan = __tsan_create_fiber(0);
      if (own.fibre == nullptr) own.fibre = &fibres_.take(&Runner::enter);
      Fibres::begin(*own.fibre, &Runner::enter);
      l.tsan = own.tsan;
      l.fibre = own.fibre;
    }
  }
  for (unsigned i = 0; i < threads; i += 32) {
    Warp& w = warps_[i / 32];
    w.lanes = &lanes_[i];
    w.alive = threads - i >= 32 ? ~0U : (1U << (threads - i)) - 1;
    w.ready = w.at_barrier = 0;
    w.all.mask = ~0U;
    w.all.arrived = 0;
    if (under_tsan()) w.all.sync[0] = sync_object(), w.all.sync[1] = sync_object();
    if (w.next_other != 0) {
      for (Meeting& m : w.others) m = {};
      w.next_other = 0;
    }
    w.products.clear();
    wake(w, w.alive);
  }
  release(start_);
}

void Runner::run_block(unsigned threads) {
  begin_block(threads);
  while (alive_ > 0 && failure_.empty()) {
    Lane* const next = choose();
    if (next == nullptr) failure_ = deadlock(threads);
    if (!failure_.empty()) break;
    if (next->fibre == nullptr) next->fibre = &fibres_.take(&Runner::enter);
    become(*next);
    ++switched;
    if (under_tsan()) __tsan_switch_to_fiber(next->tsan, 1);
    jump(main_, *next->fibre, false);
  }
  if (failure_.empty()) failure_ = shared_edge();
  if (!failure_.empty()) {
    abandon();
    body_ = {};
    leave_shared();
    throw LaunchFailure(failure_);
  }
}

void Runner::become(Lane& l) {
  lane_ = &l;
  current_ = l.warp->number;
  threadIdx = l.index;
  lane = l.number;
}

// A fibre runs one thread after another, as long as they do not wait for each other.
void Runner::enter(boost::context::detail::transfer_t t) {
  arrived(t);
  Runner& r = runner();
  for (;;) {
    acquire(r.start_);
    std::string thrown;
    try {
      r.body_.call(r.body_.arguments);
    } catch (const std::exception& e) {
      thrown = std::string("an exception left the kernel: ") + e.what();
    }
    if (!thrown.empty()) r.fail([&] { return std::move(thrown); });
    Lane& done = *r.lane_;
    done.copies.wait(0);
    r.end_lane();
    Lane* const next = r.choose();
    if (next != nullptr && next->fibre == nullptr && !under_tsan()) {
      next->fibre = std::exchange(done.fibre, nullptr);
      r.become(*next);
      continue;
    }
    Fibre& mine = *done.fibre;
    if (!under_tsan()) r.fibres_.give(*std::exchange(done.fibre, nullptr));
    ++switched;
    if (next != nullptr && next->fibre == nullptr) next->fibre = &r.fibres_.take(&Runner::enter);
    if (next == nullptr)
      r.lane_ = nullptr;
    else
      r.become(*next);
    if (under_tsan()) __tsan_switch_to_fiber(next == nullptr ? r.main_tsan_ : next->tsan, 1);
    jump(mine, next == nullptr ? r.main_ : *next->fibre, true);
  }
}

void Runner::end_lane() {
  Lane& me = *lane_;
  Warp& w = *me.warp;
  release(&end_);
  --alive_;
  w.alive &= ~(1U << me.number);
  if (w.alive == 0 && !w.products.empty()) fail([&] { return "a warp has ended before its wgmma"; });
  if (alive_ == 0 && !proxy.groups_agree())
    fail([&] { return "warps of one group asked for different numbers of wgmma"; });
  // Threads that have ended count as arrived.
  open_barrier();
  const auto check = [&](Meeting& m) {
    if (m.arrived == 0 || m.arrived != (m.mask & w.alive)) return;
    if (std::strcmp(m.op, "mma") == 0 || std::strcmp(m.op, "ldmatrix") == 0 || std::strncmp(m.op, "wgmma", 5) == 0)
      fail([&] { return std::string("a thread of the warp has ended before ") + m.op + " at " + at(m.where); });
    complete(w, m);
  };
  check(w.all);
  for (Meeting& m : w.others) check(m);
}

void Runner::wake(Warp& w, unsigned lanes) {
  if (w.ready == 0 && options().shuffle) {
    const std::uint32_t r = random().bits();
    w.first = r & 31;
    w.down = (r >> 5 & 1) != 0;
    w.give_way = (r >> 6 & 7) == 0;
  }
  w.ready |= lanes;
  if (w.ready != 0) ready_warps_ |= 1U << w.number;
}

/// The next thread: of the warp that ran last, as long as it can.
Lane* Runner::choose() {
  if (ready_warps_ == 0) return nullptr;
  Warp* w = &warps_[current_];
  if (w->ready == 0 || w->give_way) {
    w->give_way = false;
    w = &warps_[bit_at(ready_warps_, random().below(static_cast<unsigned>(std::popcount(ready_warps_))))];
  }
  const unsigned turned = std::rotr(w->ready, static_cast<int>(w->first));
  const int place = w->down ? 31 - std::countl_zero(turned) : std::countr_zero(turned);
  const unsigned number = (static_cast<unsigned>(place) + w->first) & 31;
  w->ready &= ~(1U << number);
  if (w->ready == 0) ready_warps_ &= ~(1U << w->number);
  return &w->lanes[number];
}

/// The running thread waits: another goes on. Returns when this one does.
void Runner::leave(bool finished) {
  Lane& me = *lane_;
  Lane* const next = choose();
  ++switched;
  if (next == nullptr) {
    lane_ = nullptr;
  } else {
    if (next->fibre == nullptr) next->fibre = &fibres_.take(&Runner::enter);
    become(*next);
  }
  if (under_tsan()) __tsan_switch_to_fiber(next == nullptr ? main_tsan_ : next->tsan, 1);
  jump(*me.fibre, next == nullptr ? main_ : *next->fibre, finished);
}

/// To ThreadSanitizer the caller is the stream's thread from here on, after all that this one did.
void Runner::to_main() {
  release(&end_);
  if (under_tsan()) __tsan_switch_to_fiber(main_tsan_, 1);
  acquire(&end_);
}

void Runner::give_up() {
  const Lane& me = *lane_;
  failure_ += ". Thread " + text(me.index) + " of block " + text(block_) + " in a grid of " +
              text({gridDim.x, gridDim.y, gridDim.z}) + " blocks of " + text({blockDim.x, blockDim.y, blockDim.z});
  Fibre& mine = *me.fibre;
  lane_ = nullptr;
  jump(mine, main_, false);
  std::terminate();
}

/// Threads that are in the middle of the kernel stay there; to ThreadSanitizer, the rest comes after what they did.
void Runner::abandon() {
  for (Lane& l : lanes_) {
    if (l.fibre == nullptr) continue;
    l.fibre->middle = true;
    if (under_tsan()) {
      __tsan_switch_to_fiber(l.tsan, 1);
      release(&end_);
      __tsan_switch_to_fiber(main_tsan_, 1);
    } else {
      fibres_.give(*l.fibre);
    }
    l.fibre = nullptr;
  }
  acquire(&end_);
  own_.clear();  // their stacks are used no more
  lane_ = nullptr;
}

int Runner::sync(bool yes, Where where) {
  Lane& me = *lane_;
  Warp& w = *me.warp;
  const unsigned phase = phase_;
  if (waiting_ != 0 && (where.line() != barrier_.line() || where.file_name() != barrier_.file_name()))
    fail([&] { return "threads of one block wait at different __syncthreads, " + at(barrier_) + " and " + at(where); });
  if (waiting_ == 0) yes_[phase] = 0;
  barrier_ = where;
  yes_[phase] += yes ? 1 : 0;
  release(phases_[phase]);
  ++waiting_;
  w.at_barrier |= 1U << me.number;
  me.waits = Waits::Barrier;
  me.where = where;
  if (open_barrier()) {
    // This one goes on.
    w.ready &= ~(1U << me.number);
    if (w.ready == 0) ready_warps_ &= ~(1U << w.number);
  } else {
    leave(false);
  }
  acquire(phases_[phase]);
  return yes_[phase];
}

bool Runner::open_barrier() {
  if (waiting_ == 0 || waiting_ < alive_) return false;
  waiting_ = 0;
  proxy.barrier();
  phase_ ^= 1U;
  for (unsigned i = 0; i < (threads_ + 31) / 32; ++i)
    if (warps_[i].at_barrier != 0) wake(warps_[i], std::exchange(warps_[i].at_barrier, 0U));
  return true;
}

Meeting& Runner::meeting(unsigned mask) {
  Warp& w = *lane_->warp;
  for (Meeting& m : w.others)
    if (m.mask == mask) return m;
  // One that nobody has used, or not for the longest time.
  for (unsigned i = 0; i < w.others.size(); ++i) {
    Meeting& m = w.others[w.next_other++ % w.others.size()];
    if (m.arrived != 0) continue;
    m.mask = mask;
    if (under_tsan() && m.sync[0] == nullptr) m.sync[0] = sync_object(), m.sync[1] = sync_object();
    return m;
  }
  fail([] { return "more masks meet in one warp at a time than the emulator has room for"; });
}

/// All have come: all go on.
void Runner::complete(Warp& w, Meeting& m) {
  const unsigned others = m.arrived & ~(1U << lane_->number);
  m.arrived = 0;
  m.turn ^= 1U;
  wake(w, others);
}

std::string Runner::deadlock(unsigned threads) const {
  std::map<std::string, unsigned> places;
  for (unsigned i = 0; i < threads; ++i) {
    const Lane& l = lanes_[i];
    if ((l.warp->alive >> l.number & 1U) == 0)
      ++places["that have ended"];
    else
      ++places[(l.waits == Waits::Barrier ? "at the __syncthreads of " : "at the warp function of ") + at(l.where)];
  }
  std::string all = "block " + text(block_) + " never ends: threads wait for each other.";
  for (const auto& [place, count] : places)
    all.append(" ").append(std::to_string(count)).append(" ").append(place).append(";");
  return all;
}

char* Runner::sync_object() { return objects_.get() + std::exchange(objects_used_, objects_used_ + 8); }

}  // namespace emu
