// Products of int8 by FEAT_DotProd, for screen.h: SDOT multiplies four numbers by four and adds the products
// to an int32, so that a step of the tile does what takes four steps of float32, and issues as often as FMLA,
// says LLVM's model of Neoverse V1. To be included inside a target region with dotprod.

#pragma once

#include "neon_isa.h"
#include "tile.h"

namespace colbert_fast {
namespace {

// What both tiers that screen int8 have of Narrow.
struct Int8Narrow {
  static constexpr bool kFloat = false;
  static constexpr bool kInt8 = true;
  static constexpr int64_t kBytes = 4;
  static constexpr int64_t kTogether = 4;
  // Narrowing a row is less work than widening it, and its products a quarter: as on x86, where it is faster
  // from the first query token on.
  template <typename T>
  static constexpr int64_t least_lanes() {
    return 1;
  }

  static CF_ALWAYS_INLINE float32x4_t max(float32x4_t a, float32x4_t b) { return vmaxq_f32(a, b); }
  static CF_ALWAYS_INLINE bool any_at_least(float32x4_t value, float32x4_t threshold) {
    return vmaxvq_u32(vcgeq_f32(value, threshold)) != 0;
  }
  // Stores the row, and returns the sum of its squares: at most 2^15 * 2^14, so
  // that int32 holds it.
  static float narrow(const int8_t* row, int64_t dim, unsigned char* to) {
    int32x4_t squares = vdupq_n_s32(0);
    for (int64_t k = 0; k < dim; k += 16) {
      int8x16_t numbers = vdupq_n_s8(0);
      std::memcpy(&numbers, row + k, static_cast<size_t>(dim - k < 16 ? dim - k : 16));
      std::memcpy(to + k, &numbers, sizeof numbers);
      squares = vdotq_s32(squares, numbers, numbers);
    }
    return static_cast<float>(vaddvq_s32(squares));
  }
};

struct Int8Ops {
  using Unit = FourBytes;
  using Acc = int32x4_t;
  static CF_ALWAYS_INLINE Acc zero() { return vdupq_n_s32(0); }
  static CF_ALWAYS_INLINE Acc load(const Unit* from) { return vreinterpretq_s32_u8(vld1q_u8(from->bytes)); }
  static CF_ALWAYS_INLINE Lane0 broadcast(const Unit* from) { return Lane0::load(from); }
  static CF_ALWAYS_INLINE Acc fma(Lane0 unit, Acc lanes, Acc sum) {
    return vdotq_lane_s32(sum, vreinterpretq_s8_s32(lanes), vreinterpret_s8_f32(unit.bits), 0);
  }
  static CF_ALWAYS_INLINE Acc fma(Acc a, Acc b, Acc sum) {
    return vdotq_s32(sum, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
  }
};

// A sink of tile(): the products in units of each row's scale.
struct DotsOfInt8 {
  const float* scales;
  float* dots;

  template <int kRows, int kVecs>
  CF_ALWAYS_INLINE void take(const int32x4_t (&sums)[kRows][kVecs], int64_t row) const {
    CF_UNROLL
    for (int r = 0; r < kRows; ++r) {
      CF_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        Isa::store(dots + (row + r) * kPanel + v * Isa::kLanes,
                   vmulq_n_f32(vcvtq_f32_s32(sums[r][v]), scales[row + r]));
      }
    }
  }
};

template <int kVecs, int kWidth>
void products_int8(const NarrowRows& rows, const unsigned char* q, Ahead ahead, float* dots) {
  panel<Int8Ops, kVecs, kWidth>(rows, q, ahead, DotsOfInt8{rows.scales, dots});
}

}  // namespace
}  // namespace colbert_fast
