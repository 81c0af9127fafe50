// The registers of AVX2, for the tiers that have nothing wider: to be included inside their target regions.
//
// Tile: 6 document rows x 2 vectors of 8 query tokens. Registers: 12 accumulators + 2 query vectors + 1
// broadcast = 15 of 16. Per dimension 2 + 6 loads feed 12 FMAs: 4 cycles of loads behind 6 of FMAs, and 12
// chains cover the FMA latency of 4 to 5 cycles x 2 units. 32 query tokens are two panels; block_rows keeps
// the document rows in L1 between them.

#pragma once

namespace colbert_fast {
namespace {

struct Isa {
  using Vec = __m256;
  using Idx = __m256i;
  static constexpr int kLanes = 8;
  static constexpr int kVecs = 2;
  static constexpr int kRows = 6;

  static CF_ALWAYS_INLINE Vec zero() { return _mm256_setzero_ps(); }
  static CF_ALWAYS_INLINE Vec load(const float* from) { return _mm256_loadu_ps(from); }
  static CF_ALWAYS_INLINE Idx load(const int32_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static CF_ALWAYS_INLINE Vec broadcast(const float* from) { return _mm256_set1_ps(*from); }
  static CF_ALWAYS_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static CF_ALWAYS_INLINE void store(float* to, Vec value) { _mm256_storeu_ps(to, value); }
  static CF_ALWAYS_INLINE void store(int32_t* to, Idx value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value);
  }

  // "Not less or equal" is true for a NaN value as well; a best that is NaN already is left alone.
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

  // Eight elements, the last `8 - n` of them zero: a tail is copied, never read past.
  template <typename T>
  static CF_ALWAYS_INLINE __m128i load_half(const T* from, int64_t n) {
    if (n >= 8) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    T tail[8] = {};
    for (int64_t k = 0; k < n; ++k) tail[k] = from[k];
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(tail));
  }
  static CF_ALWAYS_INLINE void store_first(float* to, Vec value, int64_t n) {
    if (n >= 8) return _mm256_storeu_ps(to, value);
    float tail[8];
    _mm256_storeu_ps(tail, value);
    for (int64_t k = 0; k < n; ++k) to[k] = tail[k];
  }
  static void widen(const BFloat16* from, float* to, int64_t n) {
    for (int64_t k = 0; k < n; k += 8) {
      const __m256i bits = _mm256_cvtepu16_epi32(load_half(from + k, n - k));
      store_first(to + k, _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)), n - k);
    }
  }
  static void widen(const Float16* from, float* to, int64_t n) {
    for (int64_t k = 0; k < n; k += 8)
      store_first(to + k, _mm256_cvtph_ps(load_half(from + k, n - k)), n - k);
  }
  static CF_ALWAYS_INLINE __m128i load_quarter(const int8_t* from, int64_t n) {
    if (n >= 8) return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    int8_t tail[8] = {};
    for (int64_t k = 0; k < n; ++k) tail[k] = from[k];
    return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(tail));
  }
  static void widen(const int8_t* from, float scale, float* to, int64_t n) {
    const Vec factor = _mm256_set1_ps(scale);
    for (int64_t k = 0; k < n; k += 8) {
      const __m256i wide = _mm256_cvtepi8_epi32(load_quarter(from + k, n - k));
      store_first(to + k, _mm256_mul_ps(_mm256_cvtepi32_ps(wide), factor), n - k);
    }
  }
};

}  // namespace
}  // namespace colbert_fast
