// The result of a tier's own products from products of fewer bits, for a tier whose CPU multiplies int8 or
// bfloat16 faster. loop.h includes it, and a tier offers
//
//   struct Narrow {
//     // What documents of T are screened in: int8_t or BFloat16; void: they are not.
//     template <typename T>
//     using Screen;
//     static constexpr bool kBFloat16;  // whether bfloat16 is multiplied as it is
//     static constexpr const Tier* kWide;  // Tier::wide
//     using Direct;                     // the Ops of these chains, if it is screened besides
//
//     static constexpr int64_t kTogether;  // bytes of a lane that lie together in a panel: 4 or 8
//     static constexpr int64_t kBytes;     // a multiple of it, to which narrow rows are padded
//     static constexpr int kRaise;         // what is added to int8 rows: 128, if they are taken as unsigned
//
//     // With fewer query tokens or fewer rows than this, screening documents of T does not pay.
//     template <typename T>
//     static constexpr int64_t least_lanes();
//     static constexpr int64_t kLeastRows;
//
//     // A row of `dim` numbers, a multiple of kAtOnce, as what is multiplied. narrow() takes a row of T =
//     // float or Float16, which becomes bfloat16, or of int8, and returns the sum of its squares; levels()
//     // rounds the numbers times `inverse_scale` to the nearest int8, whatever the rounding mode.
//     static constexpr int64_t kAtOnce;  // 4 vectors or more, at most kMostPadding
//     static float narrow(const T* row, int64_t dim, unsigned char* to);
//     static void levels(const T* row, float inverse_scale, int64_t dim, unsigned char* to);
//
//     // Products with kVecs vectors of a panel of kWidth lanes, into `bounds`.
//     template <typename Number, int kVecs, int kWidth>
//     static void products(const NarrowRows&, const unsigned char* q, Ahead, const Bounds& bounds);
//
//     // The maxima of the products of bfloat16. The first row is document token number `first_row`.
//     template <int kVecs, int kWidth, bool kArgmax>
//     static void maxima(const NarrowRows&, const unsigned char* q, Ahead, int64_t first_row, float* best,
//                        int32_t* arg);
//
//     static Isa::Vec max(Isa::Vec, Isa::Vec), magnitude(Isa::Vec);
//     static float sum(Isa::Vec), largest(Isa::Vec);
//     static uint32_t at_least(Isa::Vec value, Isa::Vec threshold);  // bit l: whether lane l is
//   };
//
// as the parameter N of what is below.
//
// BFLOAT16 INPUTS. Products of bfloat16 are exact in float32, and are summed in float32 in blocks, as in the
// other tiers. There is one difference: the instructions take denormal inputs for zero and flush denormal
// sums to zero. Against query q of n numbers, this changes a dot product by at most A = 2^-126 (sum |q_k| +
// 2n), if no q_k is denormal: a flushed d_k loses |q_k d_k| < 2^-126 |q_k|, a flushed sum less than 2^-126,
// at most twice a step. Where the maximum is at least 2^30 A, this is far below one rounding. The lanes where
// it is smaller are done again in float32, and so are the lanes of queries with denormal, infinite or NaN
// numbers.
//
// SCREENING. What decides is the tier's own chain f_j, of float32 or of products of bfloat16 as above, of row
// j of a chunk with a lane. The scores, the argmax and their ties are those of the chains of all rows, to the
// last bit, but hardly a row's chain is computed:
//   1. Products c_j of fewer bits, of all rows with a panel of lanes. They name the row that is likely to
//      win a lane, the guess, and bound every f_j from above.
//   2. decide(): the chain of each lane with its guess. The largest f so far is m.
//   3. pick(): the candidates of a lane, those rows that may be at least m by the bound.
//   4. refine(): a dot product of float32, in any order, rules out those that only the coarse c_j let pass.
//   5. decide() again, for what is left: rows as good as the winner, or nearly. Rows that repeat the guess
//      are not.
// Of 300 random tokens at n = 128 one is a candidate of a query token, of 180 tokens of all-MiniLM-L6-v2 one
// to two; after refine() hardly one is left. Where there are so many that they take longer than the chains of
// all rows, these are computed, and the next chunks are not screened.
//
// The bound. Let q^ and d^ be what is multiplied, c_j = <q^, d^_j>, u = 2^-24, and D the largest ||d_j|| of
// the rows at hand.
//   |<q^,d^> - <q,d>| <= ||q - q^|| ||d|| + ||q^|| ||d - d^||   (Cauchy-Schwarz)
// ||q - q^|| and ||q^|| are computed. What a row loses depends on what it becomes:
//   bfloat16: rounding to nearest of 8 significant bits gives ||d - d^|| <= r ||d||, r = 2^-8
//   int8 that it was: nothing, r = 0
//   int8 times s_j, the largest of its n numbers over 127: each is off by s_j / 2, and by 2^-13 of that for
//     the rounding of 127 / largest, of its product with the number and of s_j:
//     ||d - d^|| <= s_j sqrt(n) / 2.
//     (A row whose numbers are below 2^-60 becomes zeros times s_j = 2^-59.)
// A sum whose products pass at most k roundings errs by at most k u' / (1 - k u') times the product of the
// norms, u' = 2u where the caller rounds otherwise than to nearest. None of the three has more than n + 2:
//   f_j: a block of n <= 128 numbers has n, and more blocks have 128 and the logarithm to base 2 of their
//     number (sums.h), which is less than n.
//   The dot product of refine(), which has no blocks: with v lanes a vector, n / 2v in a chain, v where the
//     lanes are added, and one for each of fewer than 2v last numbers.
//   c_j: of bfloat16 at most n, and of int8, whose sums are exact, one where they become float32.
// z = 4 (n + 8) u (||q|| + ||q^||) D covers two of them and what denormals lose, since norms outside
// [2^-20, 2^20] are not screened: at most 2^-126 (2^21 + 4) n < 2^-104 n, against 4 n 2^-24 2^-40. With
//   e = (||q - q^|| + r ||q^||) D + z   and   B_j = ||q^|| s_j sqrt(n) / 2 for the last kind of rows, else 0
// |c_j - f_j| <= B_j + e: a row with f_j >= m has c_j + B_j >= m - e, and a dot product of at least m - z.
// All of this is rounded up by a margin of 2^-7 for the arithmetic that computes it, valid for n <= 2^15
// (n u <= 2^-9). This also keeps sums of int8 products, at most 2^15 * 255 * 127 < 2^31, within int32.

