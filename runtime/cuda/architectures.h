// What the kernels were compiled for: EMOX_CUDA_ARCHITECTURES, as CMake gives it, "80-real;90a-real;90-virtual".
#pragma once

#include <string>
#include <vector>

namespace emox::cuda {

/// "sm_80", "sm_90a", "compute_90", ...
std::vector<std::string> compiled_architectures();
/// Whether there is code for just this one, "90a".
bool compiled_for(const std::string& name);
/// Whether there is code for this compute capability: of the same major number and at most this minor number, of just
/// this one for "90a", or intermediate code of at most this capability.
bool runs_on(int major, int minor);
/// The same for a list, for tests.
bool runs_on(const std::string& architectures, int major, int minor);

}  // namespace emox::cuda
