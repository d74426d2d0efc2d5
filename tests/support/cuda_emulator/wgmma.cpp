#include "tests/support/cuda_emulator/wgmma.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "runtime/core/idx.h"
#include "tests/support/cuda_emulator/block.h"
#include "tests/support/cuda_emulator/sanitizers.h"
#include "tests/support/cuda_emulator/state.h"

namespace emu {
namespace {

constexpr std::size_t kPiece = 16;

/// A descriptor, taken apart as PTX says.
struct Operand {
  std::uint32_t start, leading, stride;
  bool across;

  Operand(std::uint64_t d, bool lies_across)
      : start((d & 0x3fff) << 4),
        leading((d >> 16 & 0x3fff) << 4),
        stride((d >> 32 & 0x3fff) << 4),
        across(lies_across) {}

  /// Of the 16 bytes that hold 8 elements: of line `line` at k, k + 1, .., or across K of line, line + 1, .. at k.
  std::uint32_t piece(unsigned line, unsigned k) const {
    const std::uint32_t place = across ? line / 64 * leading + line % 64 * 2 + k / 8 * stride + k % 8 * 128
                                       : line / 8 * stride + line % 8 * 128 + k * 2;
    const std::uint32_t address = start + place;
    return address ^ (address >> 7 & 7) << 4;
  }
  template <typename F>
  void each_piece(unsigned first, unsigned lines, F&& f) const {
    for (unsigned line = first; line < first + lines; line += across ? 8 : 1)
      for (unsigned k = 0; k < 16; k += across ? 1 : 8) f(line, k, piece(line, k));
  }
};

std::string refusal_of(std::uint64_t d) {
  if ((d & ~(0x3fffULL | 0x3fffULL << 16 | 0x3fffULL << 32 | 7ULL << 49 | 3ULL << 62)) != 0)
    return "a descriptor with bits that mean nothing";
  if (d >> 62 != 1) return "a descriptor of another layout than the 128-byte swizzle, which alone is emulated";
  if ((d >> 49 & 7) != 0 || (d << 4 & 0x380) != 0)
    return "a descriptor whose rows do not begin at a multiple of 1024 bytes: that is not emulated";
  return {};
}

float of_bf16(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &wide, sizeof x);
  return x;
}

/// [16 of K][lines]
std::vector<float> read(const Operand& o, unsigned first, unsigned lines, const AsyncProxy& proxy) {
  std::vector<float> all(std::size_t{16} * lines);
  o.each_piece(first, lines, [&](unsigned line, unsigned k, std::uint32_t address) {
    const std::uint16_t* const from = proxy.at(address);
    note_read(from, kPiece);
    for (unsigned i = 0; i < 8; ++i) {
      const unsigned l = line - first + (o.across ? i : 0), kk = k + (o.across ? 0 : i);
      all[std::size_t{kk} * lines + l] = of_bf16(from[i]);
    }
  });
  return all;
}

/// Of the sums of lane `l`, element i: its row and column in the warp's 16 rows.
std::size_t place(unsigned l, unsigned i, unsigned columns) {
  return std::size_t{l / 4 + (i >> 1 & 1) * 8} * columns + i / 4 * 8 + l % 4 * 2 + (i & 1);
}

}  // namespace