#pragma once

#include "per_tier/narrow.h"

namespace colbert_fast {
namespace {

// Chunks that are not screened after one that was not worth it.
constexpr int64_t kRestAfterMany = 16;
// Narrowing a query takes as long as screening saves in that many rows.
constexpr int64_t kRowsWorthNarrowing = 160;

// The packed lanes from `lane` on as a panel of Numbers at `to`.
template <typename N, typename Number, typename T, int kWidth>
void narrow_panel(const Problem& p, int64_t lane, unsigned char* to, Scratch& s) {
  if constexpr (std::is_same<Number, int8_t>::value) {
    for (int64_t l = 0; l < kWidth; ++l)
      narrow_lane_int8<N>(p, lane, l, kWidth, std::is_same<T, int8_t>::value, to, s);
  } else {
    narrow_panel_bfloat16<N, kWidth>(p, lane, to, s);
  }
}

template <typename N, typename Number, typename T>
void narrow_lanes(const Problem& p, int64_t lanes, unsigned char* to, Scratch& s) {
  const int64_t bytes = narrow_bytes<N, Number>(p.dim);
  for (int64_t lane = 0; lane < lanes; lane += kPanel) {
    if (lanes - lane > Isa::kFloats) {
      narrow_panel<N, Number, T, kPanel>(p, lane, to + lane * bytes, s);
    } else {
      narrow_panel<N, Number, T, Isa::kFloats>(p, lane, to + lane * bytes, s);
    }
  }
}

// What the lanes that have just been packed need besides, to meet documents of T.
template <typename N, typename T>
void prepare_lanes(const Problem& p, int64_t lanes, Scratch& s) {
  constexpr bool kScreens = !std::is_same<typename N::template Screen<T>, void>::value;
  s.screens = kScreens && p.dim > 0 && p.dim <= kMostScreenedDim && lanes >= N::template least_lanes<T>();
  s.narrowed = false;
  s.rows_met = 0;
  s.chunks_to_rest = 0;
  if constexpr (std::is_same<T, BFloat16>::value && N::kBFloat16)
    narrow_lanes<N, BFloat16, T>(p, lanes, s.bf16_queries, s);
}

// Whether the packed lanes are there in the numbers that screen documents of T: once they have met so many
// rows that it was worth it, unless they have numbers for which there is no bound.
template <typename N, typename T>
bool narrowed(const Problem& p, int64_t lanes, int64_t rows, Scratch& s) {
  s.rows_met += rows;
  if (s.narrowed || s.rows_met < kRowsWorthNarrowing) return s.narrowed;
  s.narrowed = true;
  narrow_lanes<N, typename N::template Screen<T>, T>(p, lanes, s.screened_queries, s);
  for (int64_t l = 0; l < lanes; ++l) s.screens &= s.lane_error[l] == s.lane_error[l];
  return s.screens;
}

// Of the rows of a chunk those that are candidates, in ascending order, and of which lanes: into s.picked and
// s.picked_lanes.
template <typename N, int kVecs>
void pick(const Bounds& bounds, int64_t count, const float* threshold, Scratch& s) {
  typename Isa::Vec least[kVecs];
  CF_UNROLL
  for (int v = 0; v < kVecs; ++v) least[v] = Isa::load(threshold + v * Isa::kFloats);
  int64_t rows = 0;
  for (int64_t r = 0; r < count; ++r) {
    uint32_t lanes = 0;
    CF_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      const auto upper = Isa::load(bounds.uppers + r * kPanel + v * Isa::kFloats);
      lanes |= N::at_least(upper, least[v]) << (v * Isa::kFloats);
    }
    s.picked[rows] = static_cast<int32_t>(r);
    s.picked_lanes[rows] = lanes;
    rows += lanes != 0 ? 1 : 0;
  }
  s.picked_lanes[rows] = 0;
}

inline int lowest_bit(uint32_t bits) {
#if defined(__GNUC__) || defined(__clang__)
  return __builtin_ctz(bits);
#else
  int bit = 0;
  while (((bits >> bit) & 1u) == 0) ++bit;
  return bit;
#endif
}

template <typename N>
float dot(const float* a, const float* b, int64_t dim) {
  typename Isa::Vec sum = Isa::zero();
  typename Isa::Vec more = Isa::zero();
  int64_t k = 0;
  for (; k + 2 * Isa::kFloats <= dim; k += 2 * Isa::kFloats) {
    sum = Isa::fma(Isa::load(a + k), Isa::load(b + k), sum);
    more = Isa::fma(Isa::load(a + k + Isa::kFloats), Isa::load(b + k + Isa::kFloats), more);
  }
  float total = N::sum(Isa::add(sum, more));
  for (; k < dim; ++k) total += a[k] * b[k];
  return total;
}

// Whether two rows are the same, so that their chains are.
template <typename T>
bool same_rows(const Problem& p, const T* rows, const float* scales, int64_t first_row, int32_t a,
               int32_t b) {
  if (scales != nullptr && scales[first_row + a] != scales[first_row + b]) return false;
  const size_t bytes = static_cast<size_t>(p.dim) * sizeof(T);
  return std::memcmp(rows + a * p.d.row_stride, rows + b * p.d.row_stride, bytes) == 0;
}

// The candidates that were picked, less those that a dot product of float32 rules out and those that repeat
// the guess, which comes first: into s.candidates, their rows in ascending order. Returns their number, or -1
// if more than `limit` were picked.
template <typename N, typename T>
int64_t refine(const Problem& p, const T* rows, const float* scales, int64_t first_row, int64_t lane,
               float norm, const int32_t* guess, const float* best, int64_t limit, Scratch& s) {
  int64_t all = 0;
  int64_t kept = 0;
  for (int64_t i = 0; s.picked_lanes[i] != 0; ++i) {
    const int32_t row = s.picked[i];
    const float* values =
        widened(rows + row * p.d.row_stride, scales, first_row + row, p.dim, s.float32_rows);
    for (uint32_t lanes = s.picked_lanes[i]; lanes != 0; lanes &= lanes - 1) {
      if (all++ == limit) return -1;
      const int l = lowest_bit(lanes);
      const float value = dot<N>(values, s.query_rows + (lane + l) * p.dim, p.dim);
      s.candidates[kept] = {row, l};
      // A best that is NaN rules nothing out, and stays.
      if (value < best[lane + l] - s.lane_slack[lane + l] * norm) continue;
      kept += row > guess[l] && same_rows(p, rows, scales, first_row, row, guess[l]) ? 0 : 1;
    }
  }
  return kept;
}

// The chain of each lane of a panel with a row of its own, of `steps` elements.
template <typename Ops, int kVecs, int kWidth>
void chains(const typename Ops::Element* q, const typename Ops::Element* const* rows, int64_t steps,
            float* values) {
  using Element = typename Ops::Element;
  using Blocks = BlockSums<Ops, 1, kVecs>;
  typename Ops::Acc memory[Blocks::kSize];
  Blocks blocks(memory);
  typename Ops::Acc sums[1][kVecs];
  for (int64_t k = 0;;) {
    const int64_t end = blocks.end_of_block(k, steps);
    CF_UNROLL
    for (int v = 0; v < kVecs; ++v) sums[0][v] = Ops::zero();
    for (; k + Isa::kFloats <= end; k += Isa::kFloats) {
      CF_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        typename Ops::Acc columns[Isa::kFloats];
        CF_UNROLL
        for (int l = 0; l < Isa::kFloats; ++l) columns[l] = Ops::load(rows[v * Isa::kFloats + l] + k);
        Isa::transpose(columns);
        CF_UNROLL
        for (int i = 0; i < Isa::kFloats; ++i)
          sums[0][v] = Ops::fma(columns[i], Ops::load(q + (k + i) * kWidth + v * Isa::kFloats), sums[0][v]);
      }
    }
    for (; k < end; ++k) {
      for (int v = 0; v < kVecs; ++v) {
        Element column[Isa::kFloats];
        for (int l = 0; l < Isa::kFloats; ++l) column[l] = rows[v * Isa::kFloats + l][k];
        sums[0][v] = Ops::fma(Ops::load(column), Ops::load(q + k * kWidth + v * Isa::kFloats), sums[0][v]);
      }
    }
    if (blocks.done(sums, end, steps)) break;
  }
  CF_UNROLL
  for (int v = 0; v < kVecs; ++v) Isa::store(values + v * Isa::kFloats, sums[0][v]);
}

