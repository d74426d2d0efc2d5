// Errors that say what went wrong, with which values, what to do, and on which rank (design 4.11).
#pragma once

#include <fmt/format.h>

#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace emox {

/// Base of all errors. what() is "message [rank R] (file:line)"; message() is the text alone, for the user.
class Error : public std::runtime_error {
 public:
  Error(std::string message, std::source_location where);
  const std::string& message() const { return message_; }
  int rank() const { return rank_; }

 private:
  std::string message_;
  int rank_;
};

/// Anything wrong in the command, the recipe or a file that it names, found before the first step: exit code 2.
struct UsageError : Error {
  using Error::Error;
};
/// Nothing is wrong but the moment: the same command may work later. Exit code 75.
struct TryAgainError : Error {
  using Error::Error;
};
/// Operands that do not fit together: a bug in the caller.
struct ShapeError : Error {
  using Error::Error;
};
/// A collective that failed or a rank that is gone.
struct CommError : Error {
  using Error::Error;
};
/// A file that cannot be read or written, or whose content is damaged.
struct IoError : Error {
  using Error::Error;
};

/// The rank that errors raised on this thread belong to (0 until set). Ranks may be threads of one process.
int error_rank();
void set_error_rank(int rank);

/// A format string that remembers where it was written.
template <typename... Args>
struct FormatAt {
  fmt::format_string<Args...> text;
  std::source_location where;
  template <typename S>
  consteval FormatAt(const S& s, std::source_location w = std::source_location::current()) : text(s), where(w) {}
};

template <typename E = Error, typename... Args>
[[noreturn]] void fail(FormatAt<std::type_identity_t<Args>...> format, Args&&... args) {
  throw E(fmt::format(format.text, std::forward<Args>(args)...), format.where);
}

/// Throws E with the formatted text unless the condition holds.
template <typename E = Error, typename... Args>
void require(bool condition, FormatAt<std::type_identity_t<Args>...> format, Args&&... args) {
  if (!condition) [[unlikely]]
    throw E(fmt::format(format.text, std::forward<Args>(args)...), format.where);
}

}  // namespace emox
