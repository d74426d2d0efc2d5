// The functions of device code, as fibres see them.
#include <algorithm>
#include <cstring>

#include "runtime/core/idx.h"
#include "tests/support/cuda_emulator/block.h"
#include "tests/support/cuda_emulator/sanitizers.h"
#include "tests/support/cuda_emulator/state.h"

namespace emu {
namespace {

constexpr auto kNothing = [](Meeting&, unsigned) {};

float of_bf16(std::uint32_t bits) {
  bits <<= 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

/// The tile's product from what the lanes brought: PTX's layout of mma.m16n8k16.
void multiply_fragments(MatrixSlots& s, unsigned turn) {
  float a[16][16], b[16][8];
  for (unsigned l = 0; l < 32; ++l) {
    const unsigned g = l >> 2, t = 2 * (l & 3);
    const std::uint32_t* w = s.fragments[turn][l];
    for (unsigned i = 0; i < 4; ++i)
      for (unsigned e = 0; e < 2; ++e) a[g + 8 * (i & 1)][t + 8 * (i >> 1) + e] = of_bf16(w[i] >> 16 * e & 0xffffU);
    for (unsigned i = 0; i < 2; ++i)
      for (unsigned e = 0; e < 2; ++e) b[t + 8 * i + e][g] = of_bf16(w[4 + i] >> 16 * e & 0xffffU);
  }
  for (unsigned i = 0; i < 16; ++i) {
    float sum[8] = {};
    for (unsigned k = 0; k < 16; ++k)
      for (unsigned j = 0; j < 8; ++j) sum[j] += a[i][k] * b[k][j];
    std::copy_n(sum, 8, s.product[turn][i]);
  }
}

void finish_copy(const Copies::Copy& c) {
  if (c.valid) note_read(c.from, c.bytes);
  note_write(c.to, c.bytes);
  if (c.valid)
    std::copy_n(c.from, c.bytes, c.to);
  else
    std::fill_n(c.to, c.bytes, std::uint8_t{0});
  runner().proxy.copy_ends(c.to, runner().running().linear);
}

}  // namespace

void Copies::add(const Copy& copy) {
  const Quiet quiet;
  all_.push_back(copy);
}
void Copies::commit() {
  const Quiet quiet;
  ends_.push_back(all_.size());
}
void Copies::wait(std::size_t pending) {
  while (ends_.size() - groups_done_ > pending) {
    for (; done_ < ends_[groups_done_]; ++done_) finish_copy(all_[done_]);
    ++groups_done_;
  }
  if (groups_done_ == ends_.size() && done_ == all_.size()) clear();
}
void Copies::clear() {
  if (all_.empty() && ends_.empty()) return;
  all_.clear();
  ends_.clear();
  done_ = groups_done_ = 0;
}

int sync_block(bool yes, Where where) { return runner().sync(yes, where); }
void* shared_base(std::size_t bytes, Where where) { return runner().shared(bytes, where); }

// A lane that brought nothing, because it has ended, gives ones.
std::uint64_t exchange(unsigned mask, std::uint64_t word, unsigned from, Where where) {
  Meeting* met = nullptr;
  const unsigned me = lane;
  const unsigned turn = runner().meet(
      mask, "a shuffle", where,
      [&](Meeting& m, unsigned t) {
        if (m.arrived == 0) m.words[t].fill(~std::uint64_t{0});
        m.words[t][me] = word;
        met = &m;
      },
      kNothing);
  return met->words[turn][from & 31];
}

void exchange_all(unsigned mask, std::uint64_t word, std::uint64_t (&all)[32], Where where) {
  Meeting* met = nullptr;
  const unsigned me = lane;
  const unsigned turn = runner().meet(
      mask, "a reduction", where,
      [&](Meeting& m, unsigned t) {
        if (m.arrived == 0) m.words[t].fill(word);
        m.words[t][me] = word;
        met = &m;
      },
      kNothing);
  std::copy_n(met->words[turn].begin(), 32, all);
}

unsigned vote(unsigned mask, bool yes, Where where) {
  Meeting* met = nullptr;
  const unsigned bit = yes ? 1U << lane : 0;
  const unsigned turn = runner().meet(
      mask, "a vote or __syncwarp", where,
      [&](Meeting& m, unsigned t) {
        m.votes[t] |= bit;
        met = &m;
      },
      kNothing);
  return met->votes[turn];
}

void mma(float* d, const std::uint32_t* a, const std::uint32_t* b, Where where) {
  MatrixSlots& s = *runner().running().warp->slots;
  const unsigned me = lane, g = me >> 2, t = 2 * (me & 3);
  const unsigned turn = runner().meet(
      ~0U, "mma", where,
      [&](Meeting&, unsigned i) {
        std::copy_n(a, 4, s.fragments[i][me]);
        std::copy_n(b, 2, s.fragments[i][me] + 4);
      },
      [&](Meeting& m, unsigned i) {
        if (m.arrived != ~0U) runner().fail([&] { return "mma without the whole warp, at " + at(where); });
        multiply_fragments(s, i);
      });
  for (unsigned i = 0; i < 4; ++i) d[i] += s.product[turn][g + 8 * (i >> 1)][t + (i & 1)];
}

// The last lane reads all rows, so that all are read before any lane goes on.
void ldmatrix(std::uint32_t* r, const void* row, bool transposed, Where where) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0)
    runner().fail([&] { return "ldmatrix of a row that is not aligned, at " + at(where); });
  note_read(row, 16);
  MatrixSlots& s = *runner().running().warp->slots;
  const unsigned me = lane, line = me / 4, pair = me % 4;
  const unsigned turn = runner().meet(
      ~0U, "ldmatrix", where, [&](Meeting&, unsigned i) { s.addresses[i][me] = row; },
      [&](Meeting& m, unsigned i) {
        if (m.arrived != ~0U) runner().fail([&] { return "ldmatrix without the whole warp, at " + at(where); });
        for (unsigned l = 0; l < 32; ++l) {
          const auto* from = static_cast<const std::uint16_t*>(s.addresses[i][l]);
          std::copy_n(from, 8, s.rows[i][l]);
        }
      });
  for (unsigned j = 0; j < 4; ++j) {
    const auto& rows = s.rows[turn];
    const std::uint32_t low = transposed ? rows[8 * j + 2 * pair][line] : rows[8 * j + line][2 * pair];
    const std::uint32_t high = transposed ? rows[8 * j + 2 * pair + 1][line] : rows[8 * j + line][2 * pair + 1];
    r[j] = low | high << 16;
  }
}

// The destination is NaN until the thread has waited; the source is read only then.
void copy_async(void* to, const void* from, std::size_t bytes, bool valid, Where where) {
  if (reinterpret_cast<std::uintptr_t>(to) % bytes != 0 ||
      (valid && reinterpret_cast<std::uintptr_t>(from) % bytes != 0))
    runner().fail([&] { return "cp.async of addresses that are not aligned, at " + at(where); });
  auto* p = static_cast<std::uint8_t*>(to);
  note_write(to, bytes);
  std::fill_n(p, bytes, std::uint8_t{0xff});
  runner().proxy.copy_begins(to);
  runner().running().copies.add({p, static_cast<const std::uint8_t*>(from), bytes, valid});
}
void copy_commit() { runner().running().copies.commit(); }
void copy_wait(int pending) { runner().running().copies.wait(emox::idx(pending)); }

}  // namespace emu
