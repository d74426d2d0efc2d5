// Helpers shared by the tests: tensors from vectors, closeness with a message, ranks as threads.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "runtime/core/context.h"
#include "runtime/core/idx.h"
#include "runtime/core/tensor.h"
#include "tests/support/device.h"

namespace emox::test {

template <typename T>
Tensor tensor_of(const std::vector<T>& values, Shape shape) {
  Tensor t({}, dtype_of<T>(), shape);
  EXPECT_EQ(static_cast<std::int64_t>(values.size()), shape.numel());
  std::copy(values.begin(), values.end(), t.view().data<T>());
  return t;
}

template <typename T>
std::vector<T> values_of(const TensorView& t) {
  (void)t.data<T>();  // checks the type
  std::vector<T> values(idx(t.numel()));
  const std::vector<unsigned char> bytes = bytes_at(t);
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<unsigned char*>(values.data()));
  return values;
}

/// Standard normal values, fixed by the seed.
Tensor random_tensor(Shape shape, unsigned seed, float scale = 1.0F);

/// Every |got - want| <= tolerance; reports the worst element.
::testing::AssertionResult all_close(const std::vector<float>& got, const std::vector<double>& want, double tolerance);

/// A directory that vanishes with the object.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// Runs a shell command with a time limit; exit code and what it printed (stdout and stderr together).
struct CommandResult {
  int exit_code;
  std::string output;
};
CommandResult run_command(const std::string& command, int timeout_seconds = 120);

}  // namespace emox::test
