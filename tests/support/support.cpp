#include "tests/support/support.h"

#include <sys/wait.h>

#include <cmath>
#include <cstdio>
#include <stdexcept>

namespace emox::test {

Tensor random_tensor(Shape shape, unsigned seed, float scale) {
  std::mt19937 gen(seed);
  std::normal_distribution<float> normal(0.0F, scale);
  Tensor t({}, DType::F32, shape);
  float* p = t.view().data<float>();
  for (std::int64_t i = 0; i < shape.numel(); ++i) p[i] = normal(gen);
  return t;
}

::testing::AssertionResult all_close(const std::vector<float>& got, const std::vector<double>& want, double tolerance) {
  if (got.size() != want.size())
    return ::testing::AssertionFailure() << got.size() << " values, expected " << want.size();
  std::size_t worst = 0;
  double most = -1;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double d = std::abs(static_cast<double>(got[i]) - want[i]);
    if (!(d <= most)) {
      most = d;
      worst = i;
    }
    if (std::isnan(d)) break;
  }
  if (got.empty() || most <= tolerance) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "element " << worst << " of " << got.size() << ": " << got[worst]
                                       << ", expected " << want[worst] << ", off by " << most << " > " << tolerance;
}

TemporaryDirectory::TemporaryDirectory() {
  std::string name = (std::filesystem::temp_directory_path() / "emox-test-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
  path_ = name;
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

CommandResult run_command(const std::string& command, int timeout_seconds) {
  const std::string full =
      "timeout --kill-after=5 " + std::to_string(timeout_seconds) + " bash -c '" + command + "' 2>&1";
  std::FILE* pipe = popen(full.c_str(), "r");
  if (pipe == nullptr) throw std::runtime_error("popen failed");
  CommandResult r{0, ""};
  char buffer[4096];
  while (const std::size_t n = std::fread(buffer, 1, sizeof buffer, pipe)) r.output.append(buffer, n);
  const int status = pclose(pipe);
  r.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return r;
}

}  // namespace emox::test
