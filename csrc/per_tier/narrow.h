// Narrow numbers, of fewer bits than float32: how queries and documents become them. This file is compiled
// once for each tier, inside the tier's target region, and includes no system header. screen.h includes it.
// screen.h also says what a tier offers as N, and its proof has the names that are used here.
//
// Rows become narrow in one of two ways. bfloat16 keeps the upper half of a rounded float32. int8 has levels
// from -127 to 127, and a scale for each row: the row is about its levels times the scale.

#pragma once

#include "per_tier/tile.h"

namespace colbert_fast {
namespace {

// Lanes and rows with a norm outside of these are not screened.
constexpr float kLeastNorm = 1.0f / (1 << 20);
constexpr float kMostNorm = 1 << 20;
constexpr float kMargin = 1.0f + 1.0f / 128;
// A row whose numbers are all smaller than this becomes zeros, because 127 over a smaller number might
// overflow.
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

// Rounds to nearest, ties to even. A NaN may become an infinity. That does no harm, because nobody uses
// the products of its lane.
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

// QUERIES. Sums over the numbers of a lane, in float32. Sums of up to 2^15 terms err by less than 2^-9, and
// their roots by half of that.
struct LaneSums {
  float squares;         // of the numbers
  float narrow_squares;  // of what they became
  float lost_squares;    // of the differences

