// x86-64 with AVX-512 and AVX512-VNNI (Cascade Lake, Ice Lake and later, Zen 4 and later): the avx512 tier
// with documents screened in int8 (screen.h).
#include "codes.h"
#include "host/cpu_features.h"
#include "maxsim.h"
#include "scratch.h"
#include "target.h"

#if CF_X86_64
CF_TARGET_BEGIN("avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

#include "tiers/avx512_vnni.h"

namespace colbert_fast {
namespace {

struct Narrow : RaisedInt8Narrow {
  static constexpr bool kBFloat16 = false;
  static constexpr const Tier* kForFloat32Queries = nullptr;
  template <typename T>
  static constexpr int64_t least_lanes() {
    return 1;
  }
};

}  // namespace
}  // namespace colbert_fast

#include "per_tier/loop.h"

CF_TARGET_END

namespace colbert_fast {
namespace {
const char* unsupported() {
  const Features& f = features();
  if (const char* reason = kAvx512.unsupported()) return reason;
  return f.avx512vnni ? nullptr : "this CPU has no AVX512-VNNI";
}
}  // namespace

constexpr Tier kAvx512Vnni = tier_of("avx512_vnni", &unsupported);
}  // namespace colbert_fast

#else

namespace colbert_fast {
constexpr Tier kAvx512Vnni = absent("avx512_vnni", &not_x86_64);
}  // namespace colbert_fast

#endif
