#include "host/rotation.h"
#include "target.h"

#include <cmath>
#include <limits>

namespace colbert_fast {
namespace {

constexpr int kWidth = kRotatedTogether;

// The logarithm to base 2 of the largest power of two that is not above `dim`.
int log_of_power(int64_t dim) {
  int log = 0;
  while ((int64_t{2} << log) <= dim) ++log;
  return log;
}

// Two layers of sums and differences of four numbers.
template <typename Real>
inline void add_and_subtract(Real a, Real b, Real c, Real d, Real& to_a, Real& to_b, Real& to_c, Real& to_d) {
  const Real left_sum = a + b;
  const Real left_difference = a - b;
  const Real right_sum = c + d;
  const Real right_difference = c - d;
  to_a = left_sum + right_sum;
  to_b = left_difference + right_difference;
  to_c = left_sum - right_sum;
  to_d = left_difference - right_difference;
}

// Multiplies numbers that no layer changes by their signs.
template <typename Real>
void change_signs(Real* numbers, int64_t count, const float* signs) {
  for (int64_t i = 0; i < count; ++i) {
    CF_UNROLL
    for (int r = 0; r < kWidth; ++r) numbers[i * kWidth + r] *= static_cast<Real>(signs[i]);
  }
}

// Multiplies the numbers by their signs and by `factor`, and computes the sums and differences of neighbours:
// the first layer.
template <typename Real>
void first_layer(Real* numbers, int64_t power, const float* signs, Real factor) {
  for (int64_t i = 0; i < power; i += 2) {
    const Real by_a = static_cast<Real>(signs[i]) * factor;
    const Real by_b = static_cast<Real>(signs[i + 1]) * factor;
    Real* const a = numbers + i * kWidth;
    Real* const b = a + kWidth;
    CF_UNROLL
    for (int r = 0; r < kWidth; ++r) {
      const Real left = a[r] * by_a;
      const Real right = b[r] * by_b;
      a[r] = left + right;
      b[r] = left - right;
    }
  }
}

// The same for the first two layers.
template <typename Real>
void first_two_layers(Real* numbers, int64_t power, const float* signs, Real factor) {
  for (int64_t i = 0; i < power; i += 4) {
    const Real by_a = static_cast<Real>(signs[i]) * factor;
    const Real by_b = static_cast<Real>(signs[i + 1]) * factor;
    const Real by_c = static_cast<Real>(signs[i + 2]) * factor;
    const Real by_d = static_cast<Real>(signs[i + 3]) * factor;
    Real* const a = numbers + i * kWidth;
    Real* const b = a + kWidth;
    Real* const c = b + kWidth;
    Real* const d = c + kWidth;
    CF_UNROLL
    for (int r = 0; r < kWidth; ++r)
      add_and_subtract(a[r] * by_a, b[r] * by_b, c[r] * by_c, d[r] * by_d, a[r], b[r], c[r], d[r]);
  }
}

// Two layers at once: numbers that are `half` apart, and then `2 * half`.
template <typename Real>
void two_layers(Real* numbers, int64_t power, int64_t half) {
  const int64_t apart = half * kWidth;
  for (int64_t first = 0; first < power * kWidth; first += 4 * apart) {
    Real* __restrict a = numbers + first;
    Real* __restrict b = a + apart;
    Real* __restrict c = b + apart;
    Real* __restrict d = c + apart;
    for (int64_t i = 0; i < apart; ++i) {
      add_and_subtract(a[i], b[i], c[i], d[i], a[i], b[i], c[i], d[i]);
    }
  }
}

}  // namespace

template <typename Real>
void rotate(Real* numbers, int64_t dim, const float* signs) {
  const int log = log_of_power(dim);
  const int64_t power = int64_t{1} << log;
  const Real factor = Real{1} / std::sqrt(static_cast<Real>(power));
  for (int stage = 0; stage < kRotationStages; ++stage, signs += dim) {
    const int64_t first = stage % 2 == 0 ? 0 : dim - power;
    Real* const part = numbers + first * kWidth;
    const float* const its_signs = signs + first;
    change_signs(numbers, first, signs);
    change_signs(part + power * kWidth, dim - power - first, its_signs + power);
    if (log == 0) {
      change_signs(part, power, its_signs);
    } else if (log % 2 == 1) {
      first_layer(part, power, its_signs, factor);
    } else {
      first_two_layers(part, power, its_signs, factor);
    }
    for (int64_t half = log % 2 == 1 ? 2 : 4; half < power; half *= 4) two_layers(part, power, half);
  }
}
template void rotate<float>(float* numbers, int64_t dim, const float* signs);
template void rotate<double>(double* numbers, int64_t dim, const float* signs);

template <typename Real>
double rotation_error(int64_t dim) {
  return 4.0 * (log_of_power(dim) + 4) * static_cast<double>(std::numeric_limits<Real>::epsilon());
}
template double rotation_error<float>(int64_t dim);
template double rotation_error<double>(int64_t dim);

}  // namespace colbert_fast
