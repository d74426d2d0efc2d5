#include "tests/support/cuda_emulator/streams.h"

#include <algorithm>
#include <map>
#include <set>
#include <thread>

#include "tests/support/cuda_emulator/emulator_nccl.h"
#include "tests/support/cuda_emulator/faults.h"
#include "tests/support/cuda_emulator/heap.h"
#include "tests/support/cuda_emulator/nccl_world.h"
#include "tests/support/cuda_emulator/sanitizers.h"
#include "tests/support/cuda_emulator/state.h"

namespace emu {
namespace {

struct All {
  std::vector<std::unique_ptr<EmuStream>> streams;
  std::map<int, EmuStream*> defaults;  // of devices
  std::set<EmuEvent*> events;
};
All& all() {
  static All& only = *new All;
  return only;
}

bool may_run(const EmuStream& s) {
  if (s.work.empty()) return false;
  const Work& next = s.work.front();
  return (next.wait == nullptr || next.wait->reached) && (!next.ready || next.ready());
}

/// Another thread may bring what streams wait for: lets it. False: nobody has for too long.
bool let_others(std::chrono::steady_clock::time_point since) {
  if (std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count() > nccl_options().wait_s)
    return false;
  lock().unlock();
  std::this_thread::sleep_for(std::chrono::microseconds(50));
  lock().lock();
  return true;
}

/// Null: no stream can go on.
EmuStream* choose() {
  std::vector<EmuStream*> can;
  for (const auto& s : all().streams)
    if (may_run(*s)) can.push_back(s.get());
  return can.empty() ? nullptr : can[random().below(can.size())];
}

void end(Work& work) {
  work.call = nullptr;
  if (work.body.destroy != nullptr) work.body.destroy(work.body.arguments);
}

/// What the work did wrong; empty: nothing.
std::string text_of(const std::exception_ptr& thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const std::exception& e) {
    return e.what();
  }
  return heap().check_edges();
}

// To ThreadSanitizer only the call, and the end of its arguments, belong to the stream.
void run_first(EmuStream& s) {
  Work work = std::move(s.work.front());
  s.work.pop_front();
  void* host = nullptr;
  if (under_tsan()) {
    if (s.tsan == nullptr) s.tsan = __tsan_create_fiber(0);
    host = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(s.tsan, 1);
    acquire(work.handed.get());
    if (work.wait) acquire(&work.wait->sync);
  }
  std::exception_ptr thrown;
  try {
    if (work.call) work.call();
  } catch (...) {
    thrown = std::current_exception();
  }
  end(work);
  if (work.reach) release(&work.reach->sync);
  release(&s.done);
  if (under_tsan()) __tsan_switch_to_fiber(host, 1);
  if (work.reach) {
    work.reach->reached = true;
    work.reach->time = std::chrono::steady_clock::now();
  }
  if (thrown) acquire(&s.done);
  const std::string failure = text_of(thrown);
  if (failure.empty()) return;
  device_failed(failure);
  forget_work();
}

}  // namespace

cudaError_t drain(const std::function<bool()>& enough) {
  if (nccl_group_open()) device_failed("the host waits for a device inside of an NCCL group");
  auto moved = std::chrono::steady_clock::now();
  while (trouble() == cudaSuccess && !enough()) {
    EmuStream* const s = choose();
    if (s == nullptr) {
      if (waits_for_peers() && let_others(moved)) continue;
      device_failed(waits_for_peers() ? nccl_waits() : "streams wait for each other");
      break;
    }
    moved = std::chrono::steady_clock::now();
    // Device memory stays open as long as work of one device follows.
    const DeviceWork open(s->device);
    run_first(*s);
    for (EmuStream* next = nullptr; trouble() == cudaSuccess && !enough(); run_first(*next)) {
      next = choose();
      if (next == nullptr || next->device != s->device) break;
    }
  }
  return answer(trouble());
}
cudaError_t drain_device(int device) {
  const cudaError_t code = drain([&] {
    return std::all_of(all().streams.begin(), all().streams.end(),
                       [&](auto& s) { return s->device != device || s->work.empty(); });
  });
  for (const auto& s : all().streams)
    if (s->device == device) acquire(&s->done);
  return code;
}
cudaError_t advance() {
  if (EmuStream* const s = choose(); trouble() == cudaSuccess && s != nullptr) {
    const DeviceWork open(s->device);
    run_first(*s);
  }
  return trouble();
}

