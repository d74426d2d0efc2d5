#include "parallel/comm/nccl/nccl_library.h"

#include <dlfcn.h>
#include <fmt/format.h>

namespace emox {
namespace {

constexpr int kOldest = 21800;  // ncclCommSplit, ncclCommInitRankConfig

NcclLibrary load() {
  NcclLibrary all;
  const char* const cure =
      "install NCCL 2.18 or newer where the dynamic loader finds it (LD_LIBRARY_PATH), or move data through host "
      "memory "
      "with parallel.communicator = staged, which is slower";
  void* const library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const why = dlerror();
    all.missing = fmt::format("NCCL is not here ({}): {}", why == nullptr ? "libnccl.so.2" : why, cure);
    return all;
  }
  std::string absent;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr) absent = name;
  };
#define EMOX_FIND(name) find(all.name, "nccl" #name);
  EMOX_NCCL_FUNCTIONS(EMOX_FIND)
#undef EMOX_FIND
  int version = 0;
  if (all.GetVersion != nullptr && all.GetVersion(&version) == ncclSuccess && version >= kOldest && absent.empty())
    return all;
  all.missing = fmt::format("the NCCL found here is {}.{}.{}{}: {}", version / 10000, version / 100 % 100,
                            version % 100, absent.empty() ? "" : ", without " + absent, cure);
  return all;
}

}  // namespace

const NcclLibrary& nccl_library() {
  static const NcclLibrary only = load();
  return only;
}

}  // namespace emox
