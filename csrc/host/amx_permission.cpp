// The tile registers are 8 KiB for each thread. Many programs have signal stacks that are too small for them,
// so the kernel saves the tile registers only for processes that ask for them. Numbers and rules: Linux,
// Documentation/arch/x86/xstate.rst.
#include "host/amx_permission.h"

#if CF_AMX
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

#include "host/cpu_features.h"
#endif

namespace colbert_fast {

#if CF_AMX
namespace {

constexpr int kGetXcompSupp = 0x1021;
constexpr int kGetXcompPerm = 0x1022;
constexpr int kReqXcompPerm = 0x1023;
constexpr unsigned long kTileData = 18;

bool in_mask(int question) {
  uint64_t mask = 0;
  return syscall(SYS_arch_prctl, question, &mask) == 0 && ((mask >> kTileData) & 1) != 0;
}

// The kernel never takes the permission back. A forked child inherits the permission and this variable.
std::atomic<bool> g_granted{false};

}  // namespace

const char* amx_unsupported() {
  const Features& f = features();
  if (!(f.amx_tile && f.amx_bf16 && f.amx_int8)) return "this CPU has no AMX (TILE, BF16, INT8)";
  if (!f.os_tiles) return "the operating system does not save AMX registers";
  return in_mask(kGetXcompSupp) ? nullptr : "the kernel does not offer the AMX registers (arch_prctl)";
}

const char* amx_refused() {
  if (g_granted.load()) return nullptr;
  if (syscall(SYS_arch_prctl, kReqXcompPerm, kTileData) != 0) {
    return errno == ENOSPC ? "the kernel refuses the AMX registers: a thread has too small a sigaltstack"
                           : "the kernel refuses the AMX registers (arch_prctl)";
  }
  if (!in_mask(kGetXcompPerm)) return "the kernel says that it granted the AMX registers, and has not";
  g_granted.store(true);
  return nullptr;
}

#else

const char* amx_unsupported() {
  return "built without AMX, which takes x86-64, Linux and GCC 11 or Clang 12";
}
const char* amx_refused() { return amx_unsupported(); }

#endif

}  // namespace colbert_fast