bool waits_for_peers() {
  return std::any_of(all().streams.begin(), all().streams.end(), [](const auto& s) {
    return !s->work.empty() && s->work.front().ready && !s->work.front().ready();
  });
}

EmuStream* stream_of(cudaStream_t s) {
  if (s == nullptr) {
    EmuStream*& standard = all().defaults[current_device()];
    if (standard == nullptr) {
      all().streams.push_back(std::make_unique<EmuStream>());
      standard = all().streams.back().get();
      standard->device = current_device();
    }
    return standard;
  }
  for (const auto& known : all().streams)
    if (known.get() == s) return s;
  report("a stream that does not exist, or was destroyed");
  return nullptr;
}

/// The default stream and the blocking ones of its device wait for each other.
void hand(EmuStream& s, Work work) {
  const auto standard = all().defaults.find(s.device);
  const bool is_default = standard != all().defaults.end() && standard->second == &s;
  if (is_default || (s.blocking && standard != all().defaults.end())) {
    for (const auto& other : all().streams)
      if (other.get() != &s && other->blocking && other->device == s.device &&
          (is_default || other.get() == standard->second)) {
        const auto point = std::make_shared<Point>();
        other->work.push_back({.call = {}, .reach = point});
        s.work.push_back({.call = {}, .wait = point});
      }
  }
  if (under_tsan()) {
    work.handed = std::make_unique<char[]>(8);
    release(work.handed.get());
  }
  s.work.push_back(std::move(work));
}

void forget_work() {
  for (const auto& s : all().streams) {
    for (Work& w : s->work) {
      if (w.reach) w.reach->reached = true;
      end(w);
    }
    s->work.clear();
  }
}

std::size_t pending() {
  const std::lock_guard guard(lock());
  std::size_t n = 0;
  for (const auto& s : all().streams) n += s->work.size();
  return n;
}
void reset() {
  const std::lock_guard guard(lock());
  forget_work();
  forget_errors();
}

cudaError_t enqueue(cudaStream_t stream, std::function<void()> work, const Body& body) {
  const std::lock_guard guard(lock());
  Work all{.call = std::move(work), .body = body};
  EmuStream* const s = trouble() == cudaSuccess ? stream_of(stream) : nullptr;
  if (s != nullptr && s->device == current_device()) {
    hand(*s, std::move(all));
    return cudaSuccess;
  }
  end(all);
  if (trouble() != cudaSuccess) return answer(trouble());
  if (s == nullptr) return answer(cudaErrorInvalidResourceHandle);
  return refuse(cudaErrorInvalidResourceHandle, "work for a stream of device " + std::to_string(s->device) +
                                                    " while device " + std::to_string(current_device()) +
                                                    " is current");
}

}  // namespace emu

using namespace emu;

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  const std::lock_guard guard(lock());
  if (trouble() != cudaSuccess) return answer(trouble());
  if (stream == nullptr || flags > cudaStreamNonBlocking) return answer(cudaErrorInvalidValue);
  all().streams.push_back(std::make_unique<EmuStream>());
  *stream = all().streams.back().get();
  (*stream)->device = current_device();
  (*stream)->blocking = flags == cudaStreamDefault;
  return cudaSuccess;
}
// Which stream goes first is chance here, whatever its priority.
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const std::lock_guard guard(lock());
  if (trouble() != cudaSuccess) return answer(trouble());
  EmuStream* const s = stream_of(stream);
  if (s == nullptr) return answer(cudaErrorInvalidResourceHandle);
  const cudaError_t code = drain([&] { return s->work.empty(); });
  acquire(&s->done);
  return code;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::lock_guard guard(lock());
  EmuStream* const s = stream == nullptr ? nullptr : stream_of(stream);
  if (s == nullptr) return answer(cudaErrorInvalidResourceHandle);
  const cudaError_t code = trouble() == cudaSuccess ? drain([&] { return s->work.empty(); }) : trouble();
  acquire(&s->done);
  if (s->tsan != nullptr) __tsan_destroy_fiber(s->tsan);
  std::erase_if(all().streams, [&](auto& x) { return x.get() == s; });
  return answer(code);
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  const std::lock_guard guard(lock());
  if (trouble() != cudaSuccess) return answer(trouble());
  EmuStream* const s = stream_of(stream);
  if (s == nullptr) return answer(cudaErrorInvalidResourceHandle);
  if (!s->work.empty() && advance() != cudaSuccess) return answer(trouble());
  if (!s->work.empty()) return answer(cudaErrorNotReady);
  acquire(&s->done);
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  const std::lock_guard guard(lock());
  return trouble() != cudaSuccess ? answer(trouble()) : drain_device(current_device());
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t fn, void* userData) {
  return enqueue(stream, [=] { fn(userData); });
}

