// Calls of the emulated NCCL: collected in groups, given to streams, done when all their ranks have come.
#include <algorithm>
#include <array>
#include <functional>

#include "runtime/core/idx.h"
#include "tests/support/cuda_emulator/emulator_nccl.h"
#include "tests/support/cuda_emulator/heap.h"
#include "tests/support/cuda_emulator/nccl_world.h"
#include "tests/support/cuda_emulator/sanitizers.h"
#include "tests/support/cuda_emulator/state.h"
#include "tests/support/cuda_emulator/streams.h"

using emox::idx;

namespace emu {
namespace {

struct Call {
  EmuComm* comm;
  cudaStream_t stream;
  const char* kind;
  const void* from;
  void* to;
  std::size_t count;
  ncclDataType_t type;
  ncclRedOp_t reduce;
  int root;  ///< the peer of a message
  bool message() const { return sends() || kind == std::string("recv"); }
  bool sends() const { return kind == std::string("send"); }
};
thread_local int depth = 0;
thread_local std::vector<Call> group;
std::map<int, NcclCounters>& counters() {
  static auto& all = *new std::map<int, NcclCounters>;
  return all;
}
/// Posted and not complete, for messages.
std::vector<std::weak_ptr<NcclOp>>& waiting() {
  static auto& all = *new std::vector<std::weak_ptr<NcclOp>>;
  return all;
}

std::string memory_wrong(const Call& c, const void* p, std::size_t bytes, const char* what) {
  if (bytes == 0) return {};
  const std::string name = std::string(c.kind) + ": what is to be " + what;
  const DeviceHeap::Block* const block = heap().find(p);
  if (block == nullptr) return name + " is not device memory: it is " + heap().describe(p);
  if (block->device != c.comm->device) return name + " lies on another device than the communicator's";
  if (heap().bytes_at(p) < bytes) return name + ", " + std::to_string(bytes) + " bytes, reaches out of its block";
  return {};
}

std::string wrong_with(const Call& c) {
  const EmuComm& m = *c.comm;
  const std::size_t bytes = c.count * bytes_of(c.type);
  const std::string kind = c.kind;
  if ((c.message() || kind == "reduce" || kind == "broadcast") && (c.root < 0 || c.root >= m.size))
    return kind + " with rank " + std::to_string(c.root) + " of " + std::to_string(m.size);
  const std::size_t from = kind == "reduce_scatter" ? bytes * idx(m.size) : bytes,
                    to = kind == "all_gather" ? bytes * idx(m.size) : bytes;
  const bool reads = kind != "recv" && !(kind == "broadcast" && c.root != m.rank),
             writes = kind != "send" && !(kind == "reduce" && c.root != m.rank);
  std::string wrong = reads ? memory_wrong(c, c.from, from, "sent") : "";
  if (wrong.empty() && writes) wrong = memory_wrong(c, c.to, to, "received");
  if (!wrong.empty() || !reads || !writes || c.count == 0) return wrong;
  const auto a = reinterpret_cast<std::uintptr_t>(c.from), b = reinterpret_cast<std::uintptr_t>(c.to);
  const std::size_t own = bytes * idx(m.rank);
  const bool in_place = kind == "all_gather" ? a == b + own : kind == "reduce_scatter" ? b == a + own : a == b;
  if (!in_place && a < b + to && b < a + from) return kind + ": sent and received memory overlap, but not in place";
  return {};
}

std::pair<int, int> connection_of(const NcclOp& op) {
  return op.kind == "message" ? std::pair(op.sender, op.root) : std::pair(-1, -1);
}

/// Both sides of one call must say the same.
void compare(const NcclOp& op, const NcclOp& other, int rank) {
  if (op.text() != other.text())
    device_failed("NCCL: rank " + std::to_string(rank) + " calls " + other.text() + " where others call " + op.text());
}

std::shared_ptr<NcclOp> posted(const Call& c) {
  EmuComm& m = *c.comm;
  NcclGroup& g = *m.group;
  NcclOp one{.kind = c.message() ? "message" : c.kind,
             .count = c.count,
             .type = c.type,
             .reduce = c.reduce,
             .root = c.sends() || !c.message() ? c.root : m.rank,
             .sender = c.sends() ? m.rank : c.root};
  std::shared_ptr<NcclOp> op;
  std::size_t part = idx(m.rank), parts = idx(m.size);
  if (c.message()) {
    part = c.sends() ? 0 : 1, parts = 2;
    auto& line = g.messages[{one.sender, one.root}];
    const auto other = std::find_if(line.begin(), line.end(), [&](const auto& o) { return !o->parts[part].posted; });
    if (other != line.end()) {
      op = *other;
      line.erase(other);
    } else {
      line.push_back(op = std::make_shared<NcclOp>(one));
    }
  } else {
    std::shared_ptr<NcclOp>& known = g.collectives[m.collectives++];
    if (!known) known = std::make_shared<NcclOp>(one);
    op = known;
  }
  compare(*op, one, m.rank);
  op->parts.resize(parts);
  op->parts[part] = {c.from, c.to, m.device, true, false};
  if (!m.blocking && g.connected.insert(connection_of(*op)).second) op->first = true;
  if (!m.blocking && op->first) m.connecting.push_back(op);
  if (op->all_posted() && !c.message()) std::erase_if(g.collectives, [&](const auto& x) { return x.second == op; });
  waiting().push_back(op);
  return op;
}

void arrive(NcclOp& op, std::size_t part) {
  op.parts[part].arrived = true;
  release(&op.before);
  if (!std::all_of(op.parts.begin(), op.parts.end(), [](const NcclPart& p) { return p.posted && p.arrived; })) return;
  void* host = nullptr;
  void* own = nullptr;
  if (under_tsan()) {  // what moves the data is a thread of its own
    host = __tsan_get_current_fiber();
    own = __tsan_create_fiber(0);
    __tsan_switch_to_fiber(own, 1);
  }
  acquire(&op.before);
  execute(op);
  release(&op.after);
  if (under_tsan()) {
    __tsan_switch_to_fiber(host, 1);
    __tsan_destroy_fiber(own);
  }
  op.complete = true;
}

/// The calls of one group on one stream.
ncclResult_t give(const std::vector<Call>& calls) {
  struct Task {
    EmuComm* comm;
    std::shared_ptr<NcclOp> op;
    std::size_t part;
  };
  std::vector<Task> tasks;
  bool nonblocking = false;
  for (const Call& c : calls) {
    EmuComm& m = *c.comm;
    NcclCounters& n = counters()[m.device];
    n.messages += c.sends() ? 1 : 0;
    n.bytes += c.sends() ? static_cast<std::int64_t>(c.count * bytes_of(c.type)) : 0;
    n.collectives += c.message() ? 0 : 1;
    nonblocking = nonblocking || !m.blocking;
    ++m.open;
    const NcclOptions& o = nccl_options();
    if (m.rank == o.fail_rank && o.fail_call > 0 && ++m.calls >= o.fail_call) {
      m.error = o.fail_with;
      m.last_error = "injected failure of rank " + std::to_string(m.rank);
      tasks.push_back({&m, std::make_shared<NcclOp>(NcclOp{.kind = "a call that fails"}), 0});
      continue;
    }
    tasks.push_back({&m, posted(c), c.message() ? (c.sends() ? 0U : 1U) : idx(m.rank)});
  }
  ++counters()[calls.front().comm->device].groups;
  EmuStream& s = *stream_of(calls.front().stream);
  hand(s, {.call = [tasks] {
         for (const Task& t : tasks)
           if (!t.comm->aborted && !t.op->parts.empty()) arrive(*t.op, t.part);
       }});
  hand(s, {.call =
               [tasks] {
                 for (const Task& t : tasks) {
                   if (t.op->complete) acquire(&t.op->after);
                   --t.comm->open;
                 }
               },
           .ready =
               [tasks] {
                 return std::all_of(tasks.begin(), tasks.end(),
                                    [](const Task& t) { return t.op->complete || t.comm->aborted; });
               }});
  const bool connects = std::any_of(calls.begin(), calls.end(), [](const Call&c) { return c.comm->in_progress(); }),
             may = nccl_options().in_progress && random().below(2) == 0;
  if (!nonblocking || (!connects && !may)) return ncclSuccess;
  for (const Call& c : calls) c.comm->busy = 1 + static_cast<int>(random().below(3));
  return ncclInProgress;
}

ncclResult_t end_group() {
  std::vector<Call> calls;
  calls.swap(group);
  ncclResult_t result = ncclSuccess;
  while (!calls.empty()) {
    const cudaStream_t stream = calls.front().stream;
    std::vector<Call> own, rest;
    for (const Call& c : calls) (c.stream == stream ? own : rest).push_back(c);
    if (give(own) == ncclInProgress) result = ncclInProgress;
    calls.swap(rest);
  }
  return result;
}

ncclResult_t add(const Call& c) {
  note_use(c.comm);
  const std::lock_guard guard(lock());
  EmuComm* const m = comm_of(c.comm, c.kind);
  if (m == nullptr) return ncclInvalidArgument;
  if (m->error != ncclSuccess) return m->error;
  if (m->in_progress())
    return refuse_nccl(m, ncclInvalidUsage, std::string(c.kind) + " on a communicator that is still in progress");
  EmuStream* const s = stream_of(c.stream);
  if (s == nullptr || s->device != m->device)
    return refuse_nccl(m, ncclInvalidArgument, std::string(c.kind) + " on a stream of another device");
  if (const std::string wrong = wrong_with(c); !wrong.empty()) return refuse_nccl(m, ncclInvalidArgument, wrong);
  group.push_back(c);
  return depth > 0 ? ncclSuccess : end_group();
}

}  // namespace

std::string NcclOp::text() const {
  static constexpr const char* kSums[] = {"sum", "product", "max", "min", "mean"};
  std::string text = kind + " of " + std::to_string(count) + " elements of type " + std::to_string(type);
  if (kind.find("reduce") != std::string::npos) text += std::string(", ") + kSums[reduce];
  if (kind == "message") return text + " from rank " + std::to_string(sender) + " to rank " + std::to_string(root);
  if (kind == "reduce" || kind == "broadcast") text += ", root " + std::to_string(root);
  return text;
}

bool NcclOp::all_posted() const {
  return std::all_of(parts.begin(), parts.end(), [](const NcclPart& p) { return p.posted; });
}

NcclCounters nccl_counters(int device) {
  const std::lock_guard guard(lock());
  return counters()[device];
}

bool nccl_group_open() { return depth > 0; }

std::string nccl_waits() {
  const Quiet quiet;  // calls may end here, which were made elsewhere
  std::string text = "NCCL: calls wait for each other, or for ranks that do not come:";
  std::erase_if(waiting(), [](const auto& w) { return w.expired() || w.lock()->complete; });
  std::vector<NcclOp*> said;
  for (const auto& w : waiting()) {
    NcclOp* const op = w.lock().get();
    if (std::find(said.begin(), said.end(), op) != said.end() || said.size() == 8) continue;
    said.push_back(op);
    text += " " + op->text() + " (without";
    for (std::size_t r = 0; r < op->parts.size(); ++r)
      if (!op->parts[r].arrived) {
        if (op->kind == "message")
          text += r == 0 ? " the sender" : " the receiver";
        else
          text += " rank " + std::to_string(r);
        text += op->parts[r].posted ? ", whose stream is not there;" : ", who did not call it;";
      }
    text += ")";
  }
  return text;
}

}  // namespace emu

