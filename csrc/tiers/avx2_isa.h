// The registers of AVX2, for the tiers that have no wider ones. Include it inside a target region with avx2,
// fma and f16c.
//
// Tile: 6 document rows x 2 vectors of 8 query tokens. Registers: 12 accumulators + 2 query vectors + 1
// broadcast = 15 of 16. A step has 2 + 6 loads and 12 FMAs: 4 cycles of loads hide behind 6 of FMAs. The 12
// chains cover an FMA latency of 4 to 5 cycles on two FMA units. 32 query tokens are two panels; block_rows
// keeps the document rows in L1 between them.

#pragma once

namespace colbert_fast {
namespace {

struct Isa {
  using Vec = __m256;
  using Idx = __m256i;
  static constexpr int kFloats = 8;
  static constexpr int kVecs = 2;
  static constexpr int kRows = 6;
  static constexpr bool kMasks = false;

  static CF_ALWAYS_INLINE Vec zero() { return _mm256_setzero_ps(); }
  static CF_ALWAYS_INLINE Vec load(const float* from) { return _mm256_loadu_ps(from); }
  static CF_ALWAYS_INLINE Idx load(const int32_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static CF_ALWAYS_INLINE Vec broadcast(const float* from) { return _mm256_set1_ps(*from); }
  static CF_ALWAYS_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static CF_ALWAYS_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static CF_ALWAYS_INLINE Vec multiply(Vec a, float b) { return _mm256_mul_ps(a, _mm256_set1_ps(b)); }
  static CF_ALWAYS_INLINE void store(float* to, Vec value) { _mm256_storeu_ps(to, value); }
  static CF_ALWAYS_INLINE void store(int32_t* to, Idx value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value);
  }

  // "Not less or equal" is true for a value of NaN too. A best that is NaN already stays.
  static CF_ALWAYS_INLINE Vec wins(Vec best, Vec value) {
    return _mm256_and_ps(_mm256_cmp_ps(best, best, _CMP_ORD_Q), _mm256_cmp_ps(value, best, _CMP_NLE_UQ));
  }
  static CF_ALWAYS_INLINE void update(Vec& best, Vec value) {
    best = _mm256_blendv_ps(best, value, wins(best, value));
  }
  static CF_ALWAYS_INLINE void update(Vec& best, Idx& arg, Vec value, int32_t row) {
    const Vec mask = wins(best, value);
    best = _mm256_blendv_ps(best, value, mask);
    arg = _mm256_blendv_epi8(arg, _mm256_set1_epi32(row), _mm256_castps_si256(mask));
  }

  // 8 x 8 numbers, in three rounds of 8 shuffles: pairs of rows, groups of four rows, and the two halves.
  static CF_ALWAYS_INLINE void transpose(__m256 (&rows)[8]) {
    __m256 pairs[8];
    CF_UNROLL
    for (int i = 0; i < 8; i += 2) {
      pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
      pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    // Half b of fours[4 * i + c] has column 4 * b + c of the rows 4 * i to 4 * i + 3.
    __m256 fours[8];
    CF_UNROLL
    for (int i = 0; i < 8; i += 4) {
      CF_UNROLL
      for (int half = 0; half < 2; ++half) {
        fours[i + 2 * half] = _mm256_shuffle_ps(pairs[i + half], pairs[i + 2 + half], 0x44);
        fours[i + 2 * half + 1] = _mm256_shuffle_ps(pairs[i + half], pairs[i + 2 + half], 0xee);
      }
    }
    CF_UNROLL
    for (int c = 0; c < 4; ++c) {
      rows[c] = _mm256_permute2f128_ps(fours[c], fours[4 + c], 0x20);
      rows[4 + c] = _mm256_permute2f128_ps(fours[c], fours[4 + c], 0x31);
    }
  }

  // For screening.
  static CF_ALWAYS_INLINE Vec everywhere(float value) { return _mm256_set1_ps(value); }
  static CF_ALWAYS_INLINE Idx everywhere(int32_t value) { return _mm256_set1_epi32(value); }
  static CF_ALWAYS_INLINE Vec to_float(Idx value) { return _mm256_cvtepi32_ps(value); }
  static CF_ALWAYS_INLINE Idx add(Idx a, Idx b) { return _mm256_add_epi32(a, b); }
  static CF_ALWAYS_INLINE Vec multiply(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
  static CF_ALWAYS_INLINE Vec subtract_product(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(b, c, a); }
  static CF_ALWAYS_INLINE void update_larger(Vec& best, Idx& arg, Vec value, int32_t row) {
    const Vec larger = _mm256_cmp_ps(value, best, _CMP_GT_OQ);
    best = _mm256_max_ps(best, value);
    arg = _mm256_blendv_epi8(arg, _mm256_set1_epi32(row), _mm256_castps_si256(larger));
  }
  static CF_ALWAYS_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
  static CF_ALWAYS_INLINE Vec magnitude(Vec value) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), value); }
  static CF_ALWAYS_INLINE Vec larger_magnitude(Vec a, Vec b) { return max(a, magnitude(b)); }
  static CF_ALWAYS_INLINE float sum(Vec value) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static CF_ALWAYS_INLINE float largest(Vec value) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
  }
  static CF_ALWAYS_INLINE uint32_t at_least(Vec value, Vec threshold) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(value, threshold, _CMP_GE_OQ)));
  }

  static CF_ALWAYS_INLINE Vec load_bits(const int8_t* from) {
    return _mm256_castsi256_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  template <int kByte>
  static CF_ALWAYS_INLINE Vec int8_to_float(Vec bits) {
    const __m256i highest = _mm256_slli_epi32(_mm256_castps_si256(bits), 24 - 8 * kByte);
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(highest, 24));
  }

  static CF_ALWAYS_INLINE Vec load(const BFloat16* from) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static CF_ALWAYS_INLINE Vec load(const Float16* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static CF_ALWAYS_INLINE Vec load(const int8_t* from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
  }
};

}  // namespace
}  // namespace colbert_fast
