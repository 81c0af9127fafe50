// The registers of AVX-512, for the tiers that have it. Include it inside a target region with avx512f,
// avx512bw, avx512dq, avx512vl, avx2, fma and f16c.
//
// Tile: 12 document rows x 2 vectors of 16 query tokens. Registers: 24 accumulators + 2 query vectors + 1
// broadcast = 27 of 32. A step has 2 + 12 loads and 24 FMAs: at two loads and two FMAs a cycle, 7 cycles of
// loads hide behind 12 of FMAs. The 24 independent chains cover an FMA latency of 4 cycles on two FMA units
// three times. A panel of 32 lanes at dim 128 is 16 KiB and stays in L1.

#pragma once

namespace colbert_fast {
namespace {

struct Isa {
  using Vec = __m512;
  using Idx = __m512i;
  static constexpr int kFloats = 16;
  static constexpr int kVecs = 2;
  static constexpr int kRows = 12;
  static constexpr bool kMasks = true;

  static CF_ALWAYS_INLINE Vec zero() { return _mm512_setzero_ps(); }
  static CF_ALWAYS_INLINE Vec load(const float* from) { return _mm512_loadu_ps(from); }
  static CF_ALWAYS_INLINE Idx load(const int32_t* from) { return _mm512_loadu_si512(from); }
  static CF_ALWAYS_INLINE Vec broadcast(const float* from) { return _mm512_set1_ps(*from); }
  static CF_ALWAYS_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static CF_ALWAYS_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static CF_ALWAYS_INLINE Vec multiply(Vec a, float b) { return _mm512_mul_ps(a, _mm512_set1_ps(b)); }
  static CF_ALWAYS_INLINE void store(float* to, Vec value) { _mm512_storeu_ps(to, value); }
  static CF_ALWAYS_INLINE void store(int32_t* to, Idx value) { _mm512_storeu_si512(to, value); }

  // "Not less or equal" is true for a value of NaN too. A best that is NaN already stays.
  static CF_ALWAYS_INLINE __mmask16 wins(Vec best, Vec value) {
    return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(best, best, _CMP_ORD_Q), value, best, _CMP_NLE_UQ);
  }
  static CF_ALWAYS_INLINE void update(Vec& best, Vec value) {
    best = _mm512_mask_mov_ps(best, wins(best, value), value);
  }
  static CF_ALWAYS_INLINE void update(Vec& best, Idx& arg, Vec value, int32_t row) {
    const __mmask16 mask = wins(best, value);
    best = _mm512_mask_mov_ps(best, mask, value);
    arg = _mm512_mask_mov_epi32(arg, mask, _mm512_set1_epi32(row));
  }

  // 16 x 16 numbers, in four rounds of 16 shuffles: pairs of rows, groups of four rows, and twice the parts
  // of 128 bits.
  static CF_ALWAYS_INLINE void transpose(__m512 (&rows)[16]) {
    __m512 pairs[16];
    CF_UNROLL
    for (int i = 0; i < 16; i += 2) {
      pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
      pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    // Part b of fours[4 * i + c] has column 4 * b + c of the rows 4 * i to 4 * i + 3.
    __m512 fours[16];
    CF_UNROLL
    for (int i = 0; i < 16; i += 4) {
      CF_UNROLL
      for (int half = 0; half < 2; ++half) {
        const __m512d a = _mm512_castps_pd(pairs[i + half]);
        const __m512d b = _mm512_castps_pd(pairs[i + 2 + half]);
        fours[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
        fours[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
      }
    }
    CF_UNROLL
    for (int c = 0; c < 4; ++c) {
      const __m512 even_low = _mm512_shuffle_f32x4(fours[c], fours[4 + c], 0x88);
      const __m512 odd_low = _mm512_shuffle_f32x4(fours[c], fours[4 + c], 0xdd);
      const __m512 even_high = _mm512_shuffle_f32x4(fours[8 + c], fours[12 + c], 0x88);
      const __m512 odd_high = _mm512_shuffle_f32x4(fours[8 + c], fours[12 + c], 0xdd);
      rows[c] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
      rows[4 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
      rows[8 + c] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
      rows[12 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
    }
  }

  // For screening.
  static CF_ALWAYS_INLINE Vec everywhere(float value) { return _mm512_set1_ps(value); }
  static CF_ALWAYS_INLINE Idx everywhere(int32_t value) { return _mm512_set1_epi32(value); }
  static CF_ALWAYS_INLINE Vec to_float(Idx value) { return _mm512_cvtepi32_ps(value); }
  static CF_ALWAYS_INLINE Idx add(Idx a, Idx b) { return _mm512_add_epi32(a, b); }
  static CF_ALWAYS_INLINE Vec multiply(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  static CF_ALWAYS_INLINE Vec subtract_product(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(b, c, a); }
  static CF_ALWAYS_INLINE void update_larger(Vec& best, Idx& arg, Vec value, int32_t row) {
    const __mmask16 larger = _mm512_cmp_ps_mask(value, best, _CMP_GT_OQ);
    best = _mm512_max_ps(best, value);
    arg = _mm512_mask_mov_epi32(arg, larger, _mm512_set1_epi32(row));
  }
  static CF_ALWAYS_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
  static CF_ALWAYS_INLINE Vec larger_magnitude(Vec a, Vec b) {
    return _mm512_range_ps(a, b, 0xb);  // the larger magnitude, with the sign bit cleared
  }
  static CF_ALWAYS_INLINE Vec magnitude(Vec value) { return _mm512_abs_ps(value); }
  static CF_ALWAYS_INLINE float sum(Vec value) { return _mm512_reduce_add_ps(value); }
  static CF_ALWAYS_INLINE float largest(Vec value) { return _mm512_reduce_max_ps(value); }
  static CF_ALWAYS_INLINE uint32_t at_least(Vec value, Vec threshold) {
    return _mm512_cmp_ps_mask(value, threshold, _CMP_GE_OQ);
  }

  static CF_ALWAYS_INLINE Vec widen_bfloat16(__m256i numbers) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16));
  }
  static CF_ALWAYS_INLINE Vec widen_int8(__m128i numbers) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(numbers));
  }
  static CF_ALWAYS_INLINE Vec load_bits(const int8_t* from) {
    return _mm512_castsi512_ps(_mm512_loadu_si512(from));
  }
  template <int kByte>
  static CF_ALWAYS_INLINE Vec int8_to_float(Vec bits) {
    const __m512i highest = _mm512_slli_epi32(_mm512_castps_si512(bits), 24 - 8 * kByte);
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(highest, 24));
  }

  static CF_ALWAYS_INLINE Vec load(const BFloat16* from) {
    return widen_bfloat16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static CF_ALWAYS_INLINE Vec load(const Float16* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static CF_ALWAYS_INLINE Vec load(const int8_t* from) {
    return widen_int8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }

  // A masked load does not touch what its mask leaves out.
  static CF_ALWAYS_INLINE __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
  static CF_ALWAYS_INLINE Vec load(const float* from, int64_t n) {
    return _mm512_maskz_loadu_ps(first(n), from);
  }
  static CF_ALWAYS_INLINE Vec load(const BFloat16* from, int64_t n) {
    return widen_bfloat16(_mm256_maskz_loadu_epi16(first(n), from));
  }
  static CF_ALWAYS_INLINE Vec load(const Float16* from, int64_t n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), from));
  }
  static CF_ALWAYS_INLINE Vec load(const int8_t* from, int64_t n) {
    return widen_int8(_mm_maskz_loadu_epi8(first(n), from));
  }
};

}  // namespace
}  // namespace colbert_fast