// best = max(best, value), as Isa::update, the first of equal rows in whatever order they come.
template <bool kArgmax>
void merge(int64_t lanes, const float* value, const int32_t* row, float* best, int32_t* arg) {
  for (int64_t l = 0; l < lanes; ++l) {
    const bool wins = !(value[l] <= best[l]) && best[l] == best[l];
    if constexpr (kArgmax) arg[l] = wins || (value[l] == best[l] && row[l] < arg[l]) ? row[l] : arg[l];
    best[l] = wins ? value[l] : best[l];
  }
}

// Rows as the elements of Ops: where they are, or in `to`.
template <typename Ops, typename T>
const typename Ops::Element* as_elements(const T* row, const float* scales, int64_t index, int64_t dim,
                                         int64_t bytes, unsigned char* to) {
  if constexpr (std::is_same<Ops, Float32Ops>::value) {
    (void)bytes;
    return widened(row, scales, index, dim, reinterpret_cast<float*>(to));
  } else {
    (void)scales;
    (void)index;
    const size_t used = static_cast<size_t>(dim) * sizeof(T);
    if (used == static_cast<size_t>(bytes)) return reinterpret_cast<const typename Ops::Element*>(row);
    std::memcpy(to, row, used);
    std::memset(to + used, 0, static_cast<size_t>(bytes) - used);
    return reinterpret_cast<const typename Ops::Element*>(to);
  }
}

