// Versions of the libraries behind checkpoints: a part of manifest.h.
#include "parallel/checkpoint/manifest.h"

#include <fmt/format.h>
#include <hdf5.h>
#include <xxhash.h>
#include <nlohmann/json.hpp>

#include "parallel/checkpoint/hdf5_library.h"
#include "runtime/core/version.h"

namespace emox {

std::string hdf5_version() {
  const auto lock = hdf5::library_lock();  // this may be the library's first call, and that decides how it ends
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  return fmt::format("{}.{}.{}", major, minor, release);
}

nlohmann::json library_versions() {
  const unsigned x = XXH_versionNumber();
  return {{"emox", kVersion},
          {"hdf5", hdf5_version()},
          {"xxhash", fmt::format("{}.{}.{}", x / 10000, x / 100 % 100, x % 100)},
          {"compiler", __VERSION__}};
}

}  // namespace emox
