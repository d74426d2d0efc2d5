// What `emox doctor` says of GPUs.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "runtime/core/accelerator.h"

namespace emox {

/// {"cuda": in words, "cuda_compiled_for": [...], "cuda_versions": {driver, runtime, cublasLt}, "devices": [{index,
/// name, compute_capability, processors, memory, free (bytes), pci_bus, ecc, usable, why_not}, ...]}. Null: built
/// without CUDA.
nlohmann::ordered_json describe_devices(const Accelerator* cuda);
/// One device of them, in a line.
std::string device_line(const nlohmann::ordered_json& device);

}  // namespace emox
