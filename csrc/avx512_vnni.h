// Products of int8 by AVX512-VNNI, for screen.h: vpdpbusd multiplies four unsigned by four signed numbers and
// adds the products to an int32, so that a step of the tile does what takes four steps of float32. To be
// included inside a target region with avx512vnni.
//
// Documents are stored as d + 128, which adds 128 * (the sum of a lane's numbers) to the lane's products;
// DotsOfInt8 takes it off again.

#pragma once

#include "avx512_isa.h"
#include "tile.h"

namespace colbert_fast {
namespace {

// What both tiers with these products have of Narrow.
struct Int8Narrow {
  static constexpr bool kInt8 = true;
  static constexpr int64_t kBytes = 4;
  static constexpr int64_t kTogether = 4;

  static CF_ALWAYS_INLINE __m512 max(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
  static CF_ALWAYS_INLINE bool any_at_least(__m512 value, __m512 threshold) {
    return _mm512_cmp_ps_mask(value, threshold, _CMP_GE_OQ) != 0;
  }
};

struct Int8Ops {
  using Unit = FourBytes;
  using Acc = __m512i;
  static CF_ALWAYS_INLINE Acc zero() { return _mm512_setzero_si512(); }
  static CF_ALWAYS_INLINE Acc load(const Unit* from) { return _mm512_loadu_si512(from); }
  static CF_ALWAYS_INLINE Acc broadcast(const Unit* from) { return _mm512_set1_epi32(bits_of(from)); }
  static CF_ALWAYS_INLINE Acc fma(Acc unit, Acc lanes, Acc sum) {
    return _mm512_dpbusd_epi32(sum, unit, lanes);
  }
};

// A sink of tile(): the products in units of each row's scale.
struct DotsOfInt8 {
  const float* scales;
  const int32_t* bias;
  float* dots;

  template <int kRows, int kVecs>
  CF_ALWAYS_INLINE void take(const __m512i (&sums)[kRows][kVecs], int64_t row) const {
    CF_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      const __m512i excess = _mm512_slli_epi32(_mm512_loadu_si512(bias + v * Isa::kLanes), 7);
      CF_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const __m512 product = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[r][v], excess));
        Isa::store(dots + (row + r) * kPanel + v * Isa::kLanes,
                   _mm512_mul_ps(product, _mm512_set1_ps(scales[row + r])));
      }
    }
  }
};

template <int kVecs, int kWidth>
void products_int8(const NarrowRows& rows, const unsigned char* q, Ahead ahead, float* dots) {
  panel<Int8Ops, kVecs, kWidth>(rows, q, ahead, DotsOfInt8{rows.scales, rows.bias, dots});
}

// Stores d + kBias, 0 or 128, for each number of the row, and returns the sum of their squares, as that of
// (d + 128) d less that of 128 d: with 2^15 numbers each below 2^31. Whole vectors of 64 numbers are stored,
// the last one with zeros for d.
template <int kBias>
float narrow_int8(const int8_t* row, int64_t dim, unsigned char* to) {
  static_assert(kBias == 0 || kBias == 128, "adding 128 is flipping the sign bit");
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
  __m512i raised = _mm512_setzero_si512();
  __m512i excess = _mm512_setzero_si512();
  for (int64_t k = 0; k < dim; k += 64) {
    const __m512i numbers = dim - k < 64 ? _mm512_maskz_loadu_epi8(Isa::first_bytes(dim - k), row + k)
                                         : _mm512_loadu_si512(row + k);
    const __m512i flipped = _mm512_xor_si512(numbers, sign);
    _mm512_storeu_si512(to + k, kBias == 128 ? flipped : numbers);
    raised = _mm512_dpbusd_epi32(raised, flipped, numbers);
    excess = _mm512_dpbusd_epi32(excess, sign, numbers);
  }
  return static_cast<float>(_mm512_reduce_add_epi32(_mm512_sub_epi32(raised, excess)));
}

}  // namespace
}  // namespace colbert_fast
