// Streams hold their work back until somebody waits for it. Then work of all streams runs, in a random order that the
// order within streams and their events allow.
#pragma once

#include <cuda_runtime.h>

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace emu {

/// A point in a stream, reached or not.
struct Point {
  bool reached = false;
  std::chrono::steady_clock::time_point time;
  char sync = 0;  ///< for ThreadSanitizer
};
struct Work {
  std::function<void()> call;
  std::shared_ptr<Point> reach = nullptr, wait = nullptr;
  Body body = {};                            ///< of a kernel, whose arguments are destroyed when it is done
  std::unique_ptr<char[]> handed = nullptr;  ///< for ThreadSanitizer: after what the host did before it
  std::function<bool()> ready = {};          ///< may not run before; null: it may
};

}  // namespace emu

struct EmuEvent {
  std::shared_ptr<emu::Point> last;  ///< of the last record; null: never recorded
  bool timed = true;
};
struct EmuStream {
  int device = 0;
  bool blocking = true;  ///< in order with the default stream
  std::deque<emu::Work> work;
  void* tsan = nullptr;  ///< what the stream does is a thread of its own, to ThreadSanitizer
  char done = 0;
};

namespace emu {

/// Runs work until `enough()`. Answers with the failure, if work failed.
cudaError_t drain(const std::function<bool()>& enough);
/// All work of a device; that of others may be in between.
cudaError_t drain_device(int device);
/// One piece of work that may run, if there is one.
cudaError_t advance();
/// Null stands for the current device's default stream. Null: no such stream, which is reported.
EmuStream* stream_of(cudaStream_t s);
void hand(EmuStream& s, Work work);
/// Whether some stream waits for what another thread may still bring (`Work::ready`).
bool waits_for_peers();
void forget_work();

}  // namespace emu
