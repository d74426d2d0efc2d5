// Versions of the libraries behind checkpoints, for reports.
#pragma once

#include <string>

namespace emox {

/// "1.10.8" of the HDF5 library in use.
std::string hdf5_version();

}  // namespace emox