  // Writes e / D and z / D of the proof, for rows that lose the part r = `rounding`. The error is -inf for a
  // lane of zeros, and NaN for a lane that must not be screened.
  void bound(int64_t dim, float rounding, bool zeros, float* error, float* slack) const {
    const float norm = std::sqrt(squares);
    const float narrow_norm = std::sqrt(narrow_squares);
    const float of_sums =
        kMargin * 4.0f * static_cast<float>(dim + 8) * 5.9604644775390625e-8f * (norm + narrow_norm);
    const float e = kMargin * (std::sqrt(lost_squares) + rounding * narrow_norm) + of_sums;
    const bool plain = norm >= kLeastNorm && norm <= kMostNorm;
    *slack = of_sums;
    *error = zeros   ? -std::numeric_limits<float>::infinity()
             : plain ? e
                     : std::numeric_limits<float>::quiet_NaN();
  }
};

// The address of element number `element` of a lane, in a panel [bytes / N::kTogether][width][N::kTogether /
// 4] of elements.
template <typename N>
CF_ALWAYS_INLINE unsigned char* element_of(unsigned char* panel, int64_t width, int64_t element,
                                           int64_t lane) {
  constexpr int64_t kElements = N::kTogether / 4;
  return panel + 4 * (element / kElements * kElements * width + element % kElements) + lane * N::kTogether;
}

// ROWS. They are narrowed four vectors at a time.
constexpr int64_t kFourVectors = 4 * Isa::kFloats;
// Rows that are narrowed together, so that their chains overlap.
constexpr int64_t kRowsAtOnce = 16;

// Loads `n` numbers from an address, or the first of them if there are more than four vectors take. Zeros
// follow them.
template <typename T>
CF_ALWAYS_INLINE void load_four(const T* from, int64_t n, typename Isa::Vec (&to)[4]) {
  if (n >= kFourVectors) {
    CF_UNROLL
    for (int i = 0; i < 4; ++i) to[i] = Isa::load(from + i * Isa::kFloats);
  } else {
    CF_UNROLL
    for (int i = 0; i < 4; ++i) to[i] = load_up_to(from + i * Isa::kFloats, n - i * Isa::kFloats);
  }
}

// Writes a row as int8: its numbers times `inverse_scale`, rounded. The last four vectors end in zeros.
template <typename N, typename T>
CF_ALWAYS_INLINE void levels(const T* row, float inverse_scale, int64_t dim, unsigned char* to) {
  for (int64_t k = 0; k < dim; k += kFourVectors) {
    typename Isa::Vec four[4];
    load_four(row + k, dim - k, four);
    CF_UNROLL
    for (int i = 0; i < 4; ++i) four[i] = Isa::multiply(four[i], inverse_scale);
    N::store_levels(four, to + k);
  }
}

// The largest magnitude of a row, and the sum of its squares.
struct Extent {
  float largest, squares;
};

template <typename N, typename T>
CF_ALWAYS_INLINE Extent extent(const T* row, int64_t dim) {
  using R = typename N::Registers;
  using Vec = typename Isa::Vec;
  Vec largest = Isa::zero();
  Vec squares = Isa::zero();
  Vec more_squares = Isa::zero();
  for (int64_t k = 0; k < dim; k += kFourVectors) {
    Vec x[4];
    load_four(row + k, dim - k, x);
    const Vec of_four = R::max(R::max(R::magnitude(x[0]), R::magnitude(x[1])),
                               R::max(R::magnitude(x[2]), R::magnitude(x[3])));
    largest = R::max(largest, of_four);
    squares = Isa::fma(x[2], x[2], Isa::fma(x[0], x[0], squares));
    more_squares = Isa::fma(x[3], x[3], Isa::fma(x[1], x[1], more_squares));
  }
  return {R::largest(largest), R::sum(Isa::add(squares, more_squares))};
}

// Packs one panel of lanes, [dim][kWidth] of float32, as elements of two bfloat16 numbers. Loops over lanes
// have a constant length, so that the compiler vectorises them. Sets the lane's floor of bfloat16.h: 2^30 A,
// 0 for a lane of zeros, NaN for a lane with a number that is denormal or not finite.
template <typename N, int kWidth>
void narrow_panel_bfloat16(int64_t dim, int64_t lane, unsigned char* to, Scratch& s) {
  const float* packed = s.float32_queries + lane * dim;
  const float zeros[kWidth] = {};
  for (int64_t element = 0; element < narrow_bytes<N, BFloat16>(dim) / 4; ++element) {
    const float* low = 2 * element < dim ? packed + 2 * element * kWidth : zeros;
    const float* high = 2 * element + 1 < dim ? low + kWidth : zeros;
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
  for (int64_t k = 0; k < dim; ++k) {
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
        (total[l] + 2.0f * static_cast<float>(dim)) * 1.2621774483536189e-29f;  // 2^-126 * 2^30
    s.lane_floor[lane + l] = !plain             ? std::numeric_limits<float>::quiet_NaN()
                             : total[l] == 0.0f ? 0.0f
                                                : flushed;
    LaneSums{squares[l], narrow_squares[l], lost_squares[l]}.bound(
        dim, 1.0f / 256, total[l] == 0.0f, s.lane_error + lane + l, s.lane_slack + lane + l);
    s.lane_scale[lane + l] = 1.0f;
    s.lane_spread[lane + l] = 0.0f;
  }
}

// Packs lane `begin` + l as int8, as lane l of the panel at `to`. There may be fewer lanes than the panel
// has; the others are zeros. `exact`: the rows were int8 before, so that narrowing loses nothing of them, and
// the lane is raised instead. A product is multiplied by lane_scale, and lane_error is divided by it.
template <typename N>
void narrow_lane_int8(int64_t dim, int64_t begin, int64_t l, int64_t width, bool exact, unsigned char* to,
                      Scratch& s) {
  using R = typename N::Registers;
  using Vec = typename Isa::Vec;
  const int64_t lane = begin + l;
  const float* row = s.query_rows + lane * dim;
  const Extent of_row = extent<N>(row, dim);
  // Lanes with larger or smaller numbers are not screened. Neither is a lane with a NaN, because its norm is
  // NaN.
  const bool usable = of_row.largest >= 1e-30f && of_row.largest <= 1e30f;
  const float scale = usable ? of_row.largest / 127.0f : 1.0f;

  unsigned char* of_lane = s.narrow_rows;  // which holds no rows yet
  levels<N>(row, usable ? 127.0f / of_row.largest : 0.0f, dim, of_lane);
  constexpr uint32_t kRaised = N::kRaise * 0x01010101u;
  const int64_t whole = (dim + kFourVectors - 1) / kFourVectors * kFourVectors;
  for (int64_t element = 0; element < whole / 4; ++element) {
    uint32_t four;
    std::memcpy(&four, of_lane + 4 * element, 4);
    const uint32_t level = four ^ kRaised;
    std::memcpy(of_lane + 4 * element, &level, 4);
    if (4 * element < narrow_bytes<N, int8_t>(dim))
      std::memcpy(element_of<N>(to, width, element, l), exact ? &four : &level, 4);
  }

  Vec total = Isa::zero();
  Vec squares = Isa::zero();
  Vec lost = Isa::zero();
  for (int64_t k = 0; k < dim; k += Isa::kFloats) {
    const Vec level = Isa::load(reinterpret_cast<const int8_t*>(of_lane) + k);
    const Vec difference = Isa::add(load_up_to(row + k, dim - k), Isa::multiply(level, -scale));
    total = Isa::add(total, level);
    squares = Isa::fma(level, level, squares);
    lost = Isa::fma(difference, difference, lost);
  }
  const float level_squares = R::sum(squares);
  const bool zeros = of_row.largest == 0.0f && of_row.squares == 0.0f;  // and no NaN
  LaneSums{of_row.squares, level_squares * scale * scale, R::sum(lost)}.bound(
      dim, 0.0f, zeros, s.lane_error + lane, s.lane_slack + lane);
  s.lane_error[lane] /= scale;
  s.lane_scale[lane] = scale;
  // B_j / s_j, divided by the lane's scale. It is below 2^22, because levels are at most 127 and dim is at
  // most 2^15. It is 0 for a lane of zeros, so that the guess of this lane is the first row.
  const float b =
      exact ? 0.0f : 0.5f * std::sqrt(static_cast<float>(dim)) * kMargin * std::sqrt(level_squares);
  const int32_t whole_b = b == 0.0f ? 0 : static_cast<int32_t>(b) + 1;
  s.lane_spread[lane] = static_cast<float>(2 * whole_b);
  s.lane_offset[lane] = exact ? 0 : whole_b - N::kRaise * static_cast<int32_t>(R::sum(total));
}

// DOCUMENTS. Rows of numbers that are multiplied as they are: where they are, or, if they need to be padded,
// in `to`.
template <typename N, typename T>
NarrowRows as_they_are(Rows<T> rows, unsigned char* to) {
  const int64_t bytes = narrow_bytes<N, T>(rows.dim);
  const size_t used = static_cast<size_t>(rows.dim) * sizeof(T);
  const int64_t stride = rows.stride * static_cast<int64_t>(sizeof(T));
  const unsigned char* from = reinterpret_cast<const unsigned char*>(rows.data);
  if (used == static_cast<size_t>(bytes) && stride % 4 == 0) return {from, stride, bytes, rows.count};
  for (int64_t r = 0; r < rows.count; ++r) {
    std::memcpy(to + r * bytes, from + r * stride, used);
    std::memset(to + r * bytes + used, 0, static_cast<size_t>(bytes) - used);
  }
  return {to, bytes, bytes, rows.count};
}

// D of the proof, from the largest ||d||^2; infinity if the rows must not be screened.
inline float largest_norm(float squares) {
  const bool plain = squares >= kLeastNorm * kLeastNorm && squares <= kMostNorm * kMostNorm;
  return plain ? std::sqrt(squares) * kMargin : std::numeric_limits<float>::infinity();
}

// The largest of the squares of rows, or infinity if one of them is not finite.
struct MostSquares {
  float most = 0.0f;
  bool finite = true;

  CF_ALWAYS_INLINE void take(float squares) {
    // False for NaN.
    finite &= squares <= std::numeric_limits<float>::max();
    most = squares > most ? squares : most;
  }
  float value() const { return finite ? most : std::numeric_limits<float>::infinity(); }
};

// Finds what rows of int8, from row number `first` of a chunk on, need beside their numbers. Returns the
// largest ||d||^2 as narrow_rows() does.
template <typename N>
float sum_rows(Rows<int8_t> rows, int64_t first, Scratch& s) {
  using R = typename N::Registers;
  using Vec = typename Isa::Vec;
  Vec most = Isa::zero();
  Vec all = Isa::zero();  // a maximum may lose a NaN
  for (int64_t begin = 0; begin < rows.count; begin += Isa::kFloats) {
    const int64_t n = rows.count - begin < Isa::kFloats ? rows.count - begin : Isa::kFloats;
    int32_t squares[Isa::kFloats] = {};
    for (int64_t r = 0; r < n; ++r) {
      const RowSums sums = N::sums(rows.row(begin + r), rows.dim);
      squares[r] = sums.squares;
      s.row_offset[first + begin + r] = -sums.excess;
      s.row_scales[first + begin + r] = rows.scale(begin + r);
    }
    const Vec scale = n == Isa::kFloats ? Isa::load(s.row_scales + first + begin)
                                        : load_tail(s.row_scales + first + begin, n);
    const Vec product = R::multiply(R::multiply(R::to_float(Isa::load(squares)), scale), scale);
    most = R::max(most, product);
    all = Isa::add(all, product);
  }
  const bool finite = R::sum(all) <= std::numeric_limits<float>::max();
  return finite ? R::largest(most) : std::numeric_limits<float>::infinity();
}

// Writes rows as Numbers into s.narrow_rows, and what the products of each row are multiplied by into
// s.row_scales. Returns the largest ||d||^2 of the rows; it is not finite if one of their numbers is not.
template <typename N, typename Number, typename T>
float narrow_rows(Rows<T> rows, Scratch& s) {
  const int64_t bytes = narrow_bytes<N, Number>(rows.dim);
  MostSquares most;
  if constexpr (std::is_same<Number, BFloat16>::value) {
    for (int64_t r = 0; r < rows.count; ++r) {
      s.row_scales[r] = 1.0f;
      most.take(N::narrow(rows.row(r), rows.dim, s.narrow_rows + r * bytes));
    }
  } else {
    for (int64_t begin = 0; begin < rows.count; begin += kRowsAtOnce) {
      const int64_t n = rows.count - begin < kRowsAtOnce ? rows.count - begin : kRowsAtOnce;
      float largest[kRowsAtOnce];
      float inverse_scale[kRowsAtOnce];
      for (int64_t r = 0; r < n; ++r) {
        const Extent of_row = extent<N>(rows.row(begin + r), rows.dim);
        largest[r] = of_row.largest;
        most.take(of_row.squares);
      }
      for (int64_t r = 0; r < n; ++r) {
        const bool usable = largest[r] >= kLeastNumber;
        s.row_scales[begin + r] = usable ? largest[r] / 127.0f : 2.0f * kLeastNumber;
        inverse_scale[r] = usable ? 127.0f / largest[r] : 0.0f;
      }
      for (int64_t r = 0; r < n; ++r)
        levels<N>(rows.row(begin + r), inverse_scale[r], rows.dim, s.narrow_rows + (begin + r) * bytes);
    }
  }
  return most.value();
}

// What narrowing finds out about the rows of a chunk.
struct Found {
  float largest;  // the largest magnitude of their numbers
  float squares;  // D^2; not finite if a number is not
};

// Writes rows as levels, where `top` becomes 127. Numbers that are larger become any level.
template <typename N, typename T>
Found levels_below(Rows<T> rows, float top, Scratch& s) {
  using R = typename N::Registers;
  using Vec = typename Isa::Vec;
  const int64_t bytes = narrow_bytes<N, int8_t>(rows.dim);
  const Vec factor = R::everywhere(127.0f / top);
  Vec largest[2] = {Isa::zero(), Isa::zero()};
  float most = 0.0f;
  Vec all_squares = Isa::zero();  // a maximum may lose a NaN
  for (int64_t r = 0; r < rows.count; ++r) {
    const T* row = rows.row(r);
    Vec squares[2] = {Isa::zero(), Isa::zero()};
    for (int64_t k = 0; k < rows.dim; k += kFourVectors) {
      Vec four[4];
      load_four(row + k, rows.dim - k, four);
      CF_UNROLL
      for (int i = 0; i < 4; ++i) {
        largest[i % 2] = R::larger_magnitude(largest[i % 2], four[i]);
        squares[i % 2] = Isa::fma(four[i], four[i], squares[i % 2]);
        four[i] = R::multiply(four[i], factor);
      }
      N::store_levels(four, s.narrow_rows + r * bytes + k);
    }
    const Vec both = Isa::add(squares[0], squares[1]);
    const float sum = R::sum(both);
    most = sum > most ? sum : most;
    all_squares = Isa::add(all_squares, both);
    s.row_scales[r] = top / 127.0f;
  }
  const bool finite = R::sum(all_squares) <= std::numeric_limits<float>::max();
  return {R::largest(R::max(largest[0], largest[1])), finite ? most : std::numeric_limits<float>::infinity()};
}

// Writes rows as int8 with one scale for all of them, and returns D^2. It tries the scale of the chunk
// before, because chunks are alike. If that does not fit, the rows are written a second time.
template <typename N, typename T>
float narrow_together(Rows<T> rows, Scratch& s) {
  if (!(s.top >= kLeastNumber)) s.top = kLeastNumber;
  const Found found = levels_below<N>(rows, s.top, s);
  const bool fits = found.largest <= s.top && (2.0f * found.largest >= s.top || s.top == kLeastNumber);
  if (fits) return found.squares;
  // A little more, so that not every chunk with a new largest number is written twice.
  s.top = 1.0625f * found.largest > kLeastNumber ? 1.0625f * found.largest : kLeastNumber;
  return levels_below<N>(rows, s.top, s).squares;
}

}  // namespace
}  // namespace colbert_fast
