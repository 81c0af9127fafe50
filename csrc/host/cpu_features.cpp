#include "host/cpu_features.h"

#include <cstdint>

#include "target.h"

#if CF_X86_64
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

#if CF_AARCH64 && defined(__linux__)
#include <sys/auxv.h>
#elif CF_AARCH64 && defined(__APPLE__)
#include <sys/sysctl.h>
#elif CF_AARCH64 && defined(_WIN32)
#define NOMINMAX
#include <windows.h>
#endif

namespace colbert_fast {
namespace {

#if CF_X86_64
struct Registers {
  uint32_t eax, ebx, ecx, edx;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r = {0, 0, 0, 0};
#if defined(_MSC_VER)
  int values[4];
  __cpuidex(values, static_cast<int>(leaf), static_cast<int>(subleaf));
  r = {static_cast<uint32_t>(values[0]), static_cast<uint32_t>(values[1]), static_cast<uint32_t>(values[2]),
       static_cast<uint32_t>(values[3])};
#else
  __cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
#endif
  return r;
}

// XCR0 names the registers that the operating system saves. It may be read only if CPUID.1:ECX.OSXSAVE is
// set.
uint64_t xcr0() {
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
#endif
}

bool bit(uint32_t word, int index) { return ((word >> index) & 1u) != 0; }

// Bit numbers: Intel SDM volume 2A, CPUID, and volume 1, section 13.3 (XCR0).
Features detect() {
  Features f = {};
  const Registers leaf0 = cpuid(0, 0);
  f.intel = leaf0.ebx == 0x756e6547;  // "Genu" of GenuineIntel
  if (leaf0.eax < 7) return f;
  const Registers leaf1 = cpuid(1, 0);
  const Registers leaf7 = cpuid(7, 0);
  const bool osxsave = bit(leaf1.ecx, 27);
  const uint64_t saved = osxsave ? xcr0() : 0;
  f.os_ymm = (saved & 0x06) == 0x06;          // SSE, AVX
  f.os_zmm = (saved & 0xe6) == 0xe6;          // also opmask, upper halves, registers 16 to 31
  f.os_tiles = (saved & 0x60000) == 0x60000;  // the configuration and the data of tiles
  f.fma = bit(leaf1.ecx, 12);
  f.f16c = bit(leaf1.ecx, 29);
  f.avx2 = bit(leaf7.ebx, 5);
  f.avx512f = bit(leaf7.ebx, 16);
  f.avx512dq = bit(leaf7.ebx, 17);
  f.avx512bw = bit(leaf7.ebx, 30);
  f.avx512vl = bit(leaf7.ebx, 31);
  f.avx512vnni = bit(leaf7.ecx, 11);
  f.amx_bf16 = bit(leaf7.edx, 22);
  f.amx_tile = bit(leaf7.edx, 24);
  f.amx_int8 = bit(leaf7.edx, 25);
  if (leaf7.eax >= 1) {
    const Registers leaf7_1 = cpuid(7, 1);
    f.avx_vnni = bit(leaf7_1.eax, 4);
    f.avx512bf16 = bit(leaf7_1.eax, 5);
  }
  return f;
}
#elif CF_AARCH64 && defined(__linux__)
// Bit numbers: arch/arm64/include/uapi/asm/hwcap.h of Linux.
Features detect() {
  Features f = {};
  f.dotprod = ((getauxval(AT_HWCAP) >> 20) & 1) != 0;
  f.i8mm = ((getauxval(AT_HWCAP2) >> 13) & 1) != 0;
  f.bf16 = ((getauxval(AT_HWCAP2) >> 14) & 1) != 0;
  return f;
}
#elif CF_AARCH64 && defined(__APPLE__)
bool has(const char* feature) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value != 0;
}

Features detect() {
  Features f = {};
  f.dotprod = has("hw.optional.arm.FEAT_DotProd");
  f.bf16 = has("hw.optional.arm.FEAT_BF16");
  f.i8mm = has("hw.optional.arm.FEAT_I8MM");
  return f;
}
#elif CF_AARCH64 && defined(_WIN32)
// Numbers: PF_ARM_V82_DP, PF_ARM_V82_I8MM and PF_ARM_V86_BF16 of winnt.h, where older SDKs lack the last two.
Features detect() {
  Features f = {};
  f.dotprod = IsProcessorFeaturePresent(43) != 0;
  f.i8mm = IsProcessorFeaturePresent(66) != 0;
  f.bf16 = IsProcessorFeaturePresent(68) != 0;
  return f;
}
#else
Features detect() { return Features(); }
#endif

}  // namespace

const Features& features() {
  static const Features detected = detect();
  return detected;
}

const char* not_x86_64() { return "not an x86-64 processor"; }

const char* not_aarch64() {
  return CF_AARCH64 ? "the compiler that built this has no intrinsics for it" : "not an AArch64 processor";
}

}  // namespace colbert_fast
