// What every op and layer is handed: where to run, with how many threads, and where to report.
#pragma once

#include "runtime/core/device.h"
#include "runtime/core/tensor.h"

namespace emox {

class Log;
class Telemetry;

struct Context {
  Device device;
  Stream stream;
  int threads = 1;                 ///< OpenMP threads of one op on this rank
  Log* log = nullptr;              ///< never null inside a running command; may be null in tests
  Telemetry* telemetry = nullptr;  ///< null: spans are not recorded
  TensorView fault;  ///< f64 [1] where bodies report wrong indices that a device made (ops/fault.h); may be null
};

}  // namespace emox
