// AArch64 with FEAT_BF16 and FEAT_DotProd (Neoverse N2 and V1, Apple M2 and later): bfloat16 multiplied as it
// is, int8 screened in int8. float32 and float16 are not screened: whether that pays has not been timed.
//
// BFDOT multiplies two pairs of bfloat16 and adds both products to a float32. It issues as often as FMLA,
// says LLVM's model of Neoverse V1, and so does twice the work. Without FEAT_EBF16 it rounds to odd, the sum
// of the two products and that with the chain: each is off by less than 2^-23, so that n numbers have n
// roundings of at most twice the error of the n of a float32 chain. Denormal inputs count as zero, and
// denormal products and sums, four for two numbers, become zero: the 2n of A in screen.h.
#include "cpu_features.h"
#include "maxsim.h"
#include "target.h"

#if CF_AARCH64_DOT
CF_TARGET_BEGIN("arch=armv8.2-a+dotprod+bf16")
CF_IN_PROGRAM_ORDER_BEGIN

#include "neon_dotprod.h"

namespace colbert_fast {
namespace {

struct BFloat16Ops {
  using Unit = FourBytes;
  using Acc = float32x4_t;
  static CF_ALWAYS_INLINE Acc zero() { return vdupq_n_f32(0.0f); }
  static CF_ALWAYS_INLINE Acc load(const Unit* from) { return vreinterpretq_f32_u8(vld1q_u8(from->bytes)); }
  static CF_ALWAYS_INLINE Lane0 broadcast(const Unit* from) { return Lane0::load(from); }
  static CF_ALWAYS_INLINE Acc fma(Lane0 unit, Acc lanes, Acc sum) {
    return vbfdotq_lane_f32(sum, vreinterpretq_bf16_f32(lanes), vreinterpret_bf16_f32(unit.bits), 0);
  }
  static CF_ALWAYS_INLINE Acc fma(Acc a, Acc b, Acc sum) {
    return vbfdotq_f32(sum, vreinterpretq_bf16_f32(a), vreinterpretq_bf16_f32(b));
  }
};

struct Narrow : Int8Narrow {
  static constexpr bool kBFloat16 = true;

  template <typename Number, int kVecs, int kWidth>
  static void products(const NarrowRows& rows, const unsigned char* q, Ahead ahead, float* dots) {
    products_int8<kVecs, kWidth>(rows, q, ahead, dots);
  }
  template <int kVecs, int kWidth, bool kArgmax>
  static void maxima(const NarrowRows& rows, const unsigned char* q, Ahead ahead, int64_t first_row,
                     float* best, int32_t* arg) {
    panel<BFloat16Ops, kVecs, kWidth>(rows, q, ahead, Maxima<kArgmax>{best, arg, first_row});
  }
};

}  // namespace
}  // namespace colbert_fast

#include "loop.h"

CF_IN_PROGRAM_ORDER_END
CF_TARGET_END

namespace colbert_fast {
namespace {
const char* unsupported() {
  return features().bf16 && features().dotprod ? nullptr : "this CPU has no FEAT_BF16 and FEAT_DotProd";
}
constexpr Product kProducts[] = {product<Float32Ops>("float32", 1),
                                 product<BFloat16Ops>("bfloat16", 2),
                                 product<Int8Ops>("int8", 4),
                                 {nullptr, 0, nullptr}};
}  // namespace

constexpr Tier kNeonBf16 = tier_of("neon_bf16", &unsupported, kProducts);
}  // namespace colbert_fast

#else

namespace colbert_fast {
constexpr Tier kNeonBf16 = absent("neon_bf16", &not_aarch64);
}  // namespace colbert_fast

#endif
