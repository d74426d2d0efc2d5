// Which instructions the CPU bodies were compiled for.
#pragma once

#include <string>

namespace emox::cpu {

/// The instruction sets that the bodies use and this processor lacks; empty when it has them all.
std::string missing_instructions();
/// The widest of them, for reports: "avx512f", "avx2", ...
std::string compiled_instructions();
/// "oneDNN 2.6.0": what computes matrix products.
std::string matrix_library();

}  // namespace emox::cpu
