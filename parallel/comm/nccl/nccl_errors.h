// What errors of NCCL most often come from, and what to do.
#pragma once

#include <nccl.h>

#include <string>
#include <string_view>

namespace emox {

/// `said`: what NCCL warned of last (ncclGetLastError), which says more than the code.
std::string nccl_cure(ncclResult_t code, std::string_view said);

}  // namespace emox
