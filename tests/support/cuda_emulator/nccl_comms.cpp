// Communicators of the emulated NCCL: made, split, looked at, ended.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "runtime/core/idx.h"
#include "tests/support/cuda_emulator/emulator_nccl.h"
#include "tests/support/cuda_emulator/nccl_world.h"
#include "tests/support/cuda_emulator/sanitizers.h"
#include "tests/support/cuda_emulator/state.h"
#include "tests/support/cuda_emulator/streams.h"

using emox::idx;

namespace emu {
namespace {

struct World {
  std::vector<std::unique_ptr<EmuComm>> comms;               // the ended ones too: their use is reported
  std::map<std::uint64_t, std::shared_ptr<NcclGroup>> jobs;  // by their id
  std::uint64_t next_id = 1;
  NcclOptions options;
};
World& world() {
  static World& only = *new World;
  return only;
}

EmuComm* make(int rank, int size, const ncclConfig_t* config) {
  auto c = std::make_unique<EmuComm>();
  c->rank = rank, c->size = size, c->device = current_device();
  c->blocking = config == nullptr || config->blocking != 0;
  world().comms.push_back(std::move(c));
  return world().comms.back().get();
}

/// What is wrong with the ranks of a communicator that has all of them.
std::string trouble_of(const NcclGroup& g) {
  for (const EmuComm* a : g.ranks)
    for (const EmuComm* b : g.ranks)
      if (a->rank < b->rank && a->device == b->device && !nccl_options().shared_devices)
        return "Duplicate GPU detected : rank " + std::to_string(b->rank) + " and rank " + std::to_string(a->rank) +
               " both on CUDA device " + std::to_string(a->device);
  return {};
}

void complete(const std::shared_ptr<NcclGroup>& g) {
  if (nccl_options().stuck) return;
  const std::string wrong = trouble_of(*g);
  for (EmuComm* c : g->ranks) {
    c->group = g;
    if (!wrong.empty()) refuse_nccl(c, c->error = ncclInvalidUsage, wrong);
    if (nccl_options().init != ncclSuccess)
      refuse_nccl(c, c->error = nccl_options().init, "injected: no communicator can be made");
  }
}

/// As the call of a blocking communicator ends; a nonblocking one is looked at.
ncclResult_t settled(EmuComm* c) {
  if (!c->blocking) return ncclInProgress;
  const auto since = std::chrono::steady_clock::now();
  while (c->group == nullptr) {
    if (std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count() > nccl_options().wait_s)
      return refuse_nccl(c, ncclSystemError, "not all ranks have come to make a communicator");
    lock().unlock();
    std::this_thread::sleep_for(std::chrono::microseconds(50));
    lock().lock();
  }
  return c->error;
}

}  // namespace

NcclOptions& nccl_options() { return world().options; }
void reset_nccl() {
  const std::lock_guard guard(lock());
  world().jobs.clear();
  world().options = {};
}

void note_use(ncclComm_t comm) {
  if (comm != nullptr) note_write(&comm->used, 1);
}

EmuComm* comm_of(ncclComm_t comm, const char* call) {
  const auto found = std::find_if(world().comms.begin(), world().comms.end(), [&](auto& c) { return c.get() == comm; });
  if (found == world().comms.end() || comm->aborted || comm->finalized) {
    report(std::string(call) + " with a communicator that does not exist, or was ended");
    return nullptr;
  }
  return comm;
}
ncclResult_t refuse_nccl(EmuComm* comm, ncclResult_t code, const std::string& text) {
  report("NCCL: " + text);
  if (comm != nullptr) comm->last_error = text;
  return code;
}

}  // namespace emu

using namespace emu;

