// Eight floats side by side, as numbers of eight tokens. A loop over eight sums in an array looks the same,
// but GCC 12 makes vectors along the other loop of it, with many shuffles.
#pragma once

#include <cstdint>
#include <cstring>

#include "host/rotation.h"

namespace colbert_fast {

#if defined(__GNUC__) || defined(__clang__)
using Four = float __attribute__((vector_size(16)));

inline Four larger(Four a, Four b) { return a > b ? a : b; }
inline Four magnitude(Four a) { return a < 0.0f ? -a : a; }
#else
struct Four {
  float x[4];
};

#define CF_EACH(expression)                               \
  Four result;                                            \
  for (int i = 0; i < 4; ++i) result.x[i] = (expression); \
  return result
inline Four operator+(Four a, Four b) { CF_EACH(a.x[i] + b.x[i]); }
inline Four operator-(Four a, Four b) { CF_EACH(a.x[i] - b.x[i]); }
inline Four operator*(Four a, Four b) { CF_EACH(a.x[i] * b.x[i]); }
inline Four larger(Four a, Four b) { CF_EACH(a.x[i] > b.x[i] ? a.x[i] : b.x[i]); }
inline Four magnitude(Four a) { CF_EACH(a.x[i] < 0.0f ? -a.x[i] : a.x[i]); }
#undef CF_EACH
#endif

struct Eight {
  Four low, high;

  Eight() : Eight(kZeros) {}
  Eight(Four first, Four second) : low(first), high(second) {}
  explicit Eight(const float* from) {
    std::memcpy(&low, from, sizeof low);
    std::memcpy(&high, from + 4, sizeof high);
  }
  void store(float* to) const {
    std::memcpy(to, &low, sizeof low);
    std::memcpy(to + 4, &high, sizeof high);
  }

 private:
  static constexpr float kZeros[8] = {};
};
static_assert(kRotatedTogether == 8);

inline Eight operator+(const Eight& a, const Eight& b) { return {a.low + b.low, a.high + b.high}; }
inline Eight operator-(const Eight& a, const Eight& b) { return {a.low - b.low, a.high - b.high}; }
inline Eight operator*(const Eight& a, const Eight& b) { return {a.low * b.low, a.high * b.high}; }
inline Eight larger(const Eight& a, const Eight& b) { return {larger(a.low, b.low), larger(a.high, b.high)}; }
inline Eight magnitude(const Eight& a) { return {magnitude(a.low), magnitude(a.high)}; }

}  // namespace colbert_fast
