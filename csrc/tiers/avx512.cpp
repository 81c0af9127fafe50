// x86-64 with AVX-512 F, BW, DQ, VL (Skylake-X and later, Zen 4 and later).
#include "codes.h"
#include "host/cpu_features.h"
#include "maxsim.h"
#include "scratch.h"
#include "target.h"

#if CF_X86_64
CF_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

#include "tiers/avx512_isa.h"

#include "per_tier/no_narrow.h"

#include "per_tier/loop.h"  // uses that Isa and Narrow

CF_TARGET_END

namespace colbert_fast {
namespace {
const char* unsupported() {
  const Features& f = features();
  if (!(f.avx512f && f.avx512bw && f.avx512dq && f.avx512vl && f.avx2 && f.fma && f.f16c)) {
    return "this CPU has no AVX-512 (F, BW, DQ, VL)";
  }
  return f.os_zmm ? nullptr : "the operating system does not save AVX-512 registers";
}
}  // namespace

constexpr Tier kAvx512 = tier_of("avx512", &unsupported);
}  // namespace colbert_fast

#else

namespace colbert_fast {
constexpr Tier kAvx512 = absent("avx512", &not_x86_64);
}  // namespace colbert_fast

#endif
