// Screening: rows are multiplied in fewer bits first, and then few of them again by the tier's own chains. It
// is for tiers whose CPU multiplies int8 or bfloat16 faster than float32. This file is compiled once for each
// tier, inside the tier's target region, and includes no system header. bfloat16.h and loop.h include it. A
// tier offers
//
//   struct Narrow {
//     // What documents of T are screened in: int8_t or BFloat16; void: documents of T are not screened.
//     template <typename T>
//     using Screen;
//     // Whether bfloat16 is multiplied as it is (bfloat16.h), and Tier::for_float32_queries.
//     static constexpr bool kBFloat16;
//     static constexpr const Tier* kForFloat32Queries;
//     // Whether maxima by products of float32, and gradients, are left to kFloat32: a tier with the same
//     // Isa that multiplies nothing but float32, and runs wherever this tier does.
//     static constexpr bool kLeavesFloat32;
//     static constexpr const Tier* kFloat32;
//     // The Ops of these products, if bfloat16 is screened besides being multiplied as it is.
//     using Direct;
//
//     // Isa, which then has the operations for screening that tile.h lists.
//     using Registers;
//
//     // kTogether bytes of a lane lie together in a panel, 4 or 8. Narrow rows are padded to a multiple of
//     // kBytes, which is a multiple of kTogether.
//     static constexpr int64_t kTogether, kBytes;
//
//     // What is added to rows that become int8: 128 if the instruction takes them as unsigned numbers, else
//     // 0. Rows that were int8 before are multiplied as they are, and it is added to the lanes instead.
//     static constexpr int kRaise;
//
//     // With fewer query tokens, or with fewer rows, screening documents of T takes longer than it saves.
//     template <typename T>
//     static constexpr int64_t least_lanes();
//     template <typename T>
//     static constexpr int64_t least_rows(int64_t lanes);
//
//     // If there are rows that become bfloat16: writes a row of `dim` numbers of float or Float16 as it is
//     // multiplied, and less than kNarrowSlack bytes after it. Returns the sum of the squares.
//     static float narrow(const T* row, int64_t dim, unsigned char* to);
//
//     // Rounds the numbers of four vectors to the nearest int8, whatever the rounding mode is, and writes
//     // them as they are multiplied.
//     static void store_levels(const Isa::Vec (&)[4], unsigned char* to);
//
//     // What narrowing finds out about a row of int8, which it leaves as it is (tile.h).
//     static RowSums sums(const int8_t* row, int64_t dim);
//
//     // Products of rows that have become Numbers with kVecs vectors of a panel of kWidth lanes, into
//     // `bounds`.
//     template <typename Number, int kVecs, int kWidth>
//     static void products(const NarrowRows&, const unsigned char* q, Ahead, const Bounds& bounds);
//
//     // Products of int8, into UpperSink<kSinkVecs> (tile.h) or, if the tier has ceilings, into any sink.
//     template <int kVecs, int kWidth, typename Sink>
//     static void int8_products(const NarrowRows&, const unsigned char* q, Ahead, const Sink&);
//
//     // Products of rows that were int8 before, into ExactBounds (bounds.h) or, if the tier has ceilings,
//     // into any sink.
//     using Exact = ExactBounds;
//     template <int kVecs, int kWidth, typename Sink>
//     static void exact_products(const NarrowRows&, const unsigned char* q, Ahead, const Sink&);
//
//     // The vectors of lanes that a sink has in registers at once.
//     static constexpr int kSinkVecs;
//
//     // The maxima of the products of bfloat16.
//     template <int kVecs, int kWidth, bool kArgmax>
//     static void maxima(const NarrowRows&, const unsigned char* q, Ahead, const Maxima<kArgmax>& maxima);
//   };
//
// as the parameter N of what is below. The numbers beside least_lanes() and least_rows() of the tiers were
// measured at dim 128 by one thread on Zen 5, once with the tier that screens and once with the tier below
// it. For 32 query tokens of float32, documents of 300 tokens, and avx512:
//
//   python -m timeit -s "import torch, colbert_fast as cf; cf.set_num_threads(1)
//   q, d = torch.randn(1, 32, 128), torch.randn(1000, 300, 128)" "cf.maxsim(q, d, backend='cpu:avx512')"
//
// THE STEPS. What decides is still the tier's own chain. Let f_j be the chain of row j of a chunk with a
// lane: a chain of float32, or of products of bfloat16 as in bfloat16.h. The scores, the argmax and its ties
// are the same, to the last bit, as if the chains of all rows were computed. Yet only one or two chains per
// query token are computed:
//   1. Products c_j of fewer bits are computed for all rows and a panel of lanes. They bound every f_j from
//      above. They also name the row that is likely to win a lane: the guess of the lane.
//   2. decide() computes the chain of each lane with its guess. Let m be the largest f of the lane so far.
//   3. pick() finds the candidates of each lane: the rows whose f_j may be at least m by the bound.
//   4. refine() computes a dot product of float32, in any order, for each candidate. It rules out candidates
//      that passed only because c_j is coarse. It also rules out rows that are equal to the guess.
//   5. decide() computes the chains of the candidates that are left: rows as good as the winner, or nearly.
// Of 300 random tokens at n = 128, about one is a candidate of a query token. Of 180 tokens of
// all-MiniLM-L6-v2, one or two are. refine() rarely leaves any of them. If there are so many candidates that
// they would take longer than the chains of all rows, the chains of all rows are computed instead, and the
// next chunks are not screened.
//
// THE BOUND. Let q be a lane and d_j a row, of n numbers each. Let q^ and d^_j be what is multiplied in their
// place, so that c_j = <q^, d^_j>. Let u = 2^-24, and let D be the largest ||d_j|| of the rows at hand.
//   |<q^,d^> - <q,d>| <= ||q - q^|| ||d|| + ||q^|| ||d - d^||   (Cauchy-Schwarz)
// ||q - q^|| and ||q^|| are computed for each lane. ||d - d^|| depends on what a row becomes:
//   bfloat16: rounding to the nearest number of 8 significant bits gives ||d - d^|| <= r ||d||, r = 2^-8.
//   int8, from int8: nothing is lost, r = 0.
//   int8 times s_j, from float32 or float16, where s_j is at least the largest magnitude of the n numbers
//     over 127: each number is off by s_j / 2, and by 2^-13 of that for the rounding of 127 / largest, of its
//     product with the number and of s_j. So ||d - d^|| <= s_j sqrt(n) / 2, up to the margin below. All rows
//     of a chunk have the same s_j, until there are so many candidates that a finer s_j pays.
//     (A row whose numbers are all below 2^-60 becomes zeros times s_j = 2^-59.)
// A sum whose products pass at most k roundings errs by at most k u' / (1 - k u') times the product of the
// norms. Here u' is u, or 2u if the caller has set another rounding mode than to nearest. There are three
// kinds of sums, and in none of them does a product pass more than n + 2 roundings:
//   f_j: A block of n <= 128 numbers has n roundings. More blocks have 128 and the logarithm to base 2 of
//     their number (sums.h), which is less than n.
//   The dot product of refine(), which has no blocks: In whatever order n products are added, each passes at
//     most n roundings, because adding a zero rounds nothing. The scale of an int8 row is one more, and the
//     numbers of f_j, which are rounded after they were multiplied by it, are another.
//   c_j: Products of bfloat16 have at most n roundings. Sums of int8 are exact and are rounded once, where
//     they become float32.
// Let z = 4 (n + 8) u (||q|| + ||q^||) D. It covers the errors of two of these sums. It also covers what
// flushed denormal numbers lose (bfloat16.h): because lanes and rows with a norm outside [2^-20, 2^20] are
// not screened, that is at most 2^-126 (2^21 + 4) n < 2^-104 n, while z is at least 4 n 2^-24 2^-40. With
//   e = (||q - q^|| + r ||q^||) D + z   and   B_j = ||q^|| s_j sqrt(n) / 2 for rows of the last kind, else 0
// |c_j - f_j| <= B_j + e. So a row with f_j >= m has c_j + B_j >= m - e, which pick() looks for, and its dot
// product of float32 is at least m - z, which refine() looks for.
//
// All of this is rounded up by a margin of 2^-7, for the roundings of the arithmetic that computes it. The
// margin is enough for n <= 2^15, where n u <= 2^-9. This limit also keeps sums of int8 products, at most
// 2^15 * 255 * 128 < 2^31, within int32.

