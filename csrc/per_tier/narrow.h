// Numbers of fewer bits: what screen.h multiplies in place of float32. screen.h has the names of the proof,
// and what a tier has to offer as N.
#pragma once

#include "per_tier/tile.h"

namespace colbert_fast {
namespace {

constexpr float kLeastNorm = 1.0f / (1 << 20);
constexpr float kMostNorm = 1 << 20;
constexpr float kMargin = 1.0f + 1.0f / 128;
// A row with no number of this size becomes zeros: 127 over less might overflow.
constexpr float kLeastNumber = 8.67361737988403547e-19f;  // 2^-60

template <typename Number>
struct SizeOf {
  static constexpr int64_t kBytes = std::is_same<Number, int8_t>::value ? 1 : 2;
};

// The bytes of `dim` numbers, padded.
template <typename N, typename Number>
int64_t narrow_bytes(int64_t dim) {
  return (SizeOf<Number>::kBytes * dim + N::kBytes - 1) / N::kBytes * N::kBytes;
}

// Round to nearest, ties to even. NaN may become Inf: nobody multiplies it.
inline uint32_t bfloat16_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

inline float from_bfloat16(uint32_t bits) {
  bits <<= 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// QUERIES. What is known of a lane, in float32: sums of up to 2^15 terms err by less than 2^-9, and their
// roots by half of that.
struct LaneSums {
  float squares;         // of the numbers
  float narrow_squares;  // of what they became
  float lost_squares;    // of the differences

  // e / D of screen.h for rows of which a part of `rounding` is lost, and its part that is the rounding of
  // float32. -inf for a lane of zeros, NaN for one not to be screened.
  void bound(int64_t dim, float rounding, bool zeros, float* error, float* slack) const {
    const float norm = std::sqrt(squares);
    const float narrow_norm = std::sqrt(narrow_squares);
    const float of_float32 =
        kMargin * 4.0f * static_cast<float>(dim + 8) * 5.9604644775390625e-8f * (norm + narrow_norm);
    const float e = kMargin * (std::sqrt(lost_squares) + rounding * narrow_norm) + of_float32;
    const bool plain = norm >= kLeastNorm && norm <= kMostNorm;
    *slack = of_float32;
    *error = zeros   ? -std::numeric_limits<float>::infinity()
             : plain ? e
                     : std::numeric_limits<float>::quiet_NaN();
  }
};

// Where a lane's element is in a panel [bytes / N::kTogether][width][N::kTogether / 4].
template <typename N>
CF_ALWAYS_INLINE unsigned char* element_of(unsigned char* panel, int64_t width, int64_t element,
                                           int64_t lane) {
  constexpr int64_t kElements = N::kTogether / 4;
  return panel + 4 * (element / kElements * kElements * width + element % kElements) + lane * N::kTogether;
}

// ROWS. Tiers are given those of a multiple of N::kAtOnce numbers, 4 vectors or more: others are copied.
template <typename N>
constexpr int64_t padded_dim(int64_t dim) {
  return (dim + N::kAtOnce - 1) / N::kAtOnce * N::kAtOnce;
}

template <typename N, typename T>
CF_ALWAYS_INLINE const T* padded(const T* row, int64_t dim, T* to) {
  if (dim == padded_dim<N>(dim)) return row;
  std::memcpy(to, row, static_cast<size_t>(dim) * sizeof(T));
  std::memset(to + dim, 0, static_cast<size_t>(padded_dim<N>(dim) - dim) * sizeof(T));
  return to;
}

// The largest magnitude of a row of a multiple of 4 vectors, and the sum of its squares.
struct Extent {
  float largest, squares;
};

template <typename N, typename T>
CF_ALWAYS_INLINE Extent extent(const T* row, int64_t dim) {
  using Vec = typename Isa::Vec;
  Vec largest = Isa::zero();
  Vec squares = Isa::zero();
  Vec more_squares = Isa::zero();
  for (int64_t k = 0; k < dim; k += 4 * Isa::kFloats) {
    const Vec a = Isa::load(row + k);
    const Vec b = Isa::load(row + k + Isa::kFloats);
    const Vec c = Isa::load(row + k + 2 * Isa::kFloats);
    const Vec d = Isa::load(row + k + 3 * Isa::kFloats);
    const Vec of_four =
        N::max(N::max(N::magnitude(a), N::magnitude(b)), N::max(N::magnitude(c), N::magnitude(d)));
    largest = N::max(largest, of_four);
    squares = Isa::fma(c, c, Isa::fma(a, a, squares));
    more_squares = Isa::fma(d, d, Isa::fma(b, b, more_squares));
  }
  return {N::largest(largest), N::sum(Isa::add(squares, more_squares))};
}

// One panel of packed lanes [dim][kWidth] into elements of two bfloat16. Every loop over lanes is one of
// constant length, for the compiler to vectorise. `floor` is 2^30 A of the lane, 0 if it is all zeros, NaN if
// it has numbers that are denormal or not finite.
template <typename N, int kWidth>
void narrow_panel_bfloat16(const Problem& p, int64_t lane, unsigned char* to, Scratch& s) {
  const float* packed = s.float32_queries + lane * p.dim;
  const float zeros[kWidth] = {};
  for (int64_t element = 0; element < narrow_bytes<N, BFloat16>(p.dim) / 4; ++element) {
    const float* low = 2 * element < p.dim ? packed + 2 * element * kWidth : zeros;
    const float* high = 2 * element + 1 < p.dim ? low + kWidth : zeros;
    uint32_t both[kWidth];
    for (int l = 0; l < kWidth; ++l) both[l] = bfloat16_bits(low[l]) | (bfloat16_bits(high[l]) << 16);
    for (int l = 0; l < kWidth; ++l) std::memcpy(element_of<N>(to, kWidth, element, l), both + l, 4);
  }
  float squares[kWidth] = {};
  float narrow_squares[kWidth] = {};
  float lost_squares[kWidth] = {};
  float total[kWidth] = {};
  float least[kWidth];
  for (int l = 0; l < kWidth; ++l) least[l] = std::numeric_limits<float>::max();
  for (int64_t k = 0; k < p.dim; ++k) {
    const float* from = packed + k * kWidth;
    for (int l = 0; l < kWidth; ++l) {
      const float value = from[l];
      const float rounded = from_bfloat16(bfloat16_bits(value));
      const float magnitude = std::fabs(value);
      squares[l] += value * value;
      narrow_squares[l] += rounded * rounded;
      lost_squares[l] += (value - rounded) * (value - rounded);
      total[l] += magnitude;
      const float counted = magnitude == 0.0f ? least[l] : magnitude;
      least[l] = counted < least[l] ? counted : least[l];
    }
  }
  for (int l = 0; l < kWidth; ++l) {
    const bool plain =
        least[l] >= std::numeric_limits<float>::min() && total[l] <= std::numeric_limits<float>::max();
    const float flushed =
        (total[l] + 2.0f * static_cast<float>(p.dim)) * 1.2621774483536189e-29f;  // 2^-126 * 2^30
    s.lane_floor[lane + l] = !plain             ? std::numeric_limits<float>::quiet_NaN()
                             : total[l] == 0.0f ? 0.0f
                                                : flushed;
    LaneSums{squares[l], narrow_squares[l], lost_squares[l]}.bound(
        p.dim, 1.0f / 256, total[l] == 0.0f, s.lane_error + lane + l, s.lane_slack + lane + l);
    s.lane_scale[lane + l] = 1.0f;
    s.lane_spread[lane + l] = 0.0f;
  }
}

// Lane `begin` + l, of zeros if there is none, as that lane of a panel of int8 at `to`, for rows that are
// int8 too, `exact`, or become it. What products are in units of, lane_scale, is that of lane_error too.
template <typename N>
void narrow_lane_int8(const Problem& p, int64_t begin, int64_t l, int64_t width, bool exact,
                      unsigned char* to, Scratch& s) {
  using Vec = typename Isa::Vec;
  const int64_t lane = begin + l;
  const int64_t whole = padded_dim<N>(p.dim);
  const float* row = padded<N>(s.query_rows + lane * p.dim, p.dim, s.padded_rows);
  const Extent of_row = extent<N>(row, whole);
  // A lane outside is not screened, nor is one with a NaN, whose norm is NaN.
  const bool usable = of_row.largest >= 1e-30f && of_row.largest <= 1e30f;
  const float scale = usable ? of_row.largest / 127.0f : 1.0f;

  unsigned char* levels = s.narrow_rows;  // nothing else is there yet
  N::levels(row, usable ? 127.0f / of_row.largest : 0.0f, whole, levels);
  constexpr uint32_t kRaised = N::kRaise * 0x01010101u;
  for (int64_t element = 0; element < whole / 4; ++element) {
    uint32_t four;
    std::memcpy(&four, levels + 4 * element, 4);
    four ^= kRaised;
    std::memcpy(levels + 4 * element, &four, 4);
    if (4 * element < narrow_bytes<N, int8_t>(p.dim))
      std::memcpy(element_of<N>(to, width, element, l), &four, 4);
  }

  Vec total = Isa::zero();
  Vec squares = Isa::zero();
  Vec lost = Isa::zero();
  for (int64_t k = 0; k < whole; k += Isa::kFloats) {
    const Vec level = Isa::load(reinterpret_cast<const int8_t*>(levels) + k);
    const Vec difference = Isa::add(Isa::load(row + k), Isa::multiply(level, -scale));
    total = Isa::add(total, level);
    squares = Isa::fma(level, level, squares);
    lost = Isa::fma(difference, difference, lost);
  }
  const float level_squares = N::sum(squares);
  const bool zeros = of_row.largest == 0.0f && of_row.squares == 0.0f;  // and no NaN
  LaneSums{of_row.squares, level_squares * scale * scale, N::sum(lost)}.bound(
      p.dim, 0.0f, zeros, s.lane_error + lane, s.lane_slack + lane);
  s.lane_error[lane] /= scale;
  s.lane_scale[lane] = scale;
  // Below 2^22, as levels are at most 127 and dim 2^15. 0 for a lane of zeros, whose guess is the first row.
  const float b =
      exact ? 0.0f : 0.5f * std::sqrt(static_cast<float>(p.dim)) * kMargin * std::sqrt(level_squares);
  const int32_t whole_b = b == 0.0f ? 0 : static_cast<int32_t>(b) + 1;
  s.lane_spread[lane] = static_cast<float>(2 * whole_b);
  s.lane_offset[lane] = whole_b - N::kRaise * static_cast<int32_t>(N::sum(total));
}

// DOCUMENTS. `count` rows as Numbers, `bytes` apart, and what each is multiplied by. Returns the largest
// ||d||^2 of them, not finite if a number is not.
template <typename N, typename Number, typename T>
float narrow_rows(const T* rows, int64_t row_stride, int64_t dim, const float* row_scales, int64_t first_row,
                  int64_t count, Scratch& s) {
  const int64_t bytes = narrow_bytes<N, Number>(dim);
  const int64_t whole = padded_dim<N>(dim);
  T* copies = reinterpret_cast<T*>(s.padded_rows);
  float most = 0.0f;
  bool finite = true;
  const auto take = [&](float squares) {
    // False for NaN.
    finite &= squares <= std::numeric_limits<float>::max();
    most = squares > most ? squares : most;
  };
  if constexpr (std::is_same<Number, BFloat16>::value || std::is_same<T, int8_t>::value) {
    for (int64_t r = 0; r < count; ++r) {
      const T* row = padded<N>(rows + r * row_stride, dim, copies);
      const float squares = N::narrow(row, whole, s.narrow_rows + r * bytes);
      s.row_scales[r] = std::is_same<T, int8_t>::value ? row_scales[first_row + r] : 1.0f;
      take(squares * s.row_scales[r] * s.row_scales[r]);
    }
  } else {
    for (int64_t begin = 0; begin < count; begin += kRowsAtOnce) {
      const int64_t n = count - begin < kRowsAtOnce ? count - begin : kRowsAtOnce;
      const T* at[kRowsAtOnce];
      float largest[kRowsAtOnce];
      float inverse_scale[kRowsAtOnce];
      for (int64_t r = 0; r < n; ++r) {
        at[r] = padded<N>(rows + (begin + r) * row_stride, dim, copies + r * whole);
        const Extent of_row = extent<N>(at[r], whole);
        largest[r] = of_row.largest;
        take(of_row.squares);
      }
      for (int64_t r = 0; r < n; ++r) {
        const bool usable = largest[r] >= kLeastNumber;
        s.row_scales[begin + r] = usable ? largest[r] / 127.0f : 2.0f * kLeastNumber;
        inverse_scale[r] = usable ? 127.0f / largest[r] : 0.0f;
      }
      for (int64_t r = 0; r < n; ++r)
        N::levels(at[r], inverse_scale[r], whole, s.narrow_rows + (begin + r) * bytes);
    }
  }
  return finite ? most : std::numeric_limits<float>::infinity();
}

}  // namespace
}  // namespace colbert_fast
