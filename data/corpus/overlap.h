// How much of a text is repeated elsewhere, measured in spans of 80 bytes at every position: what may not be held out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace emox {

/// A byte counts as repeated if it lies in a span of this many bytes that also occurs in the other text.
inline constexpr std::size_t kSpanBytes = 80;

/// The spans of some texts, each with marks that other texts leave. Linear in time; memory (20 to 40 bytes a span) only
/// for the texts that were added, so that what marks them can be far larger. Spans are compared by a 61-bit rolling
/// hash: that two different ones pass for the same has a chance below 1e-16 a pair.
class SpanMarks {
 public:
  /// Room for the spans of texts of `bytes` bytes altogether.
  explicit SpanMarks(std::size_t bytes);

  /// Makes the spans of a text known, without marks. Throws ShapeError beyond the room.
  void add(std::string_view text);
  /// Puts marks on every known span that occurs in the text.
  void mark(std::string_view text, std::uint8_t marks);
  /// Bytes of a text that lie in spans that carry at least one of the marks. Unknown spans carry none.
  std::int64_t repeated_bytes(std::string_view text, std::uint8_t marks) const;

 private:
  struct Slot {
    std::uint64_t span = 0;  ///< hash + 1; 0: empty
    std::uint8_t marks = 0;
  };
  std::size_t place(std::uint64_t span) const;
  const Slot* find(std::uint64_t span) const;

  std::vector<Slot> slots_;            ///< a power of two
  std::vector<std::uint64_t> filter_;  ///< a bit a known span: most spans of other texts are refused without a look-up
  std::size_t filter_mask_ = 0;
  std::size_t room_ = 0;
};

}  // namespace emox
