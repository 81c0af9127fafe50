// x86-64 with AVX-512, AVX512-BF16 and AVX512-VNNI (Cooper Lake, Sapphire Rapids and later, Zen 4 and later):
// bfloat16 multiplied as it is, float32 and float16 screened in bfloat16, int8 in int8.
//
// vdpbf16ps multiplies two pairs of bfloat16 and adds both products to a float32. On Zen 5 it issues as often
// as an FMA, which makes it twice as fast; on Sapphire Rapids a prototype found it slower.
#include "cpu_features.h"
#include "maxsim.h"
#include "target.h"

#if CF_X86_64
CF_TARGET_BEGIN("avx512bf16,avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

#include "avx512_bf16.h"

namespace colbert_fast {
namespace {

struct BFloat16Ops {
  using Unit = FourBytes;
  using Acc = __m512;
  static CF_ALWAYS_INLINE Acc zero() { return _mm512_setzero_ps(); }
  static CF_ALWAYS_INLINE Acc load(const Unit* from) { return _mm512_loadu_ps(from); }
  static CF_ALWAYS_INLINE Acc broadcast(const Unit* from) {
    return _mm512_castsi512_ps(_mm512_set1_epi32(bits_of(from)));
  }
  static CF_ALWAYS_INLINE Acc fma(Acc unit, Acc lanes, Acc sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(unit), reinterpret_cast<__m512bh>(lanes));
  }
};

// A sink of tile().
struct Dots {
  float* dots;

  template <int kRows, int kVecs>
  CF_ALWAYS_INLINE void take(const __m512 (&sums)[kRows][kVecs], int64_t row) const {
    CF_UNROLL
    for (int r = 0; r < kRows; ++r) {
      CF_UNROLL
      for (int v = 0; v < kVecs; ++v) Isa::store(dots + (row + r) * kPanel + v * Isa::kLanes, sums[r][v]);
    }
  }
};

struct Narrow : Int8Narrow {
  static constexpr bool kBFloat16 = true;
  static constexpr bool kFloat = true;
  // Measured on Zen 5 at dim 128 with 300 tokens a document, in ns a token, by the tile of float32 and
  // screened. float32: 37 and 33 for 32 query tokens, but 39 and 44 where documents come from memory; 74 and
  // 61 for 64. float16: 42 and 33 for 32, as fast as each other for 16. int8: 28 and 16 for 8 and for 16.
  template <typename T>
  static constexpr int64_t least_lanes() {
    return std::is_same<T, float>::value ? 33 : std::is_same<T, int8_t>::value ? 1 : 17;
  }

  template <typename T>
  static float narrow(const T* row, int64_t dim, unsigned char* to) {
    return narrow_bfloat16(row, dim, to);
  }
  static float narrow(const int8_t* row, int64_t dim, unsigned char* to) {
    return narrow_int8<128>(row, dim, to);
  }

  template <typename Number, int kVecs, int kWidth>
  static void products(const NarrowRows& rows, const unsigned char* q, Ahead ahead, float* dots) {
    if constexpr (std::is_same<Number, int8_t>::value) {
      products_int8<kVecs, kWidth>(rows, q, ahead, dots);
    } else {
      panel<BFloat16Ops, kVecs, kWidth>(rows, q, ahead, Dots{dots});
    }
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

CF_TARGET_END

namespace colbert_fast {
namespace {
const char* unsupported() {
  const Features& f = features();
  if (const char* reason = kAvx512.unsupported()) return reason;
  return f.avx512bf16 && f.avx512vnni ? nullptr : "this CPU has no AVX512-BF16 and AVX512-VNNI";
}
constexpr Product kProducts[] = {product<Float32Ops>("float32", 1),
                                 product<BFloat16Ops>("bfloat16", 2),
                                 product<Int8Ops>("int8", 4),
                                 {nullptr, 0, nullptr}};
}  // namespace

constexpr Tier kAvx512Bf16 = tier_of("avx512_bf16", &unsupported, kProducts);
}  // namespace colbert_fast

#else

namespace colbert_fast {
constexpr Tier kAvx512Bf16 = absent("avx512_bf16", &not_x86_64);
}  // namespace colbert_fast

#endif
