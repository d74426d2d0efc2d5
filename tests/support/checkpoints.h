// Whole checkpoints in memory, for tests that compare runs.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>

namespace emox::test {

/// The same arrays with the same elements, bit for bit, however each checkpoint is cut into pieces and files.
::testing::AssertionResult same_arrays(const std::filesystem::path& checkpoint, const std::filesystem::path& other);

}  // namespace emox::test
