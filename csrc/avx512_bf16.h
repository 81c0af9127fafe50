// Rows of float32 and float16 rounded to bfloat16 by AVX512-BF16, for screen.h. To be included inside a
// target region with avx512bf16 and avx512vnni.

#pragma once

#include "avx512_vnni.h"

namespace colbert_fast {
namespace {

CF_ALWAYS_INLINE __m512 load16(const float* from) { return _mm512_loadu_ps(from); }
CF_ALWAYS_INLINE __m512 load16(const float* from, __mmask16 mask) {
  return _mm512_maskz_loadu_ps(mask, from);
}
CF_ALWAYS_INLINE __m512 load16(const Float16* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
CF_ALWAYS_INLINE __m512 load16(const Float16* from, __mmask16 mask) {
  return _mm512_maskz_cvtph_ps(mask, _mm256_maskz_loadu_epi16(mask, from));
}
CF_ALWAYS_INLINE void store_bfloat16(unsigned char* to, __m512 low, __m512 high) {
  _mm512_storeu_si512(to, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
}

// Stores whole vectors of 32 numbers, the last one with zeros. Returns the sum of the squares of the row.
template <typename T>
float narrow_bfloat16(const T* row, int64_t dim, unsigned char* to) {
  __m512 squares = _mm512_setzero_ps();
  __m512 more_squares = _mm512_setzero_ps();
  int64_t k = 0;
  for (; k + 32 <= dim; k += 32) {
    const __m512 low = load16(row + k);
    const __m512 high = load16(row + k + 16);
    store_bfloat16(to + 2 * k, low, high);
    squares = _mm512_fmadd_ps(low, low, squares);
    more_squares = _mm512_fmadd_ps(high, high, more_squares);
  }
  if (k < dim) {
    const __m512 low = load16(row + k, Isa::first_lanes(dim - k));
    const __m512 high = dim - k > 16 ? load16(row + k + 16, Isa::first_lanes(dim - k - 16)) : Isa::zero();
    store_bfloat16(to + 2 * k, low, high);
    squares = _mm512_fmadd_ps(low, low, squares);
    more_squares = _mm512_fmadd_ps(high, high, more_squares);
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(squares, more_squares));
}

}  // namespace
}  // namespace colbert_fast
