// x86-64 with AVX2 and AVX-VNNI (Alder Lake and later client CPUs of Intel, Zen 5 and later): the avx2 tier
// with documents screened in int8 (screen.h).
//
// vpdpbusd multiplies four unsigned by four signed numbers and adds the products to an int32. So one step of
// the tile does as much as four steps of float32. The instruction issues as often as an FMA, and its latency
// is no longer. So the tile of avx2_isa.h fits: 12 accumulators + 2 query vectors + 1 broadcast = 15 of 16
// registers.
//
// Because one side is unsigned, rows that become int8 are stored as d + 128. This adds 128 * (the sum of a
// lane's numbers) to the products of the lane, and the offset of Bounds takes it off again. Rows that were
// int8 before are multiplied where they are, and 128 is added to the numbers of lanes instead. The sums do
// not saturate: screen.h proves that int32 holds every sum of at most kMostScreenedDim products.
#include "codes.h"
#include "host/cpu_features.h"
#include "maxsim.h"
#include "scratch.h"
#include "target.h"

#if CF_AVX_VNNI
CF_TARGET_BEGIN("avxvnni,avx2,fma,f16c")

#include "tiers/avx2_isa.h"

#include "per_tier/bounds.h"  // uses that Isa

namespace colbert_fast {
namespace {

struct Int8Ops {
  using Element = FourBytes;
  using Acc = __m256i;
  static constexpr int64_t kBlock = 0;
  static CF_ALWAYS_INLINE Acc zero() { return _mm256_setzero_si256(); }
  static CF_ALWAYS_INLINE Acc load(const Element* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static CF_ALWAYS_INLINE Acc broadcast(const Element* from) { return _mm256_set1_epi32(bits_of(from)); }
  static CF_ALWAYS_INLINE Acc fma(Acc element, Acc lanes, Acc sum) {
    return _mm256_dpbusd_avx_epi32(sum, element, lanes);
  }
};

// The same for rows as they are, whose numbers are signed. 128 was added to the numbers of the lanes.
struct RaisedLanesOps : Int8Ops {
  static CF_ALWAYS_INLINE Acc fma(Acc element, Acc lanes, Acc sum) {
    return _mm256_dpbusd_avx_epi32(sum, lanes, element);
  }
};

struct Narrow {
  using Registers = Isa;
  using Exact = ExactBounds;
  static constexpr bool kLeavesFloat32 = true;
  static constexpr const Tier* kFloat32 = &kAvx2;
  template <typename T>
  using Screen = int8_t;
  static constexpr bool kBFloat16 = false;
  static constexpr const Tier* kForFloat32Queries = nullptr;
  static constexpr int64_t kBytes = 4;
  static constexpr int64_t kTogether = 4;
  static constexpr int kSinkVecs = 1;
  static constexpr bool kCeilings = true;
  static constexpr int kRaise = 128;
  // In ns a document token, not screened and screened; screen.h says how to measure. float32: 25 and 27 for
  // up to 8 query tokens, 33 and 26 for 16, 65 and 36 for 32, 130 and 58 for 64. float16: 29 and 21 for 1, 71
  // and 38 for 32. int8: 30 and 12 for 1. Documents of 32 tokens of float32: 70 and 58 for 32 query tokens.
  template <typename T>
  static constexpr int64_t least_rows(int64_t) {
    return 32;
  }
  template <typename T>
  static constexpr int64_t least_lanes() {
    return std::is_same<T, float>::value ? 9 : 1;
  }

  static CF_ALWAYS_INLINE int32_t sum_of(__m256i value) {
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
  }
  // The sum of d^2 is the sum of (d + 128) d minus the sum of 128 d. It is at most 2^15 * 2^14, so int32
  // holds it, even if the two sums wrap around.
  static RowSums sums(const int8_t* row, int64_t dim) {
    const __m256i sign = _mm256_set1_epi8(-128);
    __m256i raised = _mm256_setzero_si256();
    __m256i excess = _mm256_setzero_si256();
    for (int64_t k = 0; k < dim; k += 32) {
      int8_t tail[32];
      const int8_t* from = all_or_tail(row + k, dim - k, tail);
      const __m256i numbers = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      raised = _mm256_dpbusd_avx_epi32(raised, _mm256_xor_si256(numbers, sign), numbers);
      excess = _mm256_dpbusd_avx_epi32(excess, sign, numbers);
    }
    return {sum_of(_mm256_sub_epi32(raised, excess)), sum_of(excess)};
  }
  static CF_ALWAYS_INLINE __m256i nearest(__m256 value) {
    return _mm256_cvtps_epi32(_mm256_round_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static CF_ALWAYS_INLINE void store_levels(const __m256 (&numbers)[4], unsigned char* to) {
    const __m256i sign = _mm256_set1_epi8(-128);
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // Packing works within halves.
    const __m256i low = _mm256_packs_epi32(nearest(numbers[0]), nearest(numbers[1]));
    const __m256i high = _mm256_packs_epi32(nearest(numbers[2]), nearest(numbers[3]));
    const __m256i packed = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), in_order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_xor_si256(packed, sign));
  }

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
    panel<RaisedLanesOps, kVecs, kWidth>(rows, q, ahead, sink);
  }
};

}  // namespace
}  // namespace colbert_fast

#include "per_tier/loop.h"

CF_TARGET_END

namespace colbert_fast {
namespace {
const char* unsupported() {
  if (const char* reason = kAvx2.unsupported()) return reason;
  return features().avx_vnni ? nullptr : "this CPU has no AVX-VNNI";
}
}  // namespace

constexpr Tier kAvxVnni = tier_of("avx_vnni", &unsupported);
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
