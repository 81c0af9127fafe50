// The registers of NEON, for the tiers that have nothing wider.
//
// Tile: 6 document rows x 4 vectors of 4 query tokens. Registers: 24 accumulators + 4 query vectors = 28 of
// 32, which leaves 4 for document elements. A step has 4 + 6 loads and 24 FMAs, the fewest loads of all tiles
// that fit: 8 x 3 takes 11 loads, 12 x 2 takes 14. The 24 chains cover a latency of 4 cycles on four FMA
// units, and no core has more. With two FMAs and two loads a cycle (Cortex-A72, Neoverse N1), 5 cycles of
// loads hide behind 12 of FMAs. With four and three (Neoverse V1, Apple M1), 4 cycles hide behind 6. 32 query
// tokens are two panels of 8 KiB at dim 128, and a panel has one dimension in each cache line.

#pragma once

namespace colbert_fast {
namespace {

// A document element, as the first number of a vector. FMLA and the dot products can multiply by one number
// of a vector at no cost. A load that copies the element into all numbers (LD1R) also takes a slot of the
// vector pipes, and these are the bottleneck, according to LLVM's models of Neoverse N2 and V1.
struct FirstElement {
  float32x2_t bits;

  static CF_ALWAYS_INLINE FirstElement load(const void* from) {
    float element;
    std::memcpy(&element, from, sizeof element);
    FirstElement first = {vset_lane_f32(element, vdup_n_f32(0.0f), 0)};
#if defined(__GNUC__)
    // A compiler that sees where the vector comes from makes an LD1R of it.
    __asm__("" : "+w"(first.bits));
#endif
    return first;
  }
};

struct Isa {
  using Vec = float32x4_t;
  using Idx = int32x4_t;
  static constexpr int kFloats = 4;
  static constexpr int kVecs = 4;
  static constexpr int kRows = 6;
  static constexpr bool kMasks = false;

  static CF_ALWAYS_INLINE Vec zero() { return vdupq_n_f32(0.0f); }
  static CF_ALWAYS_INLINE Vec load(const float* from) { return vld1q_f32(from); }
  static CF_ALWAYS_INLINE Idx load(const int32_t* from) { return vld1q_s32(from); }
  static CF_ALWAYS_INLINE void store(float* to, Vec value) { vst1q_f32(to, value); }
  static CF_ALWAYS_INLINE void store(int32_t* to, Idx value) { vst1q_s32(to, value); }

  static CF_ALWAYS_INLINE FirstElement broadcast(const float* from) { return FirstElement::load(from); }
  static CF_ALWAYS_INLINE Vec fma(FirstElement a, Vec b, Vec c) { return vfmaq_lane_f32(c, b, a.bits, 0); }
  static CF_ALWAYS_INLINE Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
  static CF_ALWAYS_INLINE Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
  static CF_ALWAYS_INLINE Vec multiply(Vec a, float b) { return vmulq_n_f32(a, b); }

  // FMAX returns NaN if either operand is NaN.
  static CF_ALWAYS_INLINE void update(Vec& best, Vec value) { best = vmaxq_f32(best, value); }
  // "Not less or equal" is true for a value of NaN too. A best that is NaN already stays.
  static CF_ALWAYS_INLINE void update(Vec& best, Idx& arg, Vec value, int32_t row) {
    const uint32x4_t wins = vbicq_u32(vceqq_f32(best, best), vcleq_f32(value, best));
    best = vbslq_f32(wins, value, best);
    arg = vbslq_s32(wins, vdupq_n_s32(row), arg);
  }

  static CF_ALWAYS_INLINE void transpose(float32x4_t (&rows)[4]) {
    const float32x4x2_t upper = vtrnq_f32(rows[0], rows[1]);
    const float32x4x2_t lower = vtrnq_f32(rows[2], rows[3]);
    for (int c = 0; c < 2; ++c) {
      rows[c] = vcombine_f32(vget_low_f32(upper.val[c]), vget_low_f32(lower.val[c]));
      rows[2 + c] = vcombine_f32(vget_high_f32(upper.val[c]), vget_high_f32(lower.val[c]));
    }
  }

  // For screening.
  static CF_ALWAYS_INLINE Vec everywhere(float value) { return vdupq_n_f32(value); }
  static CF_ALWAYS_INLINE Idx everywhere(int32_t value) { return vdupq_n_s32(value); }
  static CF_ALWAYS_INLINE Vec to_float(Idx value) { return vcvtq_f32_s32(value); }
  static CF_ALWAYS_INLINE Idx add(Idx a, Idx b) { return vaddq_s32(a, b); }
  static CF_ALWAYS_INLINE Vec multiply(Vec a, Vec b) { return vmulq_f32(a, b); }
  static CF_ALWAYS_INLINE Vec subtract_product(Vec a, Vec b, Vec c) { return vfmsq_f32(a, b, c); }
  static CF_ALWAYS_INLINE void update_larger(Vec& best, Idx& arg, Vec value, int32_t row) {
    const uint32x4_t larger = vcgtq_f32(value, best);
    best = vmaxq_f32(best, value);
    arg = vbslq_s32(larger, vdupq_n_s32(row), arg);
  }
  static CF_ALWAYS_INLINE Vec max(Vec a, Vec b) { return vmaxq_f32(a, b); }
  static CF_ALWAYS_INLINE Vec magnitude(Vec value) { return vabsq_f32(value); }
  static CF_ALWAYS_INLINE Vec larger_magnitude(Vec a, Vec b) { return vmaxq_f32(a, vabsq_f32(b)); }
  static CF_ALWAYS_INLINE float sum(Vec value) { return vaddvq_f32(value); }
  static CF_ALWAYS_INLINE float largest(Vec value) { return vmaxvq_f32(value); }
  static CF_ALWAYS_INLINE uint32_t at_least(Vec value, Vec threshold) {
    const uint32_t bits[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vcgeq_f32(value, threshold), vld1q_u32(bits)));
  }

  static CF_ALWAYS_INLINE Vec load_bits(const int8_t* from) { return vreinterpretq_f32_s8(vld1q_s8(from)); }
  template <int kByte>
  static CF_ALWAYS_INLINE Vec int8_to_float(Vec bits) {
    const int32x4_t highest = vshlq_n_s32(vreinterpretq_s32_f32(bits), 24 - 8 * kByte);
    return vcvtq_f32_s32(vshrq_n_s32(highest, 24));
  }

  static CF_ALWAYS_INLINE uint16x4_t load4(const void* from) {
    uint16x4_t bits;
    std::memcpy(&bits, from, sizeof bits);
    return bits;
  }
  static CF_ALWAYS_INLINE Vec load(const BFloat16* from) {
    return vreinterpretq_f32_u32(vshll_n_u16(load4(from), 16));
  }
  static CF_ALWAYS_INLINE Vec load(const Float16* from) {
    return vcvt_f32_f16(vreinterpret_f16_u16(load4(from)));
  }
  static CF_ALWAYS_INLINE Vec load(const int8_t* from) {
    int32_t four;
    std::memcpy(&four, from, sizeof four);
    const int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(four));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
  }
};

}  // namespace
}  // namespace colbert_fast
