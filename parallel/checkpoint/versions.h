// Versions of the libraries behind checkpoints, for reports.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace emox {

/// What wrote a checkpoint: {"emox": "0.1.0", "hdf5": "1.10.8", "xxhash": ..., "compiler": ...}.
nlohmann::json library_versions();

/// "1.10.8" of the HDF5 library in use.
std::string hdf5_version();

}  // namespace emox
