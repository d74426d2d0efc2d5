// The real NCCL, as far as it goes without a device: it is found, and what it says leads to what to do.
//
//   emox_nccl_library use             it can be used; a communicator without a device says so
//   emox_nccl_library interface       with NCCL_SOCKET_IFNAME naming none: NCCL's answer leads to that variable
//   emox_nccl_library refused TEXT    it is not used, with a message that contains the text
// Exit code 77 where there is none.
#include <fmt/format.h>

#include <string>

#include "parallel/comm/nccl/nccl_errors.h"
#include "parallel/comm/nccl/nccl_library.h"

namespace {

int fail(const std::string& text) {
  fmt::print("FAILED: {}\n", text);
  return 1;
}

int expect_cure(ncclResult_t code, const std::string& part) {
  const emox::NcclLibrary& nccl = emox::nccl_library();
  if (code == ncclSuccess || code == ncclInProgress) return fail("NCCL said that all is well");
  const std::string said = nccl.GetLastError(nullptr), cure = emox::nccl_cure(code, said);
  fmt::print("{} ({}): {}\n", nccl.GetErrorString(code), said, cure);
  return cure.find(part) == std::string::npos ? fail("no word of " + part) : 0;
}

int use() {
  const emox::NcclLibrary& nccl = emox::nccl_library();
  int version = 0;
  nccl.GetVersion(&version);
  fmt::print("NCCL {}\n", version);
  ncclUniqueId id{};
  if (nccl.GetUniqueId(&id) != ncclSuccess) return fail(nccl.GetLastError(nullptr));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t comm = nullptr;
  const ncclResult_t code = nccl.CommInitRankConfig(&comm, 1, id, 0, &config);
  if (comm == nullptr) return expect_cure(code, "emox doctor");
  fmt::print("there is a device\n");
  nccl.CommAbort(comm);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "", text = argc > 2 ? argv[2] : "";
  const std::string& missing = emox::nccl_library().missing;
  fmt::print("{}\n", missing);
  if (mode == "refused") return missing.find(text) == std::string::npos ? fail("no word of " + text) : 0;
  if (!missing.empty()) return 77;
  if (mode == "use") return use();
  if (mode != "interface") return fail("use, interface, or refused TEXT");
  ncclUniqueId id{};
  return expect_cure(emox::nccl_library().GetUniqueId(&id), "NCCL_SOCKET_IFNAME (now \"");
}
