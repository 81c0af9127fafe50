// x86-64 with AVX2, FMA and F16C (Haswell and later, Zen and later).
#include "codes.h"
#include "host/cpu_features.h"
#include "maxsim.h"
#include "scratch.h"
#include "target.h"

#if CF_X86_64
CF_TARGET_BEGIN("avx2,fma,f16c")

#include "tiers/avx2_isa.h"

#include "per_tier/no_narrow.h"

#include "per_tier/loop.h"  // uses that Isa and Narrow

CF_TARGET_END

namespace colbert_fast {
namespace {
const char* unsupported() {
  const Features& f = features();
  if (!(f.avx2 && f.fma && f.f16c)) return "this CPU has no AVX2, FMA and F16C";
  return f.os_ymm ? nullptr : "the operating system does not save AVX registers";
}
}  // namespace

constexpr Tier kAvx2 = tier_of("avx2", &unsupported);
}  // namespace colbert_fast

#else

namespace colbert_fast {
constexpr Tier kAvx2 = absent("avx2", &not_x86_64);
}  // namespace colbert_fast

#endif
