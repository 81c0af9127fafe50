// Plain C++ for any processor: the same work as in the other tiers, without intrinsics. This tier is always
// built and runs everywhere.
//
// Tile: 4 document rows x 2 vectors of 4 query tokens. Registers: 8 accumulators + 2 query vectors + 1
// broadcast = 11 of the 16 of SSE2. Compilers find these registers, and NEON's registers, by themselves.
#include "codes.h"
#include "maxsim.h"
#include "scratch.h"
#include "target.h"

namespace colbert_fast {
namespace {

constexpr int kFour = 4;
#if defined(__GNUC__) || defined(__clang__)
// The compiler's own vector type, which uses SSE2, NEON, or whatever the baseline has.
using Vec4 = float __attribute__((vector_size(kFour * sizeof(float))));
#else
struct Vec4 {
  float at[kFour];
  float& operator[](int l) { return at[l]; }
  Vec4 operator*(const Vec4& other) const {
    Vec4 product;
    for (int l = 0; l < kFour; ++l) product.at[l] = at[l] * other.at[l];
    return product;
  }
  Vec4 operator+(const Vec4& other) const {
    Vec4 sum;
    for (int l = 0; l < kFour; ++l) sum.at[l] = at[l] + other.at[l];
    return sum;
  }
};
#endif

struct Isa {
  static constexpr int kFloats = kFour;
  static constexpr int kVecs = 2;
  static constexpr int kRows = 4;
  static constexpr bool kMasks = false;
  using Vec = Vec4;
  struct Idx {
    int32_t at[kFloats];
  };

  static CF_ALWAYS_INLINE Vec zero() { return Vec{}; }
  static CF_ALWAYS_INLINE Vec load(const float* from) { return Vec{from[0], from[1], from[2], from[3]}; }
  static CF_ALWAYS_INLINE Vec broadcast(const float* from) { return Vec{*from, *from, *from, *from}; }
  // Compilers fuse this where the baseline has FMA, as with -march=x86-64-v3: its scores then have the bits
  // of the other tiers.
  static CF_ALWAYS_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
  static CF_ALWAYS_INLINE Vec add(Vec a, Vec b) { return a + b; }
  static CF_ALWAYS_INLINE Vec multiply(Vec a, float b) { return a * broadcast(&b); }
  static CF_ALWAYS_INLINE void store(float* to, Vec value) {
    CF_UNROLL
    for (int l = 0; l < kFloats; ++l) to[l] = value[l];
  }
  static CF_ALWAYS_INLINE Idx load(const int32_t* from) { return Idx{{from[0], from[1], from[2], from[3]}}; }
  static CF_ALWAYS_INLINE void store(int32_t* to, Idx value) {
    CF_UNROLL
    for (int l = 0; l < kFloats; ++l) to[l] = value.at[l];
  }

  // True for a value of NaN too. A best that is NaN already stays.
  static CF_ALWAYS_INLINE bool wins(float best, float value) { return !(value <= best) && best == best; }
  static CF_ALWAYS_INLINE void update(Vec& best, Vec value) {
    CF_UNROLL
    for (int l = 0; l < kFloats; ++l) {
      if (wins(best[l], value[l])) best[l] = value[l];
    }
  }
  static CF_ALWAYS_INLINE void update(Vec& best, Idx& arg, Vec value, int32_t row) {
    CF_UNROLL
    for (int l = 0; l < kFloats; ++l) {
      if (!wins(best[l], value[l])) continue;
      best[l] = value[l];
      arg.at[l] = row;
    }
  }

  // For upper bounds.
  static CF_ALWAYS_INLINE Vec everywhere(float value) { return broadcast(&value); }
  static CF_ALWAYS_INLINE Vec multiply(Vec a, Vec b) { return a * b; }
  static CF_ALWAYS_INLINE Vec max(Vec a, Vec b) {
    CF_UNROLL
    for (int l = 0; l < kFloats; ++l) a[l] = b[l] > a[l] ? b[l] : a[l];
    return a;
  }
  static CF_ALWAYS_INLINE Vec to_float(Idx value) {
    Vec wide;
    CF_UNROLL
    for (int l = 0; l < kFloats; ++l) wide[l] = static_cast<float>(value.at[l]);
    return wide;
  }
  static CF_ALWAYS_INLINE Idx add(Idx a, Idx b) {
    CF_UNROLL
    for (int l = 0; l < kFloats; ++l) a.at[l] += b.at[l];
    return a;
  }

  static CF_ALWAYS_INLINE void transpose(Vec (&rows)[kFloats]) {
    Vec columns[kFloats];
    CF_UNROLL
    for (int r = 0; r < kFloats; ++r) {
      CF_UNROLL
      for (int c = 0; c < kFloats; ++c) columns[c][r] = rows[r][c];
    }
    CF_UNROLL
    for (int c = 0; c < kFloats; ++c) rows[c] = columns[c];
  }

  static float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  static float widen(BFloat16 number) { return from_bits(static_cast<uint32_t>(number.bits) << 16); }
  static float widen(int8_t number) { return static_cast<float>(number); }
  static float widen(Float16 half) {
    const uint32_t sign = static_cast<uint32_t>(half.bits & 0x8000) << 16;
    const uint32_t exponent = (half.bits >> 10) & 0x1f;
    const uint32_t fraction = half.bits & 0x3ff;
    if (exponent == 0) {  // Zero or subnormal: fraction * 2^-24, which is exact in float32.
      const float magnitude = static_cast<float>(fraction) * 5.9604644775390625e-8f;
      return sign != 0 ? -magnitude : magnitude;
    }
    // The exponent bias of binary16 is 15, and the bias of binary32 is 127. Infinity and NaN have the
    // exponents 31 and 255.
    const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
    return from_bits(sign | (wide << 23) | (fraction << 13));
  }
  template <typename T>
  static Vec load(const T* from) {
    return Vec{widen(from[0]), widen(from[1]), widen(from[2]), widen(from[3])};
  }
};

}  // namespace
}  // namespace colbert_fast

#include "per_tier/no_narrow.h"

#include "per_tier/loop.h"  // uses that Isa and Narrow

namespace colbert_fast {
namespace {
const char* unsupported() { return nullptr; }
}  // namespace

constexpr Tier kPortable = tier_of("portable", &unsupported);
}  // namespace colbert_fast
