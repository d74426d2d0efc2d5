#include "parallel/comm/nccl/nccl_connection.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <string_view>
#include <thread>
#include <vector>

#include "parallel/comm/nccl/nccl_errors.h"
#include "parallel/comm/together.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

using Clock = std::chrono::steady_clock;

/// Knows which communicators may have calls on the device at once, in the order in which the host made them.
constexpr int kKnowsLaunchOrder = 22600;

bool over(Clock::time_point since, double seconds) {
  return std::chrono::duration<double>(Clock::now() - since).count() > seconds;
}
void pause() { std::this_thread::sleep_for(std::chrono::microseconds(200)); }

ncclConfig_t not_blocking() {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  return config;
}

/// Calls of two communicators on one device may wait for each other, when ranks' devices begin them in different
/// orders. NCCL_LAUNCH_ORDER_IMPLICIT keeps one order; without it, one call at a time does.
bool one_at_a_time(const NcclLibrary& nccl) {
  int version = 0;
  nccl.GetVersion(&version);
  const char* const order = std::getenv("NCCL_LAUNCH_ORDER_IMPLICIT");
  return version < kKnowsLaunchOrder || (order != nullptr && std::string_view(order) == "0");
}

}  // namespace

/// The communicators of one rank that come from the same one. Its own thread's.
struct NcclFamily {
  const NcclLibrary& nccl = nccl_library();
  const bool one_at_a_time = emox::one_at_a_time(nccl);
  DeviceQueue* last = nullptr;  ///< that was given a call
  std::vector<NcclConnection*> members{};

  // In one group: NCCL first tells all of them, then waits for the device, where one's work may lie behind another's.
  void abort() noexcept {
    nccl.GroupStart();
    for (NcclConnection* const m : members) m->locked([&](ncclComm_t) { return end(m->comm_); });
    nccl.GroupEnd();
  }
  ncclResult_t end(ncclComm_t& comm) const noexcept {
    return comm == nullptr ? ncclSuccess : nccl.CommAbort(std::exchange(comm, nullptr));
  }
};

NcclConnection::NcclConnection(Communicator& host, DeviceQueue& queue, const NcclOptions& options)
    : host_(host), queue_(queue), options_(options) {
  const std::string missing = first_text(host, nccl_.missing);
  require<UsageError>(missing.empty(), "parallel.communicator = nccl: {}", missing);
  family_ = std::make_shared<NcclFamily>();
  ncclUniqueId id{};
  const ncclResult_t got = host.rank() == 0 ? nccl_.GetUniqueId(&id) : ncclSuccess;
  const std::string failed = first_text(host, got == ncclSuccess ? "" : text_of(got, "ncclGetUniqueId"));
  require<CommError>(failed.empty(), "{}. NCCL_DEBUG=INFO shows what NCCL does", failed);
  host.broadcast(TensorView(id.internal, DType::U8, {static_cast<std::int64_t>(sizeof id.internal)}), 0);
  ncclConfig_t config = not_blocking();
  make(nccl_.CommInitRankConfig(&comm_, host.size(), id, host.rank(), &config), nullptr);
}

NcclConnection::NcclConnection(NcclConnection& parent, int color, int key, Communicator& host, DeviceQueue& queue)
    : host_(host), queue_(queue), options_(parent.options_), family_(parent.family_) {
  parent.begin("split");
  ncclConfig_t config = not_blocking();
  make(parent.locked([&](ncclComm_t all) { return nccl_.CommSplit(all, color, key, &comm_, &config); }), &parent);
}

