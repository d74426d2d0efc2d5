// What every op and layer is handed: where to run, with how many threads, and where to report.
#pragma once

#include "runtime/core/device.h"
#include "runtime/core/tensor.h"

namespace emox {

class DeviceQueue;
class Log;
class Telemetry;

struct Context {
  Device device;
  DeviceQueue* queue = nullptr;    ///< work of the device, in order; null on the CPU, where work runs in the caller
  DType activations = DType::F32;  ///< what layers pass on: F32 or BF16; the CPU computes F32 only
  bool round_activations =
      false;           ///< for tests: ops round their F32 activations to bf16 values, as a BF16 run stores them
  int threads = 1;     ///< OpenMP threads of one op on this rank
  Log* log = nullptr;  ///< never null inside a running command; may be null in tests
  Telemetry* telemetry = nullptr;  ///< null: spans are not recorded
  TensorView fault;  ///< f64 [1] where bodies report wrong indices that a device made (ops/fault.h); may be null
};

}  // namespace emox
