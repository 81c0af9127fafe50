// x86-64 with AVX2 and AVX-VNNI (Alder Lake and later client CPUs of Intel, Zen 5 and later): the avx2 tier,
// with int8 documents screened in int8.
//
// vpdpbusd multiplies four unsigned by four signed numbers and adds the products to an int32, so that a step
// of the tile does what takes four steps of float32. It issues as often as an FMA and its latency is no
// longer, so that the tile of avx2_isa.h fits: 12 accumulators + 2 query vectors + 1 broadcast = 15 of 16
// registers.
//
// Documents are stored as d + 128, which adds 128 * (the sum of a lane's numbers) to the lane's products;
// DotsOfInt8 takes it off again. It does not saturate: int32 holds every sum of at most kMostScreenedDim
// products, of which screen.h has the proof.
#include "cpu_features.h"
#include "maxsim.h"
#include "target.h"

#if CF_AVX_VNNI
CF_TARGET_BEGIN("avxvnni,avx2,fma,f16c")

#include "avx2_isa.h"
#include "tile.h"

namespace colbert_fast {
namespace {

struct Int8Ops {
  using Unit = FourBytes;
  using Acc = __m256i;
  static CF_ALWAYS_INLINE Acc zero() { return _mm256_setzero_si256(); }
  static CF_ALWAYS_INLINE Acc load(const Unit* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static CF_ALWAYS_INLINE Acc broadcast(const Unit* from) { return _mm256_set1_epi32(bits_of(from)); }
  static CF_ALWAYS_INLINE Acc fma(Acc unit, Acc lanes, Acc sum) {
    return _mm256_dpbusd_avx_epi32(sum, unit, lanes);
  }
};

// A sink of tile(): the products in units of each row's scale.
struct DotsOfInt8 {
  const float* scales;
  const int32_t* bias;
  float* dots;

  template <int kRows, int kVecs>
  CF_ALWAYS_INLINE void take(const __m256i (&sums)[kRows][kVecs], int64_t row) const {
    CF_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      const __m256i excess = _mm256_slli_epi32(Isa::load(bias + v * Isa::kLanes), 7);
      CF_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const __m256 product = _mm256_cvtepi32_ps(_mm256_sub_epi32(sums[r][v], excess));
        Isa::store(dots + (row + r) * kPanel + v * Isa::kLanes,
                   _mm256_mul_ps(product, _mm256_set1_ps(scales[row + r])));
      }
    }
  }
};

struct Narrow {
  static constexpr bool kBFloat16 = false;
  static constexpr bool kFloat = false;
  static constexpr bool kInt8 = true;
  static constexpr int64_t kBytes = 4;
  static constexpr int64_t kTogether = 4;
  // Measured on Zen 5 at dim 128 with 300 tokens a document, in ns a token, by the tile of float32 and
  // screened: 30 and 12 for 1 query token, 30 and 14 for 8, 39 and 21 for 16, 68 and 34 for 32.
  template <typename T>
  static constexpr int64_t least_lanes() {
    return 1;
  }

  static CF_ALWAYS_INLINE __m256 max(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
  static CF_ALWAYS_INLINE bool any_at_least(__m256 value, __m256 threshold) {
    return _mm256_movemask_ps(_mm256_cmp_ps(value, threshold, _CMP_GE_OQ)) != 0;
  }

  // 32 numbers, the last `32 - n` of them zero: a tail is copied, never read past.
  static CF_ALWAYS_INLINE __m256i load32(const int8_t* from, int64_t n) {
    if (n >= 32) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    int8_t tail[32] = {};
    std::memcpy(tail, from, static_cast<size_t>(n));
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tail));
  }
  static CF_ALWAYS_INLINE int32_t sum_of(__m256i lanes) {
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
  }
  // Stores d + 128 for each number of the row, in whole vectors, the last one with zeros for d. The sum of
  // the squares is that of (d + 128) d less that of 128 d: at most 2^15 * 2^14, so that int32 holds it, and
  // the parts may wrap.
  static float narrow(const int8_t* row, int64_t dim, unsigned char* to) {
    const __m256i sign = _mm256_set1_epi8(-128);
    const __m256i one = _mm256_set1_epi8(1);
    __m256i products = _mm256_setzero_si256();
    __m256i sum = _mm256_setzero_si256();
    for (int64_t k = 0; k < dim; k += 32) {
      const __m256i numbers = load32(row + k, dim - k);
      const __m256i raised = _mm256_xor_si256(numbers, sign);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k), raised);
      products = _mm256_dpbusd_avx_epi32(products, raised, numbers);
      sum = _mm256_dpbusd_avx_epi32(sum, one, numbers);
    }
    return static_cast<float>(sum_of(_mm256_sub_epi32(products, _mm256_slli_epi32(sum, 7))));
  }

  template <typename Number, int kVecs, int kWidth>
  static void products(const NarrowRows& rows, const unsigned char* q, Ahead ahead, float* dots) {
    panel<Int8Ops, kVecs, kWidth>(rows, q, ahead, DotsOfInt8{rows.scales, rows.bias, dots});
  }
};

}  // namespace
}  // namespace colbert_fast

#include "loop.h"

CF_TARGET_END

namespace colbert_fast {
namespace {
const char* unsupported() {
  if (const char* reason = kAvx2.unsupported()) return reason;
  return features().avx_vnni ? nullptr : "this CPU has no AVX-VNNI";
}
constexpr Product kProducts[] = {
    product<Float32Ops>("float32", 1), product<Int8Ops>("int8", 4), {nullptr, 0, nullptr}};
}  // namespace

constexpr Tier kAvxVnni = tier_of("avx_vnni", &unsupported, kProducts);
}  // namespace colbert_fast

#else

namespace colbert_fast {
namespace {
const char* unsupported() {
  return CF_X86_64 ? "built without AVX-VNNI, which takes GCC 11, Clang 12 or Visual Studio 2022"
                   : not_x86_64();
}
}  // namespace

constexpr Tier kAvxVnni = absent("avx_vnni", &unsupported);
}  // namespace colbert_fast

#endif
