// Documents of bfloat16, multiplied as they are, for a tier whose CPU has an instruction for products of
// bfloat16. This file is compiled once for each tier, inside the tier's target region, and includes no system
// header. loop.h includes it. screen.h says what a tier offers as N; narrow.h packs the queries.
//
// Products of two bfloat16 numbers are exact in float32. They are summed in float32 in blocks, as the other
// tiers do it (sums.h). There is one difference: the instructions take denormal inputs for zero, and they
// flush denormal sums to zero. The queries are checked for numbers that this would change much, and the
// maxima are checked afterwards:
//
// Let q be a query token of n numbers, none of them denormal. Then flushing changes a dot product with q by
// at most A = 2^-126 (sum |q_k| + 2n). A flushed number d_k loses |q_k d_k| < 2^-126 |q_k|. A flushed sum
// loses less than 2^-126, and at most two sums are flushed for each number. Where the magnitude of the
// maximum is at least 2^30 A, this is far below one rounding of float32. That is the lane's floor.
//
// A lane whose maximum is below its floor is scored again with products of float32. So is every lane with a
// number that is denormal, infinite or NaN: its floor is NaN, which no maximum reaches.

#pragma once

#include "per_tier/float32.h"
#include "per_tier/screen.h"

namespace colbert_fast {
namespace {

template <typename N, typename T>
constexpr bool multiplies_bfloat16() {
  return std::is_same<T, BFloat16>::value && N::kBFloat16;
}

// Takes rows into s.bf16_best, for the packed lanes from `begin`, the first lane of a panel, to `end`.
template <typename N, bool kArgmax>
void accumulate_products(const Rows<BFloat16>& rows, int64_t begin, int64_t end, Scratch& s) {
  const int64_t bytes = narrow_bytes<N, BFloat16>(rows.dim);
  const NarrowRows narrow = as_they_are<N>(rows, s.bf16_rows);
  for (int64_t lane = begin; lane < end; lane += kPanel) {
    const unsigned char* q = s.bf16_queries + lane * bytes;
    const Maxima<kArgmax> maxima = {from_lane(s.bf16_best, lane), rows.token};
    const Ahead ahead = lane > 0 ? kNothingAhead : rows.ahead(kChunkRows, bytes / 4);
    if (end - lane > Isa::kFloats) {
      N::template maxima<Isa::kVecs, kPanel, kArgmax>(narrow, q, ahead, maxima);
    } else {
      N::template maxima<1, Isa::kFloats, kArgmax>(narrow, q, ahead, maxima);
    }
    if (given_up(rows.count * kPanel * rows.dim, s)) return;
  }
}

// Scores the lanes again whose maximum is below their floor.
template <typename N, bool kArgmax>
void rescore_below_floor(const Rows<BFloat16>& rows, int64_t lanes, Scratch& s) {
  bool any = false;
  for (int64_t l = 0; l < lanes; ++l) any |= !(std::fabs(s.bf16_best.value[l]) >= s.lane_floor[l]);
  if (!any) return;
  s.rescored = true;
  reset(rows.token, lanes, s.float32_best);
  accumulate_float32<N, BFloat16, kArgmax>(rows, 0, lanes, s.float32_best, s);
  for (int64_t l = 0; l < lanes; ++l) {
    if (std::fabs(s.bf16_best.value[l]) >= s.lane_floor[l]) continue;
    s.bf16_best.value[l] = s.float32_best.value[l];
    s.bf16_best.token[l] = s.float32_best.token[l];
  }
}

// Takes rows into s.best, for all packed lanes.
template <typename N, bool kArgmax>
void accumulate_bfloat16(const Rows<BFloat16>& rows, int64_t lanes, Scratch& s) {
  reset(rows.token, lanes, s.bf16_best);
  const auto by_chains = [&](const Rows<BFloat16>& part, int64_t begin, int64_t end) {
    accumulate_products<N, kArgmax>(part, begin, end, s);
  };
  if constexpr (screens<N, BFloat16>()) {
    by_chunks<N, BFloat16>(rows, lanes, s.bf16_best, s, by_chains);
  } else {
    const int64_t most = part_rows(rows.count, kChunkRows);
    for (int64_t row = 0; row < rows.count && !given_up(0, s); row += most)
      by_chains(rows.part(row, rows.count - row < most ? rows.count - row : most), 0, lanes);
  }
  rescore_below_floor<N, kArgmax>(rows, lanes, s);
  merge<kArgmax>(lanes, s.bf16_best.value, s.bf16_best.token, s.best);
}

}  // namespace
}  // namespace colbert_fast
