// Rows of float32 and float16 rounded to bfloat16 by AVX512-BF16, for screen.h. Include it inside a target
// region with avx512bf16 and avx512vnni.

#pragma once

#include "tiers/avx512_vnni.h"

namespace colbert_fast {
namespace {

// Returns the sum of the squares of the row.
template <typename T>
float narrow_bfloat16(const T* row, int64_t dim, unsigned char* to) {
  __m512 squares = _mm512_setzero_ps();
  __m512 more_squares = _mm512_setzero_ps();
  for (int64_t k = 0; k < dim; k += 32) {
    const __m512 low = load_up_to(row + k, dim - k);
    const __m512 high = load_up_to(row + k + 16, dim - k - 16);
    _mm512_storeu_si512(to + 2 * k, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
    squares = _mm512_fmadd_ps(low, low, squares);
    more_squares = _mm512_fmadd_ps(high, high, more_squares);
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(squares, more_squares));
}

}  // namespace
}  // namespace colbert_fast
