// NCCL's functions. emox does not link NCCL: it is looked for when GPUs exchange data, so that the same program runs
// where there is none.
#pragma once

#include <nccl.h>

#include <string>

namespace emox {

// clang-format off
#define EMOX_NCCL_FUNCTIONS(F) \
  F(GetVersion) F(GetUniqueId) F(CommInitRankConfig) F(CommSplit) F(CommFinalize) F(CommDestroy) F(CommAbort) \
  F(CommGetAsyncError) F(GetErrorString) F(GetLastError) F(GroupStart) F(GroupEnd) F(Send) F(Recv) F(AllReduce) \
  F(Reduce) F(Broadcast) F(AllGather) F(ReduceScatter)
// clang-format on

struct NcclLibrary {
#define EMOX_MEMBER(name) decltype(&::nccl##name) name = nullptr;
  EMOX_NCCL_FUNCTIONS(EMOX_MEMBER)
#undef EMOX_MEMBER
  std::string missing;  ///< why it cannot be used and what to do; empty: it can
};

/// Looked for once.
const NcclLibrary& nccl_library();

}  // namespace emox