void AsyncProxy::begin_block(const std::uint8_t* shared, std::size_t bytes, unsigned threads) {
  shared_ = shared;
  bytes_ = bytes;
  barriers_ = 0;
  if (used_) {
    pieces_.clear();
    fences_.clear();
    groups_.clear();
    used_ = false;
  }
  pieces_.resize((bytes + kPiece - 1) / kPiece);
  fences_.resize(threads);
  groups_.resize((threads + 127) / 128);
}
void AsyncProxy::mark(const void* to, Piece piece) {
  const auto offset = emox::idx(static_cast<const std::uint8_t*>(to) - shared_);
  if (offset >= bytes_) return;
  used_ = true;
  pieces_[offset / kPiece] = piece;
}
void AsyncProxy::copy_ends(const void* to, unsigned thread) {
  mark(to, {false, static_cast<std::uint16_t>(thread), static_cast<std::uint32_t>(fences_[thread].size()) + 1});
}
void AsyncProxy::fence(unsigned thread) {
  const Quiet quiet;
  used_ = true;
  fences_[thread].push_back(barriers_);
}
std::uint32_t AsyncProxy::address_of(const void* p) const {
  return static_cast<std::uint32_t>(static_cast<const std::uint8_t*>(p) - shared_) + kFirstAddress;
}
const std::uint16_t* AsyncProxy::at(std::uint32_t address) const {
  if (address < kFirstAddress || address - kFirstAddress + kPiece > bytes_) return nullptr;
  return reinterpret_cast<const std::uint16_t*>(shared_ + (address - kFirstAddress));
}
std::string AsyncProxy::refusal(std::uint32_t address) const {
  if (at(address) == nullptr) return "reads outside of the block's shared memory";
  const Piece& p = pieces_[(address - kFirstAddress) / kPiece];
  if (p.in_flight) return "reads what cp.async has not brought yet";
  if (p.fences == 0) return {};
  const auto& fences = fences_[p.writer];
  if (fences.size() < p.fences) return "reads what cp.async brought, without a fence of the async proxy since";
  if (fences[p.fences - 1] == barriers_) return "reads what another thread copied and fenced, without a barrier since";
  return {};
}
bool AsyncProxy::begin_product(unsigned warp, const Product& p) {
  const Quiet quiet;
  used_ = true;
  Group& g = groups_[warp / 4];
  const std::size_t number = g.asked[warp % 4]++;
  if (number < g.products.size()) return g.products[number] == p;
  g.products.push_back(p);
  return true;
}
bool AsyncProxy::groups_agree() const {
  return std::all_of(groups_.begin(), groups_.end(), [](const Group& g) {
    return std::all_of(g.asked.begin(), g.asked.end(), [&](std::size_t n) { return n == g.products.size(); });
  });
}

std::string WarpProducts::begin(const Product& p, const std::array<float*, 32>& sums, const AsyncProxy& proxy,
                                unsigned warp) {
  const Quiet quiet;
  for (const std::uint64_t d : {p.a, p.b})
    if (std::string why = refusal_of(d); !why.empty()) return why;
  std::string why;
  const auto check = [&](unsigned, unsigned, std::uint32_t address) {
    if (why.empty()) why = proxy.refusal(address);
  };
  Operand(p.a, p.across_a).each_piece(warp % 4 * 16, 16, check);
  Operand(p.b, p.across_b).each_piece(0, p.columns, check);
  if (!why.empty()) return why;

  std::size_t i = 0;
  while (i < sums_.size() && (sums_[i].products == 0 || sums_[i].at != sums)) ++i;
  if (i == sums_.size()) {
    if (!fenced_) return "begins without wgmma.fence since its sums were touched";
    i = 0;
    while (i < sums_.size() && sums_[i].products > 0) ++i;
    if (i == sums_.size()) sums_.emplace_back();
    Sums& s = sums_[i];
    s.at = sums;
    s.columns = p.columns;
    s.values.resize(std::size_t{16} * p.columns);
    for (unsigned l = 0; l < 32; ++l)
      for (unsigned e = 0; e < p.columns / 2; ++e) {
        s.values[place(l, e, p.columns)] = sums[l][e];
        sums[l][e] = std::numeric_limits<float>::quiet_NaN();
      }
  } else if (sums_[i].columns != p.columns) {
    return "has sums of another shape on their way";
  }
  ++sums_[i].products;
  waiting_.push_back({p, i});
  ++begun_;
  return {};
}

