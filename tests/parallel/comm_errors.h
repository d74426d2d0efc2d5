// Collectives that fail on ranks that are threads: what each rank says.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "tests/support/ranks.h"

namespace emox::test {

inline bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

/// What each rank's CommError says; "" for a rank that threw none.
inline std::vector<std::string> comm_errors(ThreadWorld& world, const std::function<void(Communicator&)>& body) {
  std::vector<std::string> errors(idx(world.size()));
  run_ranks(world, [&](Communicator& comm) {
    try {
      body(comm);
    } catch (const CommError& e) {
      errors[idx(comm.rank())] = e.message();
    }
  });
  return errors;
}

}  // namespace emox::test