ncclResult_t ncclGetVersion(int* version) {
  *version = nccl_options().version;
  return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  const std::lock_guard guard(lock());
  *id = {};
  const std::uint64_t number = world().next_id++;
  std::memcpy(id->internal, &number, sizeof number);
  world().jobs[number] = std::make_shared<NcclGroup>();
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int nranks, ncclUniqueId id, int rank, ncclConfig_t* config) {
  const std::lock_guard guard(lock());
  if (trouble() != cudaSuccess) return refuse_nccl(nullptr, ncclUnhandledCudaError, "no device");
  std::uint64_t number = 0;
  std::memcpy(&number, id.internal, sizeof number);
  const auto job = world().jobs.find(number);
  if (job == world().jobs.end() || rank < 0 || rank >= nranks)
    return refuse_nccl(nullptr, ncclInvalidArgument,
                       "an id that nobody made, or rank " + std::to_string(rank) + " of " + std::to_string(nranks));
  const std::shared_ptr<NcclGroup> g = job->second;
  if (g->ranks.empty()) g->ranks.resize(idx(nranks));
  if (static_cast<int>(g->ranks.size()) != nranks || g->ranks[idx(rank)] != nullptr)
    return refuse_nccl(nullptr, ncclInvalidUsage, "ranks of one id that are two, or do not agree on their number");
  EmuComm* const c = *comm = make(rank, nranks, config);
  g->ranks[idx(rank)] = c;
  if (++g->joined == nranks) complete(g);
  return settled(c);
}

ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t* part, ncclConfig_t* config) {
  note_use(comm);
  const std::lock_guard guard(lock());
  EmuComm* const c = comm_of(comm, "ncclCommSplit");
  if (c == nullptr) return ncclInvalidArgument;
  if (c->in_progress())
    return refuse_nccl(c, ncclInvalidArgument, "a split of a communicator that is still in progress");
  NcclGroup& g = *c->group;
  NcclGroup::Split& s = g.splits[c->splits++];
  if (s.part.empty()) {
    s.color.resize(g.ranks.size()), s.key.resize(g.ranks.size());
    s.part.resize(g.ranks.size()), s.place.resize(g.ranks.size());
  }
  const auto me = idx(c->rank);
  s.color[me] = color, s.key[me] = key;
  *part = color == NCCL_SPLIT_NOCOLOR ? nullptr : make(0, 0, config);
  EmuComm* const mine = *part;
  s.part[me] = mine;
  ++c->splitting;
  if (mine != nullptr && !mine->blocking) {  // there when all have called
    s.place[me] = part;
    *part = nullptr;
  }
  if (++s.called == c->size) {
    std::map<int, std::vector<std::pair<int, int>>> colors;  // (key, rank)
    for (int r = 0; r < c->size; ++r)
      if (s.part[idx(r)] != nullptr) colors[s.color[idx(r)]].emplace_back(s.key[idx(r)], r);
    for (auto& [one, members] : colors) {
      std::sort(members.begin(), members.end());
      const auto made = std::make_shared<NcclGroup>();
      for (const auto& [k, r] : members) {
        EmuComm* const p = s.part[idx(r)];
        p->rank = made->joined++, p->size = static_cast<int>(members.size());
        made->ranks.push_back(p);
      }
      complete(made);
    }
    for (int r = 0; r < c->size; ++r) {
      if (g.ranks[idx(r)] != nullptr) --g.ranks[idx(r)]->splitting;
      if (s.place[idx(r)] != nullptr) *s.place[idx(r)] = s.part[idx(r)];
    }
  }
  return mine == nullptr ? ncclSuccess : settled(mine);
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  note_use(comm);
  const std::lock_guard guard(lock());
  EmuComm* const c = comm_of(comm, "ncclCommGetAsyncError");
  if (c == nullptr) return ncclInvalidArgument;
  *error = c->error;
  if (c->error == ncclSuccess && c->group != nullptr && c->group->aborted) *error = ncclRemoteError;
  if (*error == ncclSuccess && c->in_progress()) *error = ncclInProgress;
  if (c->busy > 0) --c->busy;
  return ncclSuccess;
}

namespace {
ncclResult_t end_comm(EmuComm* c) {
  if (c->open > 0) return refuse_nccl(c, ncclInvalidUsage, "a communicator is ended while its calls wait on streams");
  c->finalized = true;
  if (c->group != nullptr)
    std::replace(c->group->ranks.begin(), c->group->ranks.end(), c, static_cast<EmuComm*>(nullptr));
  return ncclSuccess;
}
}  // namespace

// Ends what the communicator has under way; here nothing may be.
ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  note_use(comm);
  const std::lock_guard guard(lock());
  EmuComm* const c = comm_of(comm, "ncclCommFinalize");
  if (c == nullptr) return ncclInvalidArgument;
  if (c->open > 0) return refuse_nccl(c, ncclInvalidUsage, "a communicator is ended while its calls wait on streams");
  return c->blocking ? ncclSuccess : ncclInProgress;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  note_use(comm);
  const std::lock_guard guard(lock());
  EmuComm* const c = comm_of(comm, "ncclCommDestroy");
  return c == nullptr ? ncclInvalidArgument : end_comm(c);
}
// Streams of this rank go on without what they waited for. Outside of a group it waits until they have: for other
// communicators' calls, too, when those are in front.
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  note_use(comm);
  const std::lock_guard guard(lock());
  EmuComm* const c = comm_of(comm, "ncclCommAbort");
  if (c == nullptr) return ncclInvalidArgument;
  c->aborted = true;
  if (c->group != nullptr) {
    c->group->aborted = true;
    for (auto& [number, split] : c->group->splits)
      if (!split.place.empty()) split.place[idx(c->rank)] = nullptr;
  }
  if (!nccl_group_open()) drain([&] { return c->open == 0; });
  return ncclSuccess;
}

ncclResult_t ncclCommCount(ncclComm_t comm, int* count) {
  const std::lock_guard guard(lock());
  if (comm_of(comm, "ncclCommCount") == nullptr) return ncclInvalidArgument;
  *count = comm->size;
  return ncclSuccess;
}
ncclResult_t ncclCommUserRank(ncclComm_t comm, int* rank) {
  const std::lock_guard guard(lock());
  if (comm_of(comm, "ncclCommUserRank") == nullptr) return ncclInvalidArgument;
  *rank = comm->rank;
  return ncclSuccess;
}
ncclResult_t ncclCommCuDevice(ncclComm_t comm, int* device) {
  const std::lock_guard guard(lock());
  if (comm_of(comm, "ncclCommCuDevice") == nullptr) return ncclInvalidArgument;
  *device = comm->device;
  return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t result) {
  static constexpr const char* kTexts[] = {"no error",
                                           "unhandled cuda error",
                                           "unhandled system error",
                                           "internal error",
                                           "invalid argument",
                                           "invalid usage",
                                           "remote process exited or there was a network error",
                                           "NCCL operation in progress"};
  return kTexts[result];
}
const char* ncclGetLastError(ncclComm_t comm) { return comm == nullptr ? "" : comm->last_error.c_str(); }