using namespace emu;

bool EmuComm::connects() {
  std::erase_if(connecting, [](const auto& op) { return op->all_posted(); });
  return !connecting.empty();
}

ncclResult_t ncclGroupStart() {
  ++depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  const std::lock_guard guard(lock());
  if (depth == 0) return refuse_nccl(nullptr, ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
  return --depth > 0 ? ncclSuccess : end_group();
}
ncclResult_t ncclSend(const void* from, size_t n, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t s) {
  return add({comm, s, "send", from, nullptr, n, type, ncclSum, peer});
}
ncclResult_t ncclRecv(void* to, size_t n, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t s) {
  return add({comm, s, "recv", nullptr, to, n, type, ncclSum, peer});
}
ncclResult_t ncclAllReduce(const void* from, void* to, size_t n, ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm,
                           cudaStream_t s) {
  return add({comm, s, "all_reduce", from, to, n, type, op, 0});
}
ncclResult_t ncclReduce(const void* from, void* to, size_t n, ncclDataType_t type, ncclRedOp_t op, int root,
                        ncclComm_t comm, cudaStream_t s) {
  return add({comm, s, "reduce", from, to, n, type, op, root});
}
ncclResult_t ncclBroadcast(const void* from, void* to, size_t n, ncclDataType_t type, int root, ncclComm_t comm,
                           cudaStream_t s) {
  return add({comm, s, "broadcast", from, to, n, type, ncclSum, root});
}
ncclResult_t ncclAllGather(const void* from, void* to, size_t n, ncclDataType_t type, ncclComm_t comm, cudaStream_t s) {
  return add({comm, s, "all_gather", from, to, n, type, ncclSum, 0});
}
ncclResult_t ncclReduceScatter(const void* from, void* to, size_t n, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t s) {
  return add({comm, s, "reduce_scatter", from, to, n, type, op, 0});
}
