#include "host/rotation.h"

#include <cmath>
#include <limits>

namespace colbert_fast {
namespace {

// The logarithm to base 2 of the largest power of two that is not above `dim`.
int log_of_power(int64_t dim) {
  int log = 0;
  while ((int64_t{2} << log) <= dim) ++log;
  return log;
}

// Multiplies the numbers by their signs and by `factor`.
template <typename Real, int kWidth>
void scale(Real* numbers, int64_t count, const float* signs, Real factor) {
  for (int64_t i = 0; i < count; ++i) {
    const Real both = static_cast<Real>(signs[i]) * factor;
    Real* const row = numbers + i * kWidth;
    for (int lane = 0; lane < kWidth; ++lane) row[lane] *= both;
  }
}

// One layer of sums and differences, of numbers that are `half` apart.
template <typename Real, int kWidth>
void layer(Real* numbers, int64_t power, int64_t half) {
  const int64_t apart = half * kWidth;
  for (int64_t first = 0; first < power * kWidth; first += 2 * apart) {
    Real* __restrict a = numbers + first;
    Real* __restrict b = a + apart;
    for (int64_t i = 0; i < apart; ++i) {
      const Real sum = a[i] + b[i];
      b[i] = a[i] - b[i];
      a[i] = sum;
    }
  }
}

// Two layers at once: numbers that are `half` apart, and then `2 * half`.
template <typename Real, int kWidth>
void two_layers(Real* numbers, int64_t power, int64_t half) {
  const int64_t apart = half * kWidth;
  for (int64_t first = 0; first < power * kWidth; first += 4 * apart) {
    Real* __restrict a = numbers + first;
    Real* __restrict b = a + apart;
    Real* __restrict c = b + apart;
    Real* __restrict d = c + apart;
    for (int64_t i = 0; i < apart; ++i) {
      const Real left_sum = a[i] + b[i];
      const Real left_difference = a[i] - b[i];
      const Real right_sum = c[i] + d[i];
      const Real right_difference = c[i] - d[i];
      a[i] = left_sum + right_sum;
      b[i] = left_difference + right_difference;
      c[i] = left_sum - right_sum;
      d[i] = left_difference - right_difference;
    }
  }
}

}  // namespace

template <typename Real, int kWidth>
void rotate(Real* numbers, int64_t dim, const float* signs) {
  const int log = log_of_power(dim);
  const int64_t power = int64_t{1} << log;
  const Real factor = Real{1} / std::sqrt(static_cast<Real>(power));
  for (int stage = 0; stage < kRotationStages; ++stage, signs += dim) {
    const int64_t first = stage % 2 == 0 ? 0 : dim - power;
    Real* const part = numbers + first * kWidth;
    scale<Real, kWidth>(numbers, first, signs, Real{1});
    scale<Real, kWidth>(part, power, signs + first, factor);
    scale<Real, kWidth>(part + power * kWidth, dim - power - first, signs + first + power, Real{1});
    int64_t half = 1;
    if (log % 2 == 1) {
      layer<Real, kWidth>(part, power, half);
      half = 2;
    }
    for (; half < power; half *= 4) two_layers<Real, kWidth>(part, power, half);
  }
}
template void rotate<float, 1>(float* numbers, int64_t dim, const float* signs);
template void rotate<double, 1>(double* numbers, int64_t dim, const float* signs);
template void rotate<double, kEncodedTogether>(double* numbers, int64_t dim, const float* signs);
template void rotate<float, kEncodedTogether>(float* numbers, int64_t dim, const float* signs);

template <typename Real>
double rotation_error(int64_t dim) {
  return 4.0 * (log_of_power(dim) + 4) * static_cast<double>(std::numeric_limits<Real>::epsilon());
}
template double rotation_error<float>(int64_t dim);
template double rotation_error<double>(int64_t dim);

}  // namespace colbert_fast
