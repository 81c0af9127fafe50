// The result of float32 from products of fewer bits, for a tier whose CPU multiplies bfloat16 or int8 faster
// than float32. loop.h includes it, and a tier offers, over T = float, Float16 or int8_t and
// Number = BFloat16 or int8_t, as far as kFloat and kInt8 promise them,
//
//   struct Narrow {
//     static constexpr bool kBFloat16, kFloat, kInt8;
//     static constexpr int64_t kTogether;  // bytes of a lane that lie together in a panel: 4 or 8
//     static constexpr int64_t kBytes;     // a multiple of it, to a multiple of which narrow rows are padded
//
//     // With fewer query tokens than this, screening documents of T does not pay.
//     template <typename T>
//     static constexpr int64_t least_lanes();
//
//     // The row as what is multiplied, with zeros to a multiple of kBytes; and up to kNarrowSlack bytes of
//     // any value, which the next row overwrites. Returns the sum of the squares of the row.
//     static float narrow(const T* row, int64_t dim, unsigned char* to);
//
//     // Products with kVecs vectors of a panel of kWidth lanes: dots[row * kPanel + lane].
//     template <typename Number, int kVecs, int kWidth>
//     static void products(const NarrowRows& rows, const unsigned char* q, Ahead ahead, float* dots);
//
//     // The maxima of the products of bfloat16. The first row is document token number `first_row`.
//     template <int kVecs, int kWidth, bool kArgmax>
//     static void maxima(const NarrowRows& rows, const unsigned char* q, Ahead ahead, int64_t first_row,
//                        float* best, int32_t* arg);
//
//     // Of numbers that are never NaN.
//     static Isa::Vec max(Isa::Vec, Isa::Vec);
//     static bool any_at_least(Isa::Vec value, Isa::Vec threshold);
//   };
//
// as the parameter N of what is below.
//
// BFLOAT16 INPUTS. Products of bfloat16 are exact in float32 and summed in float32, so that this is a dot
// product like that of the other tiers, but for one thing: the instructions take denormal inputs for zero and
// flush denormal sums to zero. Against query q of n numbers, this changes a dot product by at most
// A = 2^-126 (sum |q_k| + 2n), if no q_k is denormal: a flushed d_k loses |q_k d_k| < 2^-126 |q_k|, a flushed
// sum less than 2^-126, at most twice a step. Where the maximum is at least 2^30 A, that is far below one
// rounding. The other lanes, and those of queries with numbers that are denormal or not finite, are done
// again in float32.
//
// FLOAT32, FLOAT16 AND INT8 INPUTS. The tier's float32 chain f_j decides; the narrow product c_j only says
// which rows cannot win. With |c_j - f_j| <= e for all rows, a row whose f_j is the maximum has
// c_j >= max c - 2e: the others are dropped, the survivors go through the float32 tile. So the scores, the
// argmax and their ties are those of the float32 tile, to the last bit.
//
// The bound e. Let q^ and d^ be what is multiplied, u = 2^-24, and D the largest ||d_j|| of the rows at hand.
//   |<q^,d^> - <q,d>| <= ||q - q^|| ||d|| + ||q^|| ||d - d^||   (Cauchy-Schwarz)
// ||q - q^|| and ||q^|| are computed. For bfloat16, rounding to nearest of 8 significant bits gives
// ||d - d^|| <= 2^-8 ||d||; for int8 d^ = d. Each chain of n + 2 roundings errs by at most
// (n + 2) u / (1 - (n + 2) u) times the product of the norms; 4 (n + 8) u (||q|| + ||q^||) D covers both
// chains, the rounding of int8 sums to float32, and what denormals lose, since norms outside [2^-20, 2^20]
// are not screened: at most 2^-126 (2^21 + 4) n < 2^-104 n, against 4 n 2^-24 2^-40. So
//   e = D (||q - q^|| + r ||q^|| + 4 (n + 8) u (||q|| + ||q^||)),   r = 2^-8 or 0
// with a margin of 2^-7 for the arithmetic that computes it, valid for n <= 2^15 (n u <= 2^-9). This also
// keeps sums of int8 products, at most 2^15 * 255 * 127 < 2^31, within int32.
//
// About 1.7 of 300 random tokens survive for a query token, 5 if they are near duplicates, and the union over
// the lanes of a vector is what is done again. Where that is more than a third, the next chunks are not
// screened: this changes the time, and no bit of the result.