void WarpProducts::finish(const Waiting& w, const AsyncProxy& proxy, unsigned warp) {
  const Product& p = w.product;
  const std::vector<float> a = read(Operand(p.a, p.across_a), warp % 4 * 16, 16, proxy);
  const std::vector<float> b = read(Operand(p.b, p.across_b), 0, p.columns, proxy);
  Sums& s = sums_[w.sums];
  std::vector<float> part(p.columns);
  for (unsigned row = 0; row < 16; ++row) {
    std::fill(part.begin(), part.end(), 0.0F);
    float* const to = part.data();
    for (unsigned k = 0; k < 16; ++k) {
      const float x = a[k * 16 + row];
      const float* const from = b.data() + std::size_t{k} * p.columns;
      for (unsigned j = 0; j < p.columns; ++j) to[j] += x * from[j];
    }
    float* const sum = s.values.data() + std::size_t{row} * p.columns;
    for (unsigned j = 0; j < p.columns; ++j) sum[j] += to[j];
  }
  if (--s.products > 0) return;
  for (unsigned l = 0; l < 32; ++l)
    for (unsigned e = 0; e < p.columns / 2; ++e) s.at[l][e] = s.values[place(l, e, p.columns)];
  fenced_ = false;
}

void WarpProducts::commit() {
  const Quiet quiet;
  ends_.push_back(begun_);
}

void WarpProducts::wait(std::size_t pending, const AsyncProxy& proxy, unsigned warp) {
  while (ends_.size() - groups_done_ > pending) {
    const std::size_t count = ends_[groups_done_++] - done_;
    for (std::size_t i = 0; i < count; ++i) finish(waiting_[i], proxy, warp);
    const Quiet quiet;
    waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<std::ptrdiff_t>(count));
    done_ += count;
  }
  if (groups_done_ == ends_.size() && waiting_.empty()) {
    ends_.clear();
    groups_done_ = begun_ = done_ = 0;
  }
}
void WarpProducts::clear() {
  waiting_.clear();
  sums_.clear();
  ends_.clear();
  begun_ = done_ = groups_done_ = 0;
  fenced_ = false;
}

// The functions of device code.

std::uint32_t shared_address(const void* p) { return runner().proxy.address_of(p); }
void fence_proxy() { runner().proxy.fence(runner().running().linear); }

void wgmma(float* sums, const Product& p, Where where) {
  Warp& w = *runner().running().warp;
  const unsigned me = lane;
  w.sums[me] = sums;
  w.asked[me] = p;
  runner().meet(
      ~0U, "wgmma.mma_async", where, [](Meeting&, unsigned) {},
      [&](Meeting& m, unsigned) {
        if (m.arrived != ~0U) runner().fail([&] { return "wgmma without the whole warp, at " + at(where); });
        if (!std::all_of(w.asked.begin(), w.asked.end(), [&](const Product& x) { return x == p; }))
          runner().fail([&] { return "lanes of one warp have different operands of wgmma, at " + at(where); });
        if (!runner().proxy.begin_product(w.number, p))
          runner().fail([&] { return "warps of one group ask for different products, at " + at(where); });
        std::string why = w.products.begin(p, w.sums, runner().proxy, w.number);
        if (!why.empty()) runner().fail([&] { return "wgmma " + std::move(why) + ", at " + at(where); });
      });
}

void wgmma_step(WgmmaStep step, int pending, Where where) {
  static constexpr const char* kNames[] = {"wgmma.fence", "wgmma.commit_group", "wgmma.wait_group"};
  const char* const name = kNames[static_cast<unsigned>(step)];
  Warp& w = *runner().running().warp;
  runner().meet(
      ~0U, name, where, [](Meeting&, unsigned) {},
      [&](Meeting& m, unsigned) {
        if (m.arrived != ~0U)
          runner().fail([&] { return std::string(name) + " without the whole warp, at " + at(where); });
        if (step == WgmmaStep::Fence) w.products.fence();
        if (step == WgmmaStep::Commit) w.products.commit();
        if (step == WgmmaStep::Wait) w.products.wait(emox::idx(pending), runner().proxy, w.number);
      });
}

}  // namespace emu
