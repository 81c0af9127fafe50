// Products of int8 by FEAT_DotProd, for screen.h. Include it inside a target region with dotprod.
//
// SDOT multiplies four numbers by four numbers and adds the products to an int32. So one step of the tile
// does as much as four steps of float32. SDOT issues as often as FMLA, according to LLVM's model of Neoverse
// V1.

#pragma once

#include "tiers/neon_isa.h"

#include "per_tier/bounds.h"  // uses that Isa

namespace colbert_fast {
namespace {

// The part of Narrow that both tiers with these products share.
struct Int8Narrow {
  using Registers = Isa;
  using Exact = ExactBounds;
  static constexpr bool kLeavesFloat32 = true;
  static constexpr const Tier* kFloat32 = &kNeon;
  static constexpr int kSinkVecs = 1;
  static constexpr bool kCeilings = true;
  static constexpr int kRaise = 0;
  // These two are not measured. They are taken from avx_vnni.cpp, where a product also takes a quarter of the
  // time of float32, and narrowing has as many steps beside it.
  template <typename T>
  static constexpr int64_t least_rows(int64_t) {
    return 32;
  }
  template <typename T>
  static constexpr int64_t least_lanes() {
    return std::is_same<T, float>::value ? 9 : 1;
  }

  // The sum of the squares is at most 2^15 * 2^14, so int32 holds it. Nothing was added to the lanes.
  static RowSums sums(const int8_t* row, int64_t dim) {
    int32x4_t squares = vdupq_n_s32(0);
    for (int64_t k = 0; k < dim; k += 16) {
      int8_t tail[16];
      const int8x16_t numbers = vld1q_s8(all_or_tail(row + k, dim - k, tail));
      squares = vdotq_s32(squares, numbers, numbers);
    }
    return {vaddvq_s32(squares), 0};
  }
  static CF_ALWAYS_INLINE int16x4_t nearest(float32x4_t value) { return vmovn_s32(vcvtnq_s32_f32(value)); }
  static CF_ALWAYS_INLINE void store_levels(const float32x4_t (&numbers)[4], unsigned char* to) {
    const int16x8_t low = vcombine_s16(nearest(numbers[0]), nearest(numbers[1]));
    const int16x8_t high = vcombine_s16(nearest(numbers[2]), nearest(numbers[3]));
    vst1q_u8(to, vreinterpretq_u8_s8(vcombine_s8(vqmovn_s16(low), vqmovn_s16(high))));
  }
};

struct Int8Ops {
  using Element = FourBytes;
  using Acc = int32x4_t;
  static constexpr int64_t kBlock = 0;
  static CF_ALWAYS_INLINE Acc zero() { return vdupq_n_s32(0); }
  static CF_ALWAYS_INLINE Acc load(const Element* from) {
    return vreinterpretq_s32_u8(vld1q_u8(from->bytes));
  }
  static CF_ALWAYS_INLINE FirstElement broadcast(const Element* from) { return FirstElement::load(from); }
  static CF_ALWAYS_INLINE Acc fma(FirstElement element, Acc lanes, Acc sum) {
    return vdotq_lane_s32(sum, vreinterpretq_s8_s32(lanes), vreinterpret_s8_f32(element.bits), 0);
  }
  static CF_ALWAYS_INLINE Acc fma(Acc a, Acc b, Acc sum) {
    return vdotq_s32(sum, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
  }
};

}  // namespace
}  // namespace colbert_fast
