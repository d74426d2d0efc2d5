#include "data/corpus/overlap.h"

#include <algorithm>
#include <bit>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

/// Polynomials modulo the Mersenne prime 2^61 - 1.
constexpr std::uint64_t kPrime = (std::uint64_t{1} << 61) - 1;
constexpr std::uint64_t kBase = 0x1F3A5C7E9B2D4F61 % kPrime;

std::uint64_t times(std::uint64_t a, std::uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  const std::uint64_t sum = static_cast<std::uint64_t>(product & kPrime) + static_cast<std::uint64_t>(product >> 61);
  return sum >= kPrime ? sum - kPrime : sum;
}

std::uint64_t first_weight() {
  std::uint64_t weight = 1;
  for (std::size_t i = 1; i < kSpanBytes; ++i) weight = times(weight, kBase);
  return weight;
}

/// Calls visit(position, hash + 1) for every span of the text, from its beginning.
template <typename Visit>
void for_each_span(std::string_view text, Visit visit) {
  if (text.size() < kSpanBytes) return;
  static const std::uint64_t leaving = first_weight();
  // Bytes count from 1, so that a run of zero bytes depends on its length.
  const auto value = [&](std::size_t i) { return std::uint64_t{static_cast<unsigned char>(text[i])} + 1; };
  std::uint64_t hash = 0;
  for (std::size_t end = 0; end < text.size(); ++end) {
    if (end >= kSpanBytes) {
      hash += kPrime - times(value(end - kSpanBytes), leaving);
      if (hash >= kPrime) hash -= kPrime;
    }
    hash = times(hash, kBase) + value(end);
    if (hash >= kPrime) hash -= kPrime;
    if (end + 1 >= kSpanBytes) visit(end + 1 - kSpanBytes, hash + 1);
  }
}

/// Spreads the hash over all bits: neighbouring texts have hashes with a simple relation.
std::size_t spread(std::uint64_t span) {
  span *= 0x9E3779B97F4A7C15;
  return idx(span ^ (span >> 32));
}

}  // namespace

SpanMarks::SpanMarks(std::size_t bytes) {
  const std::size_t room = std::max<std::size_t>(bytes, 64);
  room_ = room;
  slots_.resize(std::bit_ceil(room + room / 4));
  const std::size_t words = std::bit_ceil(room) / 8;  // 8 to 16 bits a span
  filter_.resize(words);
  filter_mask_ = words * 64 - 1;
}

/// Where a span is, or the empty slot where it would be.
std::size_t SpanMarks::place(std::uint64_t span) const {
  std::size_t at = spread(span) & (slots_.size() - 1);
  while (slots_[at].span != 0 && slots_[at].span != span) at = (at + 1) & (slots_.size() - 1);
  return at;
}

const SpanMarks::Slot* SpanMarks::find(std::uint64_t span) const {
  const std::size_t bit = (spread(span) >> 7) & filter_mask_;
  if ((filter_[bit / 64] >> (bit % 64) & 1) == 0) return nullptr;
  const Slot& slot = slots_[place(span)];
  return slot.span == span ? &slot : nullptr;
}

void SpanMarks::add(std::string_view text) {
  for_each_span(text, [&](std::size_t, std::uint64_t span) {
    Slot& slot = slots_[place(span)];
    if (slot.span == span) return;
    require<ShapeError>(room_ > 0, "more spans than the {} slots have room for", slots_.size());
    --room_;
    slot.span = span;
    const std::size_t bit = (spread(span) >> 7) & filter_mask_;
    filter_[bit / 64] |= std::uint64_t{1} << (bit % 64);
  });
}

void SpanMarks::mark(std::string_view text, std::uint8_t marks) {
  for_each_span(text, [&](std::size_t, std::uint64_t span) {
    const Slot* const slot = find(span);
    if (slot != nullptr) slots_[idx(slot - slots_.data())].marks |= marks;
  });
}

std::int64_t SpanMarks::repeated_bytes(std::string_view text, std::uint8_t marks) const {
  std::size_t repeated = 0;
  std::size_t counted = 0;  // bytes before it are counted
  for_each_span(text, [&](std::size_t begin, std::uint64_t span) {
    const Slot* const slot = find(span);
    if (slot == nullptr || (slot->marks & marks) == 0) return;
    repeated += begin + kSpanBytes - std::max(begin, counted);
    counted = begin + kSpanBytes;
  });
  return static_cast<std::int64_t>(repeated);
}

}  // namespace emox
