// AArch64 with FEAT_DotProd (Cortex-A76, Neoverse N1, Apple M1 and later): the neon tier, with int8 documents
// screened in int8.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "cpu_features.h"
#include "maxsim.h"
#include "target.h"

#if CF_AARCH64_DOT
CF_TARGET_BEGIN("arch=armv8.2-a+dotprod")
CF_IN_PROGRAM_ORDER_BEGIN

#include "neon_dotprod.h"

namespace colbert_fast {
namespace {

struct Narrow : Int8Narrow {
  static constexpr bool kBFloat16 = false;

  template <typename Number, int kVecs, int kWidth>
  static void products(const NarrowRows& rows, const unsigned char* q, Ahead ahead, float* dots) {
    products_int8<kVecs, kWidth>(rows, q, ahead, dots);
  }
};

}  // namespace
}  // namespace colbert_fast

#include "loop.h"

CF_IN_PROGRAM_ORDER_END
CF_TARGET_END

namespace colbert_fast {
namespace {
const char* unsupported() { return features().dotprod ? nullptr : "this CPU has no FEAT_DotProd"; }
constexpr Product kProducts[] = {
    product<Float32Ops>("float32", 1), product<Int8Ops>("int8", 4), {nullptr, 0, nullptr}};
}  // namespace

const Tier kNeonDotprod = {"neon_dotprod",    &unsupported,     kPanel,        Isa::kRows, Narrow::kBytes,
                           &score_any<false>, &score_any<true>, &backward_any, kProducts,  &read};
}  // namespace colbert_fast

#else

namespace colbert_fast {
namespace {
const char* unsupported() {
  return CF_AARCH64 ? "the compiler that built this has no intrinsics for it" : "not an AArch64 processor";
}
}  // namespace
const Tier kNeonDotprod = {"neon_dotprod", &unsupported, 1,       1,       0,
                           nullptr,        nullptr,      nullptr, nullptr, nullptr};
}  // namespace colbert_fast

#endif
