// Products of int8 by AVX512-VNNI, for screen.h. Include it inside a target region with avx512vnni.
//
// vpdpbusd multiplies four unsigned by four signed numbers and adds the products to an int32. So one step of
// the tile does as much as four steps of float32.
//
// Because one side is unsigned, rows that become int8 are stored as d + 128. This adds 128 * (the sum of a
// lane's numbers) to the products of the lane, and the offset of Bounds takes it off again. Rows that were
// int8 before are multiplied where they are, and 128 is added to the numbers of lanes instead. Accumulators
// that begin with the offset would save an addition a row, but then GCC 12 keeps them in memory, which
// takes 1.6 times as long.

#pragma once

#include "tiers/avx512_isa.h"

#include "per_tier/bounds.h"  // uses that Isa

namespace colbert_fast {
namespace {

// The part of Narrow that all tiers with these products share.
struct Int8Narrow {
  using Registers = Isa;
  using Exact = ExactBounds;
  static constexpr bool kLeavesFloat32 = true;
  static constexpr const Tier* kFloat32 = &kAvx512;
  static constexpr int64_t kBytes = 4;
  static constexpr int64_t kTogether = 4;
  static constexpr int kSinkVecs = Isa::kVecs;
  // screen.h says how to measure. For 32 query tokens of float32, in ns a document token, screened and not:
  // 38 and 36 for documents of 32 tokens, 36 and 36 for 40, 29 and 35 for 73.
  template <typename T>
  static constexpr int64_t least_rows(int64_t) {
    return 40;
  }
};

struct Int8Ops {
  using Element = FourBytes;
  using Acc = __m512i;
  static constexpr int64_t kBlock = 0;
  static CF_ALWAYS_INLINE Acc zero() { return _mm512_setzero_si512(); }
  static CF_ALWAYS_INLINE Acc load(const Element* from) { return _mm512_loadu_si512(from); }
  static CF_ALWAYS_INLINE Acc broadcast(const Element* from) { return _mm512_set1_epi32(bits_of(from)); }
  static CF_ALWAYS_INLINE Acc fma(Acc element, Acc lanes, Acc sum) {
    return _mm512_dpbusd_epi32(sum, element, lanes);
  }
};

// The same for rows as they are, whose numbers are signed. 128 was added to the numbers of the lanes.
struct RaisedLanesOps : Int8Ops {
  static CF_ALWAYS_INLINE Acc fma(Acc element, Acc lanes, Acc sum) {
    return _mm512_dpbusd_epi32(sum, lanes, element);
  }
};

// The sum of d^2 is the sum of (d + 128) d minus the sum of 128 d. For 2^15 numbers both are below 2^31.
inline RowSums sums_of_int8(const int8_t* row, int64_t dim) {
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
  __m512i raised = _mm512_setzero_si512();
  __m512i excess = _mm512_setzero_si512();
  const auto take = [&](__m512i numbers) {
    raised = _mm512_dpbusd_epi32(raised, _mm512_xor_si512(numbers, sign), numbers);
    excess = _mm512_dpbusd_epi32(excess, sign, numbers);
  };
  int64_t k = 0;
  for (; k + 64 <= dim; k += 64) take(_mm512_loadu_si512(row + k));
  if (k < dim) take(_mm512_maskz_loadu_epi8((uint64_t{1} << (dim - k)) - 1, row + k));
  // Both sums are added up side by side.
  const __m512i squares = _mm512_sub_epi32(raised, excess);
  const __m256i a = _mm256_add_epi32(_mm512_castsi512_si256(squares), _mm512_extracti64x4_epi64(squares, 1));
  const __m256i b = _mm256_add_epi32(_mm512_castsi512_si256(excess), _mm512_extracti64x4_epi64(excess, 1));
  const __m256i pairs = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
  const __m128i both = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  RowSums sums;
  _mm_storel_epi64(reinterpret_cast<__m128i*>(&sums), both);
  return sums;
}

CF_ALWAYS_INLINE __m512i nearest(__m512 value) {
  return _mm512_cvt_roundps_epi32(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// Stores level + kRaise for each of 64 numbers.
template <int kRaise>
CF_ALWAYS_INLINE void store_levels_int8(const __m512 (&numbers)[4], unsigned char* to) {
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(kRaise));
  // Packing works within parts of 128 bits; this order puts the numbers right.
  const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i low = _mm512_packs_epi32(nearest(numbers[0]), nearest(numbers[1]));
  const __m512i high = _mm512_packs_epi32(nearest(numbers[2]), nearest(numbers[3]));
  const __m512i packed = _mm512_permutexvar_epi32(in_order, _mm512_packs_epi16(low, high));
  _mm512_storeu_si512(to, _mm512_xor_si512(packed, sign));
}

// The part of Narrow that the tiers share which screen everything in int8.
//
// For least_lanes(), in ns a document token, not screened and screened; screen.h says how to measure.
// float32: 36 and 23 for 32 query tokens, 138 and 63 for 128; on Zen 4, 49 and 42 for 10, 53 and 47 for 16.
// float16: 26 and 18 for 1, 42 and 24 for 32. int8: 28 and 10 for 1. A vector of lanes takes as long for one
// lane as for 16.
struct RaisedInt8Narrow : Int8Narrow {
  template <typename T>
  using Screen = int8_t;
  static constexpr bool kCeilings = true;
  static constexpr int kRaise = 128;

  static CF_ALWAYS_INLINE void store_levels(const __m512 (&numbers)[4], unsigned char* to) {
    store_levels_int8<128>(numbers, to);
  }

  static RowSums sums(const int8_t* row, int64_t dim) { return sums_of_int8(row, dim); }

  template <typename Number, int kVecs, int kWidth>
  static void products(const NarrowRows& rows, const unsigned char* q, Ahead ahead, const Bounds& bounds) {
    panel<Int8Ops, kVecs, kWidth>(rows, q, ahead, BoundsOfInt8<kSinkVecs>{bounds});
  }
  template <int kVecs, int kWidth, typename Sink>
  static void int8_products(const NarrowRows& rows, const unsigned char* q, Ahead ahead, const Sink& sink) {
    panel<Int8Ops, kVecs, kWidth>(rows, q, ahead, sink);
  }
  template <int kVecs, int kWidth, typename Sink>
  static void exact_products(const NarrowRows& rows, const unsigned char* q, Ahead ahead, const Sink& sink) {
    panel<RaisedLanesOps, kVecs, kWidth>(rows, q, ahead, sink);
  }
};

}  // namespace
}  // namespace colbert_fast
