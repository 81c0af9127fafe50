// x86-64 with AVX-512 F, BW, DQ, VL (Skylake-X and later, Zen 4 and later).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "cpu_features.h"
#include "maxsim.h"
#include "target.h"

#if CF_X86_64
CF_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

#include "avx512_isa.h"

namespace colbert_fast {
namespace {

struct Narrow {
  static constexpr bool kBFloat16 = false;
  static constexpr bool kFloat = false;
  static constexpr bool kInt8 = false;
};

}  // namespace
}  // namespace colbert_fast

#include "loop.h"

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
constexpr Product kProducts[] = {product<Float32Ops>("float32", 1), {nullptr, 0, nullptr}};
}  // namespace

const Tier kAvx512 = {"avx512",          &unsupported,     kPanel,        Isa::kRows, 0,
                      &score_any<false>, &score_any<true>, &backward_any, kProducts,  &read};
}  // namespace colbert_fast

#else

namespace colbert_fast {
namespace {
const char* unsupported() { return "not an x86-64 processor"; }
}  // namespace
const Tier kAvx512 = {"avx512", &unsupported, 1, 1, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
}  // namespace colbert_fast

#endif