#pragma once

#include "per_tier/chains.h"
#include "per_tier/float32.h"
#include "per_tier/narrow.h"

namespace colbert_fast {
namespace {

// How many chunks are not screened after a chunk that was not worth it, or have a scale for each row.
constexpr int64_t kRestAfterMany = 16;
// Rows of int8 whose sums are found before they are multiplied: half of the smallest L1 cache.
constexpr int64_t kPartBytes = 16 * 1024;
// Narrowing a query takes as long as screening saves in this many rows.
constexpr int64_t kRowsWorthNarrowing = 160;

template <typename N, typename T>
constexpr bool screens() {
  return !std::is_same<typename N::template Screen<T>, void>::value;
}

// The packed lanes from `lane` on as a panel of Numbers at `to`.
template <typename N, typename Number, typename T, int kWidth>
void narrow_panel(int64_t dim, int64_t lane, unsigned char* to, Scratch& s) {
  if constexpr (std::is_same<Number, int8_t>::value) {
    for (int64_t l = 0; l < kWidth; ++l)
      narrow_lane_int8<N>(dim, lane, l, kWidth, std::is_same<T, int8_t>::value, to, s);
  } else {
    narrow_panel_bfloat16<N, kWidth>(dim, lane, to, s);
  }
}

template <typename N, typename Number, typename T>
void narrow_lanes(int64_t dim, int64_t lanes, unsigned char* to, Scratch& s) {
  const int64_t bytes = narrow_bytes<N, Number>(dim);
  for (int64_t lane = 0; lane < lanes; lane += kPanel) {
    if (lanes - lane > Isa::kFloats) {
      narrow_panel<N, Number, T, kPanel>(dim, lane, to + lane * bytes, s);
    } else {
      narrow_panel<N, Number, T, Isa::kFloats>(dim, lane, to + lane * bytes, s);
    }
  }
}

// What else the lanes that have just been packed need, to meet documents of T.
template <typename N, typename T>
void prepare_lanes(int64_t dim, int64_t lanes, Scratch& s) {
  s.screens = screens<N, T>() && dim > 0 && dim <= kMostScreenedDim && lanes >= N::template least_lanes<T>();
  s.narrowed = false;
  s.rows_met = 0;
  s.chunks_to_rest = 0;
  s.chunks_apart = 0;
  if constexpr (std::is_same<T, BFloat16>::value && N::kBFloat16)
    narrow_lanes<N, BFloat16, T>(dim, lanes, s.bf16_queries, s);
}

// Narrows the packed lanes once they have met so many rows that it is worth it. Returns whether the lanes are
// narrowed and may be screened; lanes with numbers that have no bound may not.
template <typename N, typename T>
bool narrowed(int64_t dim, int64_t lanes, int64_t rows, Scratch& s) {
  s.rows_met += rows;
  if (s.narrowed || s.rows_met < kRowsWorthNarrowing) return s.narrowed;
  s.narrowed = true;
  narrow_lanes<N, typename N::template Screen<T>, T>(dim, lanes, s.screened_queries, s);
  for (int64_t l = 0; l < lanes; ++l) s.screens &= s.lane_error[l] == s.lane_error[l];
  return s.screens;
}

// Step 3. The rows of a chunk that are candidates of any lane, in ascending order, go into s.picked, and the
// lanes of each of these rows into s.picked_lanes.
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
      const auto upper = Isa::load(bounds.uppers + r * kVecs * Isa::kFloats + v * Isa::kFloats);
      lanes |= N::Registers::at_least(upper, least[v]) << (v * Isa::kFloats);
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

// In float32, without the scale of int8 numbers.
template <typename N, typename T>
float dot(const T* a, const float* b, int64_t dim) {
  typename Isa::Vec sum = Isa::zero();
  typename Isa::Vec more = Isa::zero();
  int64_t k = 0;
  for (; k + 2 * Isa::kFloats <= dim; k += 2 * Isa::kFloats) {
    sum = Isa::fma(Isa::load(a + k), Isa::load(b + k), sum);
    more = Isa::fma(Isa::load(a + k + Isa::kFloats), Isa::load(b + k + Isa::kFloats), more);
  }
  for (; k < dim; k += Isa::kFloats)
    sum = Isa::fma(load_up_to(a + k, dim - k), load_up_to(b + k, dim - k), sum);
  return N::Registers::sum(Isa::add(sum, more));
}

// Whether two rows are the same, so that their chains are the same.
template <typename T>
bool same_rows(Rows<T> rows, int32_t a, int32_t b) {
  if (rows.scale(a) != rows.scale(b)) return false;
  return std::memcmp(rows.row(a), rows.row(b), static_cast<size_t>(rows.dim) * sizeof(T)) == 0;
}

// Step 4. Writes the candidates that are left into s.candidates, their rows in ascending order, and returns
// their number. Returns -1 if more than `limit` were picked.
template <typename N, typename T>
int64_t refine(Rows<T> rows, int64_t lane, float norm, const int32_t* guess, const Best& best, int64_t limit,
               Scratch& s) {
  int64_t all = 0;
  int64_t kept = 0;
  for (int64_t i = 0; s.picked_lanes[i] != 0; ++i) {
    const int32_t row = s.picked[i];
    for (uint32_t lanes = s.picked_lanes[i]; lanes != 0; lanes &= lanes - 1) {
      if (all++ == limit) return -1;
      ++s.candidates_met;
      const int l = lowest_bit(lanes);
      const float* q = s.query_rows + (lane + l) * rows.dim;
      const float value = rows.scale(row) * dot<N>(rows.row(row), q, rows.dim);
      s.candidates[kept] = {row, l};
      // A best that is NaN rules nothing out, and stays.
      if (value < best.value[lane + l] - s.lane_slack[lane + l] * norm) continue;
      // The guess comes before the rows that are equal to it.
      kept += row > guess[l] && same_rows(rows, row, guess[l]) ? 0 : 1;
    }
  }
  return kept;
}

// Takes the first of `count` candidates of each lane into row_of. The others stay in s.candidates; returns
// their number.
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

// Step 1 for a panel of lanes. `norm` is D, or 0 if it has to be found: for rows of int8, that is done part
// by part, so that the products find each part in L1.
template <typename N, typename T, int kVecs, int kWidth>
void bound_rows([[maybe_unused]] Rows<T> rows, const NarrowRows& narrow, const unsigned char* q, Ahead ahead,
                const Bounds& bounds, float& norm, Scratch& s) {
  if constexpr (std::is_same<T, int8_t>::value) {
    if (norm > 0.0f)
      return N::template exact_products<kVecs, kWidth>(narrow, q, ahead, typename N::Exact{bounds, 0});
    const int64_t parts = (narrow.count * narrow.bytes + kPartBytes - 1) / kPartBytes;
    float most = 0.0f;
    for (int64_t p = 0; p < parts; ++p) {
      const int64_t begin = narrow.count * p / parts;
      const int64_t n = narrow.count * (p + 1) / parts - begin;
      const float squares = sum_rows<N>(rows.part(begin, n), begin, s);
      most = squares > most ? squares : most;
      const NarrowRows part = {narrow.rows + begin * narrow.stride, narrow.stride, narrow.bytes, n};
      N::template exact_products<kVecs, kWidth>(part, q, ahead, typename N::Exact{bounds, begin});
      ahead.position += n * (narrow.bytes / 4) * ahead.rate;
    }
    norm = largest_norm(most);
  } else {
    N::template products<typename N::template Screen<T>, kVecs, kWidth>(narrow, q, ahead, bounds);
  }
}

// Steps 1 to 5 for one panel of lanes. `norm` is as in bound_rows(). Returns false if there are too many
// candidates: `best` then holds the chains of some of them. Does nothing if the norm turns out to be
// infinite.
template <typename N, typename T, int kVecs, int kWidth>
CF_NEVER_INLINE bool screen_panel(Rows<T> rows, const NarrowRows& narrow, Ahead ahead, float& norm,
                                  int64_t lane, const Best& best, Scratch& s) {
  constexpr int kLanes = kVecs * Isa::kFloats;
  int32_t guess[kLanes] = {};
  float least[kLanes];
  for (float& of_lane : least) of_lane = -std::numeric_limits<float>::infinity();
  const Bounds bounds = {s.row_scales, s.row_offset, s.lane_offset + lane, s.lane_spread + lane, s.uppers,
                         least,        guess};
  const unsigned char* q = s.screened_queries + lane * narrow.bytes;
  bound_rows<N, T, kVecs, kWidth>(rows, narrow, q, ahead, bounds, norm, s);
  if (norm == std::numeric_limits<float>::infinity()) return true;
  decide<N, T, kVecs, kWidth>(rows, guess, lane, best, s);

  float threshold[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    threshold[l] = best.value[lane + l] / s.lane_scale[lane + l] - s.lane_error[lane + l] * norm;
    s.uppers[guess[l] * kLanes + l] = -std::numeric_limits<float>::infinity();
  }
  pick<N, kVecs>(bounds, narrow.count, threshold, s);
  const int64_t eighth = narrow.count * kLanes / 8;
  int64_t left =
      refine<N>(rows, lane, norm, guess, best, eighth < kMostCandidates ? eighth : kMostCandidates, s);
  if (left < 0) return false;
  // A lane without a candidate computes its guess again, which changes nothing. One round takes about as long
  // as the panel's chains with seven rows, so more rounds than a sixteenth of the rows would not pay.
  for (int64_t rounds = narrow.count / 16; left > 0; --rounds) {
    if (rounds == 0) return false;
    left = next_of_each_lane(left, guess, s);
    decide<N, T, kVecs, kWidth>(rows, guess, lane, best, s);
  }
  return true;
}

// Takes the rows of a chunk into `best`, for all packed lanes. Returns false if these rows cannot be
// screened. by_chains(rows, begin, end) computes the chains of all rows with the lanes from begin to end.
template <typename N, typename T, typename ByChains>
bool screen(Rows<T> rows, int64_t lanes, const Best& best, Scratch& s, const ByChains& by_chains) {
  using Number = typename N::template Screen<T>;
  if (rows.count < N::template least_rows<T>(lanes)) return false;
  if (!narrowed<N, T>(rows.dim, lanes, rows.count, s)) return false;
  constexpr float kNone = std::numeric_limits<float>::infinity();
  const int64_t bytes = narrow_bytes<N, Number>(rows.dim);
  NarrowRows narrow = {s.narrow_rows, bytes, bytes, rows.count};
  float norm = 0.0f;
  if constexpr (std::is_same<T, int8_t>::value) {
    narrow = as_they_are<N>(rows, s.narrow_rows);
  } else if constexpr (std::is_same<Number, int8_t>::value) {
    norm = largest_norm(s.chunks_apart > 0 ? narrow_rows<N, Number>(rows, s) : narrow_together<N>(rows, s));
    s.chunks_apart -= s.chunks_apart > 0 ? 1 : 0;
  } else {
    norm = largest_norm(narrow_rows<N, Number>(rows, s));
  }
  s.candidates_met = 0;
  if (norm == kNone) return false;

  int64_t panels = 0;
  int64_t by_all = 0;
  for (int64_t lane = 0; lane < lanes; lane += kPanel) {
    // While the first panel is multiplied, the rows of the next chunk are asked for, so that narrowing finds
    // them in L2.
    const Ahead ahead = lane > 0 ? kNothingAhead : rows.ahead(chunk_rows(lanes), bytes / 4);
    float value_before[kPanel];
    int32_t token_before[kPanel];
    std::memcpy(value_before, best.value + lane, sizeof value_before);
    std::memcpy(token_before, best.token + lane, sizeof token_before);
    const bool done = lanes - lane > Isa::kFloats
                          ? screen_panel<N, T, Isa::kVecs, kPanel>(rows, narrow, ahead, norm, lane, best, s)
                          : screen_panel<N, T, 1, Isa::kFloats>(rows, narrow, ahead, norm, lane, best, s);
    if (norm == kNone) return false;
    if (given_up(rows.count * kPanel * rows.dim, s)) return true;
    ++panels;
    if (done) continue;
    ++by_all;
    // The chains of all rows run in the order of the rows, so that the first of equal rows wins. `best` must
    // not hold a later row when they begin.
    std::memcpy(best.value + lane, value_before, sizeof value_before);
    std::memcpy(best.token + lane, token_before, sizeof token_before);
    by_chains(rows, lane, lanes - lane < kPanel ? lanes : lane + kPanel);
  }
  // So many dot products take longer than finding the scale of each row. Measured were random tokens, with
  // one scale for all rows against a scale for each (Zen 4, 32 query tokens of float32, dim 128). If all rows
  // have one norm, one scale takes 0.88 of the time. If one row in a hundred has ten times that norm, it
  // takes 1.55 times as long.
  if (s.candidates_met > rows.count) s.chunks_apart = kRestAfterMany;
  ++s.chunks_screened;
  if (2 * by_all > panels) s.chunks_to_rest = kRestAfterMany;
  return true;
}

// Takes rows into `best`, for all packed lanes, chunk after chunk. Chunks that are not screened are left to
// by_chains(rows, begin, end).
template <typename N, typename T, typename ByChains>
void by_chunks(Rows<T> rows, int64_t lanes, const Best& best, Scratch& s, const ByChains& by_chains) {
  const int64_t most = part_rows(rows.count, chunk_rows(lanes));
  for (int64_t row = 0; row < rows.count && !given_up(0, s); row += most) {
    const Rows<T> chunk = rows.part(row, rows.count - row < most ? rows.count - row : most);
    if (s.screens && s.chunks_to_rest > 0) {
      --s.chunks_to_rest;
    } else if (s.screens) {
      if (screen<N, T>(chunk, lanes, best, s, by_chains)) continue;
    }
    by_chains(chunk, 0, lanes);
  }
}

}  // namespace
}  // namespace colbert_fast
