#include "tests/support/cuda_emulator/state.h"

#include <cstdio>
#include <cstdlib>
#include <deque>

namespace emu {
namespace {

std::string last;
cudaError_t failed = cudaSuccess;
thread_local cudaError_t last_error = cudaSuccess;

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 0);
}

}  // namespace

Options& options() {
  static Options all = [] {
    Options o;
    o.seed = from_environment("EMOX_EMULATOR_SEED", o.seed);
    o.devices = static_cast<int>(from_environment("EMOX_EMULATOR_DEVICES", 1));
    o.memory = from_environment("EMOX_EMULATOR_MEMORY", o.memory);
    o.driver = static_cast<int>(from_environment("EMOX_EMULATOR_DRIVER", CUDART_VERSION));
    return o;
  }();
  return all;
}

namespace {
// Made before there are threads, and never destroyed: how a local variable is made once, ThreadSanitizer would not see
// here.
std::recursive_mutex& the_lock = *new std::recursive_mutex;
}  // namespace
std::recursive_mutex& lock() { return the_lock; }

Random& random() {
  static Random generator(options().seed);
  return generator;
}

std::string at(Where where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

void report(const std::string& text) {
  const std::lock_guard guard(lock());
  last = text;
  std::fprintf(stderr, "CUDA emulator: %s\n", text.c_str());
}
std::string last_report() {
  const std::lock_guard guard(lock());
  return last;
}

void device_failed(const std::string& text) {
  report(text);
  failed = cudaErrorLaunchFailure;
}
cudaError_t answer(cudaError_t code) {
  if (code != cudaSuccess) last_error = code;
  return code;
}
cudaError_t refuse(cudaError_t code, const std::string& text) {
  report(text);
  return answer(code);
}
cudaError_t trouble() {
  if (options().driver < CUDART_VERSION) return cudaErrorInsufficientDriver;
  return options().devices <= 0 ? cudaErrorNoDevice : failed;
}
void forget_errors() {
  last.clear();
  failed = last_error = cudaSuccess;
  random() = Random(options().seed);
}

}  // namespace emu

cudaError_t cudaGetLastError() {
  const std::lock_guard guard(emu::lock());
  const cudaError_t code = emu::failed != cudaSuccess ? emu::failed : emu::last_error;
  emu::last_error = cudaSuccess;
  return code;
}
cudaError_t cudaPeekAtLastError() {
  const std::lock_guard guard(emu::lock());
  return emu::failed != cudaSuccess ? emu::failed : emu::last_error;
}

const char* cudaGetErrorName(cudaError_t error) {
#define EMU_NAME(x) \
  case x:           \
    return #x
  switch (error) {
    EMU_NAME(cudaSuccess);
    EMU_NAME(cudaErrorInvalidValue);
    EMU_NAME(cudaErrorMemoryAllocation);
    EMU_NAME(cudaErrorInvalidConfiguration);
    EMU_NAME(cudaErrorInvalidMemcpyDirection);
    EMU_NAME(cudaErrorInsufficientDriver);
    EMU_NAME(cudaErrorInvalidDeviceFunction);
    EMU_NAME(cudaErrorNoDevice);
    EMU_NAME(cudaErrorInvalidDevice);
    EMU_NAME(cudaErrorInvalidResourceHandle);
    EMU_NAME(cudaErrorNotReady);
    EMU_NAME(cudaErrorIllegalAddress);
    EMU_NAME(cudaErrorLaunchFailure);
  }
#undef EMU_NAME
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidMemcpyDirection:
      return "invalid copy direction for memcpy";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorInvalidDeviceFunction:
      return "invalid device function";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorLaunchFailure: {
      // Callers keep the pointer.
      static std::deque<std::string> texts;
      const std::lock_guard guard(emu::lock());
      return texts.emplace_back("unspecified launch failure: " + emu::last).c_str();
    }
  }
  return "unrecognized error code";
}
