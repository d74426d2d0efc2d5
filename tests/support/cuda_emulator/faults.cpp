#include "tests/support/cuda_emulator/faults.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <string>

#include "runtime/core/idx.h"
#include "tests/support/cuda_emulator/block.h"
#include "tests/support/cuda_emulator/heap.h"
#include "tests/support/cuda_emulator/state.h"

namespace emu {
namespace {

constexpr int kNone = -1;
thread_local int working = kNone;  // the device whose work this OS thread does
struct sigaction before {};

std::string place_of(std::uintptr_t instruction) {
  Dl_info info{};
  // NOLINTNEXTLINE(performance-no-int-to-ptr): a register's content
  if (dladdr(reinterpret_cast<void*>(instruction), &info) == 0) return {};
  char text[64];
  std::snprintf(text, sizeof text, " 0x%zx", emox::idx(instruction - reinterpret_cast<std::uintptr_t>(info.dli_fbase)));
  return std::string(" (addr2line -ie ") + info.dli_fname + text + ")";
}

/// What the fault was, and where.
struct Fault {
  const void* address = nullptr;
  std::uintptr_t instruction = 0;
  int device = 0;
} fault;
[[noreturn]] void landing() {
  runner().fail([] {
    const std::string what = runner().describe(fault.address);
    if (!what.empty()) return what + place_of(fault.instruction);
    return "a kernel, work of device " + std::to_string(fault.device) +
           ", touches what it may not: " + heap().describe(fault.address) + place_of(fault.instruction);
  });
}

/// The thread goes on in landing() instead, on the same stack: from its upper end (`top`) where there is none left,
/// since nothing returns to what stands there.
void divert(ucontext_t& context, const void* top) {
#if defined(__x86_64__)
  auto& registers = context.uc_mcontext.gregs;
  if (top != nullptr) registers[REG_RSP] = reinterpret_cast<greg_t>(top);
  registers[REG_RSP] = ((registers[REG_RSP] - 512) & ~greg_t{15}) - 8;
  registers[REG_RIP] = reinterpret_cast<greg_t>(&landing);
#elif defined(__aarch64__)
  if (top != nullptr) context.uc_mcontext.sp = reinterpret_cast<std::uintptr_t>(top);
  context.uc_mcontext.sp = (context.uc_mcontext.sp - 512) & ~15ULL;
  context.uc_mcontext.pc = reinterpret_cast<std::uintptr_t>(&landing);
#else
#error "the emulator does not know this processor's registers"
#endif
}
std::uintptr_t instruction_of(const ucontext_t& context) {
#if defined(__x86_64__)
  return static_cast<std::uintptr_t>(context.uc_mcontext.gregs[REG_RIP]);
#else
  return context.uc_mcontext.pc;
#endif
}

// A fault of the running thread itself, not something that comes at any time.
void on_fault(int signal, siginfo_t* info, void* context) {
  auto& machine = *static_cast<ucontext_t*>(context);
  const bool device_memory = heap().reserved(info->si_addr);
  if (device_memory && working != kNone && heap().touch(info->si_addr, working)) return;
  const bool explained = device_memory || runner().guards(info->si_addr);
  fault = {info->si_addr, instruction_of(machine), working};
  if (working != kNone && explained && runner().active()) return divert(machine, runner().overrun(info->si_addr));
  if (device_memory)
    report((working == kNone ? "host code touches device memory: " : "work of a stream touches what it may not: ") +
           heap().describe(fault.address) + place_of(fault.instruction));
  if ((before.sa_flags & SA_SIGINFO) != 0 && before.sa_sigaction != nullptr)
    return before.sa_sigaction(signal, info, context);
  ::signal(signal, SIG_DFL);  // happens again, then
}

}  // namespace

void watch_faults() {
  static const bool once = [] {
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &before);
    return true;
  }();
  static_cast<void>(once);
  // A stack of its own: the fault may be that there is no stack left.
  thread_local const bool has_stack = [] {
    stack_t now{};
    sigaltstack(nullptr, &now);
    if ((now.ss_flags & SS_DISABLE) == 0) return true;
    constexpr std::size_t kBytes = std::size_t{256} << 10;
    stack_t own{};
    own.ss_sp = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    own.ss_size = kBytes;
    return sigaltstack(&own, nullptr) == 0;
  }();
  static_cast<void>(has_stack);
}

DeviceWork::DeviceWork(int device) {
  watch_faults();
  working = device;
}
DeviceWork::~DeviceWork() {
  working = kNone;
  heap().close();
}

PeerWork::PeerWork(int device) : before_(working) { working = device; }
PeerWork::~PeerWork() { working = before_; }

}  // namespace emu