namespace {
EmuEvent* event_of(cudaEvent_t e) {
  if (all().events.contains(e)) return e;
  report("an event that does not exist, or was destroyed");
  return nullptr;
}
}  // namespace

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  const std::lock_guard guard(lock());
  if (trouble() != cudaSuccess) return answer(trouble());
  if (event == nullptr || flags > (cudaEventBlockingSync | cudaEventDisableTiming))
    return answer(cudaErrorInvalidValue);
  *event = new EmuEvent{.last = nullptr, .timed = (flags & cudaEventDisableTiming) == 0};
  all().events.insert(*event);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const std::lock_guard guard(lock());
  if (event_of(event) == nullptr) return answer(cudaErrorInvalidResourceHandle);
  all().events.erase(event);
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::lock_guard guard(lock());
  if (trouble() != cudaSuccess) return answer(trouble());
  EmuStream* const s = stream_of(stream);
  if (s == nullptr || event_of(event) == nullptr) return answer(cudaErrorInvalidResourceHandle);
  event->last = std::make_shared<Point>();
  hand(*s, {.call = {}, .reach = event->last});
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  const std::lock_guard guard(lock());
  if (trouble() != cudaSuccess) return answer(trouble());
  if (flags != 0) return answer(cudaErrorInvalidValue);
  EmuStream* const s = stream_of(stream);
  if (s == nullptr || event_of(event) == nullptr) return answer(cudaErrorInvalidResourceHandle);
  if (event->last) hand(*s, {.call = {}, .wait = event->last});
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const std::lock_guard guard(lock());
  if (trouble() != cudaSuccess) return answer(trouble());
  if (event_of(event) == nullptr) return answer(cudaErrorInvalidResourceHandle);
  const std::shared_ptr<Point> point = event->last;
  if (!point) return cudaSuccess;
  const cudaError_t code = drain([&] { return point->reached; });
  acquire(&point->sync);
  return code;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const std::lock_guard guard(lock());
  if (trouble() != cudaSuccess) return answer(trouble());
  if (event_of(event) == nullptr) return answer(cudaErrorInvalidResourceHandle);
  const std::shared_ptr<Point> point = event->last;
  if (!point) return cudaSuccess;
  if (!point->reached && advance() != cudaSuccess) return answer(trouble());
  if (!point->reached) return answer(cudaErrorNotReady);
  acquire(&point->sync);
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t end) {
  const std::lock_guard guard(lock());
  if (trouble() != cudaSuccess) return answer(trouble());
  if (ms == nullptr) return answer(cudaErrorInvalidValue);
  if (event_of(start) == nullptr || event_of(end) == nullptr) return answer(cudaErrorInvalidResourceHandle);
  if (!start->timed || !end->timed || !start->last || !end->last)
    return refuse(cudaErrorInvalidResourceHandle, "a time between events that were not recorded, or keep no time");
  if (!start->last->reached || !end->last->reached) return answer(cudaErrorNotReady);
  *ms = std::chrono::duration<float, std::milli>(end->last->time - start->last->time).count();
  return cudaSuccess;
}