// The chains of a row for each lane of a panel, into best and arg.
template <typename N, typename Ops, typename T, bool kArgmax, int kVecs, int kWidth>
void decide(const Problem& p, const T* rows, const float* scales, int64_t first_row, const int32_t* row_of,
            int64_t lane, float* best, int32_t* arg, Scratch& s) {
  using Element = typename Ops::Element;
  constexpr int kLanes = kVecs * Isa::kFloats;
  constexpr bool kFloat32 = std::is_same<Ops, Float32Ops>::value;
  const int64_t bytes = kFloat32 ? 4 * p.dim : narrow_bytes<N, BFloat16>(p.dim);
  const void* q =
      kFloat32 ? static_cast<const void*>(s.float32_queries + lane * p.dim) : s.bf16_queries + lane * bytes;
  const Element* elements[kLanes];
  int32_t tokens[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    elements[l] = as_elements<Ops>(rows + row_of[l] * p.d.row_stride, scales, first_row + row_of[l], p.dim,
                                   bytes, s.chosen_rows + l * bytes);
    tokens[l] = static_cast<int32_t>(first_row + row_of[l]);
  }
  float values[kLanes];
  chains<Ops, kVecs, kWidth>(static_cast<const Element*>(q), elements,
                             bytes / static_cast<int64_t>(sizeof(Element)), values);
  merge<kArgmax>(kLanes, values, tokens, best + lane, arg + lane);
}