#pragma once

#include "tile.h"

namespace colbert_fast {
namespace {

constexpr int64_t kMostScreenedDim = 1 << 15;
constexpr float kLeastNorm = 1.0f / (1 << 20);
constexpr float kMostNorm = 1 << 20;
constexpr float kMargin = 1.0f + 1.0f / 128;
// Chunks that are not screened after one that was not worth it.
constexpr int64_t kRestAfterMany = 16;

template <typename N, typename T>
int64_t narrow_bytes(int64_t dim) {
  const int64_t bytes = std::is_same<T, int8_t>::value ? dim : 2 * dim;
  return (bytes + N::kBytes - 1) / N::kBytes * N::kBytes;
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

// What is known of the lanes of a panel, in float32: sums of up to 2^15 terms err by less than 2^-9, and
// their roots by half of that. Every loop over lanes is one of constant length, for the compiler to
// vectorise.
template <int kWidth>
struct LaneSums {
  float squares[kWidth] = {};         // of the numbers
  float narrow_squares[kWidth] = {};  // of what they became
  float lost_squares[kWidth] = {};    // of the differences, which are exact for bfloat16

  // e / D of the bound above, `rounding` being r; -inf for a lane of zeros, NaN for one not to be screened.
  float error(int lane, int64_t dim, float rounding, bool zeros) const {
    if (zeros) return -std::numeric_limits<float>::infinity();
    const float norm = std::sqrt(squares[lane]);
    if (!(norm >= kLeastNorm && norm <= kMostNorm)) return std::numeric_limits<float>::quiet_NaN();
    const float narrow_norm = std::sqrt(narrow_squares[lane]);
    const float slack = 4.0f * static_cast<float>(dim + 8) * 5.9604644775390625e-8f;
    const float e = std::sqrt(lost_squares[lane]) + rounding * narrow_norm + slack * (norm + narrow_norm);
    return e * kMargin;
  }
};

// Puts a unit of each lane into a panel [bytes / N::kTogether][kWidth][N::kTogether / 4].
template <typename N, int kWidth>
void store_units(const uint32_t (&units)[kWidth], int64_t unit, unsigned char* panel) {
  constexpr int64_t kUnits = N::kTogether / 4;
  unsigned char* to = panel + 4 * (unit / kUnits * kUnits * kWidth + unit % kUnits);
  for (int l = 0; l < kWidth; ++l) std::memcpy(to + l * N::kTogether, units + l, 4);
}

// One panel of packed lanes [dim][kWidth] into narrow units, two bfloat16 to a unit.
// `floor` is 2^30 A of the lane, 0 if it is all zeros, NaN if it has numbers that are denormal or not finite.
template <typename N, int kWidth>
void narrow_panel_bfloat16(const float* packed, int64_t dim, int64_t bytes, unsigned char* to, float* error,
                           float* floor) {
  const float zeros[kWidth] = {};
  for (int64_t unit = 0; unit < bytes / 4; ++unit) {
    const float* low = 2 * unit < dim ? packed + 2 * unit * kWidth : zeros;
    const float* high = 2 * unit + 1 < dim ? low + kWidth : zeros;
    uint32_t both[kWidth];
    for (int l = 0; l < kWidth; ++l) both[l] = bfloat16_bits(low[l]) | (bfloat16_bits(high[l]) << 16);
    store_units<N>(both, unit, to);
  }
  LaneSums<kWidth> sums;
  float total[kWidth] = {};
  float least[kWidth];
  for (int l = 0; l < kWidth; ++l) least[l] = std::numeric_limits<float>::max();
  for (int64_t k = 0; k < dim; ++k) {
    const float* from = packed + k * kWidth;
    for (int l = 0; l < kWidth; ++l) {
      const float value = from[l];
      const float rounded = from_bfloat16(bfloat16_bits(value));
      const float magnitude = std::fabs(value);
      sums.squares[l] += value * value;
      sums.narrow_squares[l] += rounded * rounded;
      sums.lost_squares[l] += (value - rounded) * (value - rounded);
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
    floor[l] = !plain ? std::numeric_limits<float>::quiet_NaN() : total[l] == 0.0f ? 0.0f : flushed;
    error[l] = sums.error(l, dim, 1.0f / 256, total[l] == 0.0f);
  }
}

// The same with four int8 to a unit. c_j is in units of the lane's `step`, and so is `error`; `bias` is the
// sum of the lane's int8 numbers.
template <typename N, int kWidth>
void narrow_panel_int8(const float* packed, int64_t dim, int64_t bytes, unsigned char* to, float* error,
                       float* step, int32_t* bias) {
  float most[kWidth] = {};
  for (int64_t k = 0; k < dim; ++k) {
    for (int l = 0; l < kWidth; ++l) {
      const float magnitude = std::fabs(packed[k * kWidth + l]);
      most[l] = magnitude > most[l] ? magnitude : most[l];
    }
  }
  float per_step[kWidth];
  for (int l = 0; l < kWidth; ++l) {
    // A lane outside is not screened, nor is one with a NaN, whose norm is NaN.
    const bool usable = most[l] >= 1e-30f && most[l] <= 1e30f;
    step[l] = usable ? most[l] / 127.0f : 1.0f;
    per_step[l] = usable ? 127.0f / most[l] : 0.0f;
    bias[l] = 0;
  }
  LaneSums<kWidth> sums;
  const float zeros[kWidth] = {};
  for (int64_t unit = 0; unit < bytes / 4; ++unit) {
    uint32_t four[kWidth] = {};
    for (int64_t part = 0; part < 4; ++part) {
      const float* from = 4 * unit + part < dim ? packed + (4 * unit + part) * kWidth : zeros;
      const int shift = static_cast<int>(8 * part);
      for (int l = 0; l < kWidth; ++l) {
        const float value = from[l];
        const float scaled = value * per_step[l];
        const float bounded = scaled > 127.0f ? 127.0f : scaled >= -127.0f ? scaled : -127.0f;
        const int32_t level = static_cast<int32_t>(bounded + (bounded < 0.0f ? -0.5f : 0.5f));
        const float rounded = static_cast<float>(level) * step[l];
        four[l] |= (static_cast<uint32_t>(level) & 0xff) << shift;
        bias[l] += level;
        sums.squares[l] += value * value;
        sums.narrow_squares[l] += rounded * rounded;
        sums.lost_squares[l] += (value - rounded) * (value - rounded);
      }
    }
    store_units<N>(four, unit, to);
  }
  for (int l = 0; l < kWidth; ++l) {
    const bool zeros_alone = most[l] == 0.0f && sums.squares[l] == 0.0f;  // and no NaN
    error[l] = sums.error(l, dim, 0.0f, zeros_alone) / step[l];
  }
}

// What the packed lanes need besides, for documents of T.
template <typename N, typename T, int kWidth>
void narrow_panel(const Problem& p, int64_t lane, int64_t bytes, Scratch& s) {
  const float* from = s.packed + lane * p.dim;
  unsigned char* to = s.narrow_packed + lane * bytes;
  if constexpr (std::is_same<T, int8_t>::value) {
    narrow_panel_int8<N, kWidth>(from, p.dim, bytes, to, s.lane_error + lane, s.lane_step + lane,
                                 s.lane_bias + lane);
  } else {
    narrow_panel_bfloat16<N, kWidth>(from, p.dim, bytes, to, s.lane_error + lane, s.lane_floor + lane);
    for (int64_t l = lane; l < lane + kWidth; ++l) s.lane_step[l] = 1.0f;
  }
}

template <typename N, typename T>
void narrow_lanes(const Problem& p, int64_t lanes, Scratch& s) {
  s.chunks_to_rest = 0;
  s.zero_lane = false;
  s.screens = p.dim > 0 && p.dim <= kMostScreenedDim && lanes >= N::template least_lanes<T>();
  // bfloat16 is multiplied as it is, however few the lanes.
  if (!s.screens && !std::is_same<T, BFloat16>::value) return;
  const int64_t bytes = narrow_bytes<N, T>(p.dim);
  for (int64_t lane = 0; lane < lanes; lane += kPanel) {
    if (lanes - lane > Isa::kLanes) {
      narrow_panel<N, T, kPanel>(p, lane, bytes, s);
    } else {
      narrow_panel<N, T, Isa::kLanes>(p, lane, bytes, s);
    }
  }
  for (int64_t l = 0; l < lanes; ++l) {
    s.screens &= s.lane_error[l] == s.lane_error[l];
    s.zero_lane |= s.lane_error[l] < 0.0f;
  }
}

// best = max(best, value), as Isa::update.
template <bool kArgmax>
void merge(int64_t lanes, const float* value, const int32_t* row, float* best, int32_t* arg) {
  for (int64_t l = 0; l < lanes; ++l) {
    const bool wins = !(value[l] <= best[l]) && best[l] == best[l];
    best[l] = wins ? value[l] : best[l];
    if constexpr (kArgmax) arg[l] = wins ? row[l] : arg[l];
  }
}

// The rows that may hold the maximum of one of kLanes lanes, in ascending order. Returns their number.
template <typename N>
int64_t survivors(const float* dots, int64_t count, const float* error, const float* step, const float* best,
                  float largest, bool first, int32_t* picked) {
  typename Isa::Vec top = Isa::load(dots);
  for (int64_t r = 1; r < count; ++r) top = N::max(top, Isa::load(dots + r * kPanel));
  float threshold[Isa::kLanes];
  Isa::store(threshold, top);
  for (int l = 0; l < Isa::kLanes; ++l) {
    const float e = error[l] * largest;
    // A row also has to beat what earlier chunks have found.
    const float beat = best[l] / step[l] - e;
    const float near = threshold[l] - 2.0f * e;
    threshold[l] = beat > near ? beat : near;
  }
  const typename Isa::Vec least = Isa::load(threshold);
  int64_t kept = 0;
  // A lane of zeros has no threshold, and the first row for its maximum.
  if (first) picked[kept++] = 0;
  for (int64_t r = first ? 1 : 0; r < count; ++r) {
    picked[kept] = static_cast<int32_t>(r);
    kept += N::any_at_least(Isa::load(dots + r * kPanel), least) ? 1 : 0;
  }
  return kept;
}

// The rows `picked` of a chunk in float32, against the vector of lanes that begins at `lane`, of a panel of
// kWidth lanes.
template <typename T, bool kArgmax, int kWidth>
void rescore(const Problem& p, const T* rows, const float* scales, int64_t first_row, const int32_t* picked,
             int64_t count, int64_t lane, Scratch& s) {
  const int64_t panel_start = lane / kPanel * kPanel;
  const float* q = s.packed + panel_start * p.dim + (lane - panel_start);
  for (int64_t begin = 0; begin < count; begin += s.block_rows) {
    const int64_t n = count - begin < s.block_rows ? count - begin : s.block_rows;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t row = picked[begin + i];
      float* to = s.rows + i * p.dim;
      const float* values = widened(rows + row * p.d.row_stride, scales, first_row + row, p.dim, to);
      if (values != to) std::memcpy(to, values, static_cast<size_t>(p.dim) * sizeof(float));
    }
    float value[Isa::kLanes];
    int32_t where[Isa::kLanes];
    for (int l = 0; l < Isa::kLanes; ++l) {
      value[l] = -std::numeric_limits<float>::infinity();
      where[l] = 0;
    }
    const Maxima<kArgmax> maxima = {value, where, 0};
    panel<Float32Ops, 1, kWidth>(q, s.rows, p.dim, p.dim, n, Ahead{0, 0}, maxima);
    if constexpr (kArgmax) {
      for (int l = 0; l < Isa::kLanes; ++l)
        where[l] = static_cast<int32_t>(first_row + picked[begin + where[l]]);
    }
    merge<kArgmax>(Isa::kLanes, value, where, s.best + lane, s.arg + lane);
  }
}

// accumulate() of loop.h for documents that are screened; false if these rows cannot be.
template <typename N, typename T, bool kArgmax>
bool screen(const Problem& p, const T* rows, const float* scales, int64_t first_row, int64_t count,
            int64_t lanes, bool first, Scratch& s) {
  using Number = typename std::conditional<std::is_same<T, int8_t>::value, int8_t, BFloat16>::type;
  const int64_t bytes = narrow_bytes<N, T>(p.dim);
  float largest = 0.0f;
  bool usable = true;
  for (int64_t r = 0; r < count; ++r) {
    const T* row = rows + r * p.d.row_stride;
    float squares = N::narrow(row, p.dim, s.narrow_rows + r * bytes);
    if constexpr (std::is_same<T, int8_t>::value) {
      const float scale = scales[first_row + r];
      squares *= scale * scale;
    }
    // False for NaN.
    usable &= squares <= kMostNorm * kMostNorm;
    largest = squares > largest ? squares : largest;
  }
  if (!usable || largest < kLeastNorm * kLeastNorm) return false;
  largest = std::sqrt(largest) * kMargin;

  int64_t kept = 0;
  for (int64_t lane = 0; lane < lanes; lane += kPanel) {
    const unsigned char* q = s.narrow_packed + lane * bytes;
    const NarrowRows narrow = {
        s.narrow_rows,     bytes, bytes, count, scales == nullptr ? nullptr : scales + first_row,
        s.lane_bias + lane};
    // While the first panel is multiplied, the rows a whole chunk further come from memory, so that narrowing
    // finds them in L2. The distance is the same for a chunk of fewer rows: rows that follow one another are
    // so asked for once, and none is left out, across the ends of documents too.
    const Ahead ahead = {
        reinterpret_cast<uintptr_t>(rows) + static_cast<uintptr_t>(kChunkRows * p.d.row_stride) * sizeof(T),
        lane > 0                        ? 0
        : std::is_same<T, float>::value ? 2
                                        : 1};
    const bool whole = lanes - lane > Isa::kLanes;
    if (whole) {
      N::template products<Number, Isa::kVecs, kPanel>(narrow, q, ahead, s.dots);
    } else {
      N::template products<Number, 1, Isa::kLanes>(narrow, q, ahead, s.dots);
    }
    for (int64_t l = lane; l < lanes && l < lane + kPanel; l += Isa::kLanes) {
      const int64_t n = survivors<N>(s.dots + (l - lane), count, s.lane_error + l, s.lane_step + l,
                                     s.best + l, largest, first && s.zero_lane, s.picked);
      kept += n;
      if (whole) {
        rescore<T, kArgmax, kPanel>(p, rows, scales, first_row, s.picked, n, l, s);
      } else {
        rescore<T, kArgmax, Isa::kLanes>(p, rows, scales, first_row, s.picked, n, l, s);
      }
    }
  }
  const int64_t all = count * ((lanes + Isa::kLanes - 1) / Isa::kLanes);
  ++s.chunks_screened;
  if (3 * kept > all) s.chunks_to_rest = kRestAfterMany;
  return true;
}

// The maxima of bfloat16 rows over all packed lanes, into s.other_best and s.other_arg. True if some lanes
// have to be done again in float32.
template <typename N, bool kArgmax>
bool multiply(const Problem& p, const BFloat16* rows, int64_t first_row, int64_t count, int64_t lanes,
              Scratch& s) {
  const int64_t bytes = narrow_bytes<N, BFloat16>(p.dim);
  const int64_t row_bytes = 2 * p.dim;
  const int64_t stride = 2 * p.d.row_stride;
  const bool in_place = bytes == row_bytes && stride % 4 == 0;
  for (int64_t row = 0; row < count; row += kChunkRows) {
    const int64_t n = count - row < kChunkRows ? count - row : kChunkRows;
    const unsigned char* from = reinterpret_cast<const unsigned char*>(rows + row * p.d.row_stride);
    NarrowRows narrow = {from, stride, bytes, n, nullptr, nullptr};
    if (!in_place) {
      for (int64_t r = 0; r < n; ++r) {
        unsigned char* to = s.narrow_rows + r * bytes;
        std::memcpy(to, from + r * stride, static_cast<size_t>(row_bytes));
        std::memset(to + row_bytes, 0, static_cast<size_t>(bytes - row_bytes));
      }
      narrow.rows = s.narrow_rows;
      narrow.stride = bytes;
    }
    for (int64_t lane = 0; lane < lanes; lane += kPanel) {
      const unsigned char* q = s.narrow_packed + lane * bytes;
      float* best = s.other_best + lane;
      int32_t* arg = s.other_arg + lane;
      const Ahead ahead = {reinterpret_cast<uintptr_t>(from) + kPrefetchBytes, lane == 0 ? 1 : 0};
      if (lanes - lane > Isa::kLanes) {
        N::template maxima<Isa::kVecs, kPanel, kArgmax>(narrow, q, ahead, first_row + row, best, arg);
      } else {
        N::template maxima<1, Isa::kLanes, kArgmax>(narrow, q, ahead, first_row + row, best, arg);
      }
    }
  }
  bool again = false;
  for (int64_t l = 0; l < lanes; ++l) again |= !(std::fabs(s.other_best[l]) >= s.lane_floor[l]);
  return again;
}

}  // namespace
}  // namespace colbert_fast
