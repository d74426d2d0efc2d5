// Wrong indices that a device made.
//
// What the host makes (token ids, labels, positions, segments) is checked there, once (make_micro_batch). Indices that
// ops make (expert ids, slots, the rows of a dispatch plan) would have to come back for that, so the body that reads
// them checks them, computes nothing from a wrong one, and reports it in one word of the context. The word is sticky:
// it keeps the first report until somebody reads it, which a training step does together with its metrics.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "runtime/core/context.h"
#include "runtime/core/error.h"
#include "runtime/ops/op_list.h"

namespace emox::ops {

/// An element of an operand that points to nothing.
struct Fault {
  Op op;
  int operand;         ///< counts from 1 after the context, as in the declaration; below 16
  std::int64_t index;  ///< of the element in the operand; below 2^41
  friend bool operator==(const Fault&, const Fault&) = default;
};

/// The fault as the number that stands in the word: an integer below 2^53, so that the word may be an f64 and travel
/// with sums and metrics. 0 says that there is none.
constexpr double fault_word(const Fault& f) {
  return static_cast<double>((static_cast<std::int64_t>(f.op) + 1) << 45 | static_cast<std::int64_t>(f.operand) << 41 |
                             f.index);
}

/// Of a word; empty for 0.
constexpr std::optional<Fault> fault_of(double word) {
  const auto bits = static_cast<std::int64_t>(word);
  if (bits == 0) return std::nullopt;
  return Fault{static_cast<Op>((bits >> 45) - 1), static_cast<int>(bits >> 41 & 15),
               bits & ((std::int64_t{1} << 41) - 1)};
}

/// "[gather_rows] element 7 of operand 3 points outside"
std::string text_of(const Fault& fault);

/// Reports on the host: into the context's word, unless it holds an older report; the log gets the message. Without a
/// word the message is thrown as a ShapeError. The message names the op.
void report(Context& ctx, const Fault& fault, const std::string& message);

/// Points the context to a word while it lives; the word is zeroed.
class FaultScope {
 public:
  FaultScope(Context& ctx, TensorView word);
  ~FaultScope() { ctx_.fault = outer_; }
  FaultScope(const FaultScope&) = delete;
  FaultScope& operator=(const FaultScope&) = delete;

 private:
  Context& ctx_;
  TensorView outer_;
};

}  // namespace emox::ops
