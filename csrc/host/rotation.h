// The rotation of colbert_fast/_codecs/rotation.py, which says what it is and proves how exact it is.
#pragma once

#include <cstdint>

namespace colbert_fast {

constexpr int kRotationStages = 4;
constexpr int64_t kMostRotatedDim = 4096;

// Rotates kWidth rows side by side, in place: number i of row r is numbers[i * kWidth + r]. There is one row
// or kEncodedTogether rows, of float or double. `signs` is [kRotationStages][dim], with 1 and -1. dim is 1 to
// kMostRotatedDim.
template <typename Real, int kWidth>
void rotate(Real* numbers, int64_t dim, const float* signs);

// A rotation in Real is off by at most this number times the norm of the row, if that norm is 2^-60 or more.
template <typename Real>
double rotation_error(int64_t dim);

// The rows that the encoder handles side by side. The compiler makes vectors of them.
constexpr int kEncodedTogether = 8;

}  // namespace colbert_fast
