// AArch64 with FEAT_DotProd (Cortex-A76, Neoverse N1, Apple M1 and later): the neon tier with documents
// screened in int8 (screen.h).
#include "codes.h"
#include "host/cpu_features.h"
#include "maxsim.h"
#include "scratch.h"
#include "target.h"

#if CF_AARCH64_DOT
CF_TARGET_BEGIN("arch=armv8.2-a+dotprod")
CF_IN_PROGRAM_ORDER_BEGIN

#include "tiers/neon_dotprod.h"

namespace colbert_fast {
namespace {

struct Narrow : Int8Narrow {
  template <typename T>
  using Screen = int8_t;
  static constexpr bool kBFloat16 = false;
  static constexpr const Tier* kForFloat32Queries = nullptr;
  static constexpr int64_t kBytes = 4;
  static constexpr int64_t kTogether = 4;

  template <typename Number, int kVecs, int kWidth>
  static void products(const NarrowRows& rows, const unsigned char* q, Ahead ahead, const Bounds& bounds) {
    panel<Int8Ops, kVecs, kWidth>(rows, q, ahead, BoundsOfInt8<kSinkVecs>{bounds});
  }
  template <int kVecs, int kWidth, typename Sink>
  static void int8_products(const NarrowRows& rows, const unsigned char* q, Ahead ahead, const Sink& sink) {
    panel<Int8Ops, kVecs, kWidth>(rows, q, ahead, sink);
  }
  template <int kVecs, int kWidth, typename Sink>
  static void exact_products(const NarrowRows& rows, const unsigned char* q, Ahead ahead, const Sink& sink) {
    int8_products<kVecs, kWidth>(rows, q, ahead, sink);
  }
};

}  // namespace
}  // namespace colbert_fast

#include "per_tier/loop.h"

CF_IN_PROGRAM_ORDER_END
CF_TARGET_END

namespace colbert_fast {
namespace {
const char* unsupported() { return features().dotprod ? nullptr : "this CPU has no FEAT_DotProd"; }
}  // namespace

constexpr Tier kNeonDotprod = tier_of("neon_dotprod", &unsupported);
}  // namespace colbert_fast

#else

namespace colbert_fast {
constexpr Tier kNeonDotprod = absent("neon_dotprod", &not_aarch64);
}  // namespace colbert_fast

#endif
