// Inside of the emulated NCCL: communicators, and what waits on streams for its peers.
#pragma once

#include <nccl.h>

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace emu {

/// One rank's side of a call.
struct NcclPart {
  const void* from = nullptr;
  void* to = nullptr;
  int device = 0;
  bool posted = false;   ///< the rank has made the call
  bool arrived = false;  ///< its stream has come there
};
/// One collective of all ranks, or one message between two.
struct NcclOp {
  std::string kind;
  std::size_t count = 0;
  ncclDataType_t type = ncclInt8;
  ncclRedOp_t reduce = ncclSum;
  int root = 0;  ///< of a message: its receiver
  int sender = 0;
  std::vector<NcclPart> parts{};  ///< by rank; of a message: sender, receiver
  bool complete = false;
  bool first = false;          ///< between these ranks
  char before = 0, after = 0;  ///< for ThreadSanitizer
  std::string text() const;
  bool all_posted() const;
};

/// The ranks of a communicator.
struct NcclGroup {
  std::vector<EmuComm*> ranks;  ///< null: not there yet, or gone
  int joined = 0;
  bool aborted = false;                                                         ///< by some rank
  std::map<std::int64_t, std::shared_ptr<NcclOp>> collectives;                  ///< by their number
  std::map<std::pair<int, int>, std::deque<std::shared_ptr<NcclOp>>> messages;  ///< posted by one side only
  struct Split {
    std::vector<int> color, key;
    std::vector<EmuComm*> part;
    std::vector<EmuComm**> place;  ///< where a rank that does not wait finds its part, when all have called
    int called = 0;
  };
  std::map<std::int64_t, Split> splits;       ///< by their number
  std::set<std::pair<int, int>> connected{};  ///< sender, receiver; of collectives -1, -1
};

}  // namespace emu

struct EmuComm {
  std::shared_ptr<emu::NcclGroup> group;  ///< null: the ranks have not all come
  int rank = 0, size = 0, device = 0;
  bool blocking = true, aborted = false, finalized = false;
  ncclResult_t error = ncclSuccess;
  int busy = 0;                                                   ///< so many more looks will say "in progress"
  int splitting = 0;                                              ///< splits that not all ranks have called
  std::int64_t collectives = 0, splits = 0, calls = 0, open = 0;  ///< open: given to streams, not done
  std::string last_error;
  /// First calls between ranks, which connect them: nonblocking communicators are in progress until all have called.
  std::vector<std::shared_ptr<emu::NcclOp>> connecting{};
  bool connects();
  bool in_progress() { return group == nullptr || busy > 0 || splitting > 0 || connects(); }
  char used = 0;  ///< by one thread at a time, for ThreadSanitizer
};

namespace emu {

/// A call of NCCL's with this communicator, before the emulator's lock is taken: NCCL itself has none.
void note_use(ncclComm_t comm);
/// Null: no such communicator, which is reported.
EmuComm* comm_of(ncclComm_t comm, const char* call);
/// Reports, and keeps the text for ncclGetLastError.
ncclResult_t refuse_nccl(EmuComm* comm, ncclResult_t code, const std::string& text);
/// The data moves: all parts have arrived.
void execute(NcclOp& op);
std::size_t bytes_of(ncclDataType_t type);
/// The calling thread has begun a group and not ended it.
bool nccl_group_open();
/// What streams wait for.
std::string nccl_waits();

}  // namespace emu
