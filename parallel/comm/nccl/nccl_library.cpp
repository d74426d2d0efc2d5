#include "parallel/comm/nccl/nccl_library.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>
#include <string>
#include <type_traits>

namespace emox {
namespace {

constexpr int kOldest = 21800;  // ncclCommSplit, ncclCommInitRankConfig

std::string text_of(int version) {
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

NcclLibrary load() {
  NcclLibrary all;
  const char* const cure =
      "put NCCL 2.18 or newer (libnccl.so.2) where the dynamic loader finds it (LD_LIBRARY_PATH), or move data through "
      "host memory with parallel.communicator = staged, which is slower";
  // Communicators of one device have calls under way at once (NCCL 2.26): to be said before NCCL looks.
  setenv("NCCL_LAUNCH_ORDER_IMPLICIT", "1", 0);
  void* const library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const why = dlerror();
    all.missing = fmt::format("NCCL is not here ({}): {}", why == nullptr ? "libnccl.so.2" : why, cure);
    return all;
  }
  std::string absent;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr && absent.empty()) absent = name;
  };
#define EMOX_FIND(name) find(all.name, "nccl" #name);
  EMOX_NCCL_FUNCTIONS(EMOX_FIND)
#undef EMOX_FIND
  int version = 0;
  if (all.GetVersion != nullptr && all.GetVersion(&version) != ncclSuccess) version = 0;
  if (version >= kOldest && version / 10000 == NCCL_MAJOR && absent.empty()) return all;
  all.missing = fmt::format("the NCCL found here is {}{}, emox was built with {}: {}", text_of(version),
                            absent.empty() ? "" : ", without " + absent, text_of(NCCL_VERSION_CODE), cure);
  return all;
}

}  // namespace

const NcclLibrary& nccl_library() {
  static const NcclLibrary only = load();
  return only;
}

}  // namespace emox