// The first of `count` candidates of each lane into row_of; the others are kept. Returns their number.
inline int64_t next_of_each_lane(int64_t count, int32_t* row_of, Scratch& s) {
  uint32_t taken = 0;
  int64_t left = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Candidate c = s.candidates[i];
    if (((taken >> c.lane) & 1u) != 0) {
      s.candidates[left++] = c;
    } else {
      row_of[c.lane] = c.row;
      taken |= 1u << c.lane;
    }
  }
  return left;
}

// Steps 1 to 5 for one panel; false if there are too many candidates: best and arg then hold some of them.
template <typename N, typename Number, typename Ops, typename T, bool kArgmax, int kVecs, int kWidth>
bool screen_panel(const Problem& p, const T* rows, const float* scales, int64_t first_row,
                  const NarrowRows& narrow, Ahead ahead, float norm, int64_t lane, float* best, int32_t* arg,
                  Scratch& s) {
  constexpr int kLanes = kVecs * Isa::kFloats;
  int32_t guess[kLanes] = {};
  float least[kLanes];
  for (float& of_lane : least) of_lane = -std::numeric_limits<float>::infinity();
  const Bounds bounds = {s.row_scales, s.lane_offset + lane, s.lane_spread + lane, s.uppers, least, guess};
  N::template products<Number, kVecs, kWidth>(narrow, s.screened_queries + lane * narrow.bytes, ahead,
                                              bounds);
  decide<N, Ops, T, kArgmax, kVecs, kWidth>(p, rows, scales, first_row, guess, lane, best, arg, s);

  float threshold[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    threshold[l] = best[lane + l] / s.lane_scale[lane + l] - s.lane_error[lane + l] * norm;
    s.uppers[guess[l] * kPanel + l] = -std::numeric_limits<float>::infinity();
  }
  pick<N, kVecs>(bounds, narrow.count, threshold, s);
  const int64_t eighth = narrow.count * kLanes / 8;
  int64_t left = refine<N>(p, rows, scales, first_row, lane, norm, guess, best,
                           eighth < kMostCandidates ? eighth : kMostCandidates, s);
  if (left < 0) return false;
  // A lane without a candidate computes its guess again, which changes nothing. A round takes as long as the
  // panel's chains of seven rows do (AVX-512 on Zen 5, dim 128).
  for (int64_t rounds = narrow.count / 16; left > 0; --rounds) {
    if (rounds == 0) return false;
    left = next_of_each_lane(left, guess, s);
    decide<N, Ops, T, kArgmax, kVecs, kWidth>(p, rows, scales, first_row, guess, lane, best, arg, s);
  }
  return true;
}

// The Ops of the chains that decide between documents of T.
template <typename N, typename T, bool kDirect = std::is_same<T, BFloat16>::value && N::kBFloat16>
struct Deciding {
  using Ops = Float32Ops;
};
template <typename N, typename T>
struct Deciding<N, T, true> {
  using Ops = typename N::Direct;
};

