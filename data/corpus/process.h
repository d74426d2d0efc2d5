// Child processes with an argument vector: no shell ever sees a name.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace emox {

struct ProcessResult {
  int exit_code = 0;   ///< 128 + signal if the child was killed
  std::string output;  ///< stdout and stderr together
};

/// Runs a program found on PATH in `directory` (empty: the current one) and waits for it.
/// Throws UsageError if the program cannot be started.
ProcessResult run_process(const std::vector<std::string>& arguments, const std::filesystem::path& directory = {});

}  // namespace emox
