// The rotation of colbert_fast/_codecs/rotation.py, which says what it is and proves how exact it is.
#pragma once

#include <cstdint>

namespace colbert_fast {

constexpr int kRotationStages = 4;
constexpr int64_t kMostRotatedDim = 4096;

// The rows that are rotated side by side, of which the compiler makes vectors.
constexpr int kRotatedTogether = 8;

// Rotates kRotatedTogether rows of float or double in place: number i of row r is
// numbers[i * kRotatedTogether + r]. `signs` is [kRotationStages][dim], with 1 and -1. dim is 1 to
// kMostRotatedDim.
template <typename Real>
void rotate(Real* numbers, int64_t dim, const float* signs);

// A rotation in Real is off by at most this number times the norm of the row, if that norm is 2^-60 or more.
template <typename Real>
double rotation_error(int64_t dim);

}  // namespace colbert_fast