// The maxima of `count` rows, the first being document token number `first_row`, in the packed lanes; false
// if these rows cannot be screened. by_chains(begin, end) computes all chains of some lanes.
template <typename N, typename T, bool kArgmax, typename ByChains>
bool screen(const Problem& p, const T* rows, const float* scales, int64_t first_row, int64_t count,
            int64_t lanes, float* best, int32_t* arg, Scratch& s, const ByChains& by_chains) {
  using Number = typename N::template Screen<T>;
  using Ops = typename Deciding<N, T>::Ops;
  if (count < N::kLeastRows || !narrowed<N, T>(p, lanes, count, s)) return false;
  const float squares = narrow_rows<N, Number>(rows, p.d.row_stride, p.dim, scales, first_row, count, s);
  if (!(squares >= kLeastNorm * kLeastNorm && squares <= kMostNorm * kMostNorm)) return false;
  const float norm = std::sqrt(squares) * kMargin;

  const int64_t bytes = narrow_bytes<N, Number>(p.dim);
  const NarrowRows narrow = {s.narrow_rows, bytes, bytes, count};
  int64_t panels = 0;
  int64_t by_all = 0;
  for (int64_t lane = 0; lane < lanes; lane += kPanel) {
    // While the first panel is multiplied, the rows a whole chunk further come from memory, so that narrowing
    // finds them in L2. The distance is the same for a chunk of fewer rows: rows that follow one another are
    // so asked for once, and none is left out, across the ends of documents too.
    const Ahead ahead = {reinterpret_cast<uintptr_t>(rows) +
                             static_cast<uintptr_t>(chunk_rows(lanes) * p.d.row_stride) * sizeof(T),
                         lane > 0 ? 0 : static_cast<int>(sizeof(T) / SizeOf<Number>::kBytes)};
    float best_before[kPanel];
    int32_t arg_before[kPanel];
    std::memcpy(best_before, best + lane, sizeof best_before);
    std::memcpy(arg_before, arg + lane, sizeof arg_before);
    const bool done = lanes - lane > Isa::kFloats
                          ? screen_panel<N, Number, Ops, T, kArgmax, Isa::kVecs, kPanel>(
                                p, rows, scales, first_row, narrow, ahead, norm, lane, best, arg, s)
                          : screen_panel<N, Number, Ops, T, kArgmax, 1, Isa::kFloats>(
                                p, rows, scales, first_row, narrow, ahead, norm, lane, best, arg, s);
    if (given_up(count * kPanel * p.dim, s)) return true;
    ++panels;
    if (done) continue;
    ++by_all;
    // All chains run in the order of the rows, where the first of equal rows wins: not after a later one.
    std::memcpy(best + lane, best_before, sizeof best_before);
    std::memcpy(arg + lane, arg_before, sizeof arg_before);
    by_chains(lane, lanes - lane < kPanel ? lanes : lane + kPanel);
  }
  ++s.chunks_screened;
  if (2 * by_all > panels) s.chunks_to_rest = kRestAfterMany;
  return true;
}

// The maxima of bfloat16 rows over some of the packed lanes, into s.bf16_best.value and s.bf16_best.token.
template <typename N, bool kArgmax>
void multiply(const Problem& p, const BFloat16* rows, int64_t first_row, int64_t count, int64_t begin,
              int64_t end, Scratch& s) {
  const int64_t bytes = narrow_bytes<N, BFloat16>(p.dim);
  const int64_t row_bytes = 2 * p.dim;
  const int64_t stride = 2 * p.d.row_stride;
  const unsigned char* from = reinterpret_cast<const unsigned char*>(rows);
  NarrowRows narrow = {from, stride, bytes, count};
  if (bytes != row_bytes || stride % 4 != 0) {
    for (int64_t r = 0; r < count; ++r) {
      unsigned char* to = s.bf16_rows + r * bytes;
      std::memcpy(to, from + r * stride, static_cast<size_t>(row_bytes));
      std::memset(to + row_bytes, 0, static_cast<size_t>(bytes - row_bytes));
    }
    narrow.rows = s.bf16_rows;
    narrow.stride = bytes;
  }
  for (int64_t lane = begin; lane < end; lane += kPanel) {
    const unsigned char* q = s.bf16_queries + lane * bytes;
    float* best = s.bf16_best.value + lane;
    int32_t* arg = s.bf16_best.token + lane;
    const Ahead ahead = {reinterpret_cast<uintptr_t>(from) + kPrefetchBytes, lane == 0 ? 1 : 0};
    if (end - lane > Isa::kFloats) {
      N::template maxima<Isa::kVecs, kPanel, kArgmax>(narrow, q, ahead, first_row, best, arg);
    } else {
      N::template maxima<1, Isa::kFloats, kArgmax>(narrow, q, ahead, first_row, best, arg);
    }
    if (given_up(count * kPanel * p.dim, s)) return;
  }
}

}  // namespace
}  // namespace colbert_fast
