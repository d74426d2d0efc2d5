// An error of its own: who knows what the memory was for can say which part is too large.
#pragma once

#include "runtime/core/error.h"

namespace emox {

/// The host or a device has not as much memory left as a Buffer takes.
struct OutOfMemoryError : Error {
  using Error::Error;
};

}  // namespace emox
