// Files of records that are appended to: what must leave one is moved aside, never dropped.
#pragma once

#include <cstdint>
#include <string>

namespace emox {

/// What was taken out of a file.
struct SetAside {
  std::int64_t later = 0;       ///< records of steps that are done again
  std::int64_t unreadable = 0;  ///< lines that are no record with a step, the torn last one among them
  std::string file;             ///< where they are now; empty: nothing was taken out
};

/// Makes PATH, one JSON object with a "step" a line, tell of the steps up to `last_step` only; all other lines go into
/// a file of their own beside it (name_aside), in their order. A file that is as it must be, or is not there, is left
/// alone. A crash at any moment loses no line. IoError, and nothing is changed, when it cannot be read.
SetAside settle_history(const std::string& path, std::int64_t last_step);

}  // namespace emox