// All ranks look together, so that a failure of one ends all of them, and none waits for a rank that has given up. A
// part is its parent's doing, and null until the parent is done with it.
void NcclConnection::make(ncclResult_t code, NcclConnection* parent) {
  const auto since = Clock::now();
  for (;;) {
    if (code == ncclInProgress || code == ncclSuccess) {
      code = parent != nullptr ? parent->state() : ncclSuccess;
      if (code == ncclSuccess) code = state();
    }
    const bool late = code == ncclInProgress && over(since, options_.init_s);
    const bool failed = late || (code != ncclSuccess && code != ncclInProgress);
    const std::int64_t worst = largest_of_ranks(host_, failed ? 2 : code == ncclInProgress ? 1 : 0);
    if (worst == 0) break;
    if (worst == 1) {
      pause();
      continue;
    }
    std::string own;
    if (late)
      own =
          fmt::format("NCCL did not connect rank {} of {} within {:g} s", host_.rank(), host_.size(), options_.init_s);
    else if (failed)
      own = text_of(code, "making a communicator");
    const std::string first = first_text(host_, own);
    if (parent != nullptr) abort();  // NCCL may be at work on comm_
    family_->end(comm_);
    fail<CommError>("{}. NCCL_DEBUG=INFO shows what NCCL does", first);
  }
  family_->members.push_back(this);
}

NcclConnection::~NcclConnection() {
  if (comm_ != nullptr && !close()) abort();
  std::erase(family_->members, this);
}

bool NcclConnection::close() noexcept {
  if (std::uncaught_exceptions() != exceptions_) return false;
  try {
    const auto since = Clock::now();
    for (const auto done = queue_.record(); !done->passed(); pause())
      if (!trouble().empty() || over(since, options_.end_s)) return false;
    if (!trouble().empty()) return false;
    ncclResult_t code = locked([&](ncclComm_t comm) { return nccl_.CommFinalize(comm); });
    while ((code == ncclInProgress || code == ncclSuccess) && (code = state()) == ncclInProgress &&
           !over(since, options_.end_s))
      pause();
    if (code != ncclSuccess) return false;
    const std::lock_guard lock(mutex_);
    nccl_.CommDestroy(std::exchange(comm_, nullptr));
    return true;
  } catch (const std::exception&) {  // the device failed
    return false;
  }
}

void NcclConnection::abort() noexcept { family_->abort(); }

ncclResult_t NcclConnection::state() const {
  return locked([&](ncclComm_t comm) {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t code = nccl_.CommGetAsyncError(comm, &state);
    return code == ncclSuccess ? state : code;
  });
}

// Does not wait for the rank's own thread, which finds out by itself, or ends the communicator just now.
std::string NcclConnection::trouble() const {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock.owns_lock() || comm_ == nullptr) return {};
  ncclResult_t state = ncclSuccess;
  const ncclResult_t code = nccl_.CommGetAsyncError(comm_, &state);
  const ncclResult_t worst = code == ncclSuccess ? state : code;
  return worst == ncclSuccess || worst == ncclInProgress ? "" : text_of(worst, last_.load());
}

std::string NcclConnection::text_of(ncclResult_t code, std::string_view call) const {
  const char* const said = nccl_.GetLastError(comm_);
  const std::string_view detail = said == nullptr ? "" : said;
  const std::int64_t calls = calls_.load();
  return fmt::format("NCCL on rank {} of {}: {} failed{}: {}{}: {}", host_.rank(), host_.size(), call,
                     calls == 0 ? "" : fmt::format(" (call {})", calls), nccl_.GetErrorString(code),
                     detail.empty() ? "" : fmt::format(" ({})", detail), nccl_cure(code, detail));
}

void NcclConnection::begin(const char* name) {
  last_ = name;
  ++calls_;
  require<CommError>(comm_ != nullptr, "NCCL on rank {} of {}: {} after its communicator was ended", host_.rank(),
                     host_.size(), name);
  if (!family_->one_at_a_time) return;
  if (family_->last != nullptr && family_->last != &queue_) queue_.follow(*family_->last);
  family_->last = &queue_;
}

// The first call between two ranks connects them, for which both must have come.
void NcclConnection::check(ncclResult_t code, const char* name) {
  const auto since = Clock::now();
  while (code == ncclInProgress) {
    require<CommError>(!over(since, options_.init_s), "NCCL on rank {} of {}: {} has not begun after {:g} s",
                       host_.rank(), host_.size(), name, options_.init_s);
    if (over(since, 0.001))
      pause();
    else
      std::this_thread::yield();
    code = state();
  }
  if (code != ncclSuccess) fail<CommError>("{}", text_of(code, name));
}

}  // namespace emox
