// Ceilings of scores: numbers that the scores cannot exceed, by products of int8 alone, for callers who want
// only the best documents. This file is compiled once for each tier, inside the tier's target region, and
// includes no system header. loop.h includes it. A tier that has ceilings says so by Narrow::kCeilings.
//
// THE PROOF is in screen.h: a chain f_j is at most c_j + B_j + e. So the maximum of a lane is at most
// max_j (c_j + B_j) + e, and the ceiling is the sum of this over the lanes. D is taken over the whole
// document. Neither products nor sums of float32 make up for the rounding of c_j here: float(c_j) and its two
// scales err by 3 u' of ||q^|| D, and z has (n + 2) 2u for a sum of c_j that is exact. Sums of lanes are
// double. A ceiling is infinite if a lane or a row may not be screened, for example because it has a NaN.

#pragma once

#include "per_tier/screen.h"

namespace colbert_fast {
namespace {

// Document rows that are narrowed together. So few stay in L1 with a panel, in both forms. Of 96 or 320 rows
// the ceilings of float32, float16 and int8 took 1.05 to 1.1 times as long (Zen 4, 32 lanes, dim 128).
constexpr int64_t kCeilingRows = 48;

// The sink that finds max_j (c_j + B_j) of each lane, divided by the lane's scale. `kExact`: the rows were
// int8 before.
template <typename R, bool kExact>
struct Ceilings {
  const float* scales;    // [rows]
  const int32_t* offset;  // [lanes of the panel], or, if kExact, [rows]
  float* uppers;          // [lanes of the panel]

  template <int kRows, int kVecs>
  CF_ALWAYS_INLINE void take(const typename Isa::Idx (&sums)[kRows][kVecs], int64_t row) const {
    CF_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      typename Isa::Idx its_offset;
      if constexpr (!kExact) its_offset = Isa::load(offset + v * Isa::kFloats);
      typename Isa::Vec most = Isa::load(uppers + v * Isa::kFloats);
      CF_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const typename Isa::Vec scale = R::everywhere(scales[row + r]);
        if constexpr (kExact) its_offset = R::everywhere(offset[row + r]);
        most = R::max(most, R::multiply(R::to_float(R::add(sums[r][v], its_offset)), scale));
      }
      Isa::store(uppers + v * Isa::kFloats, most);
    }
  }
};

// Sets s.best.value to max_j (c_j + B_j) over the rows of a document, divided by the lane's scale. Returns D,
// or infinity if the document may not be screened.
template <typename N, typename T>
float raise_document(Rows<T> rows, int64_t lanes, Scratch& s) {
  constexpr bool kExact = std::is_same<T, int8_t>::value;
  const int64_t bytes = narrow_bytes<N, int8_t>(rows.dim);
  float most = 0.0f;
  const int64_t most_rows = part_rows(rows.count, kCeilingRows);
  for (int64_t row = 0; row < rows.count; row += most_rows) {
    const Rows<T> chunk = rows.part(row, rows.count - row < most_rows ? rows.count - row : most_rows);
    float squares;
    NarrowRows narrow = {s.narrow_rows, bytes, bytes, chunk.count};
    if constexpr (kExact) {
      squares = sum_rows<N>(chunk, 0, s);
      narrow = as_they_are<N>(chunk, s.narrow_rows);
    } else {
      squares = narrow_together<N>(chunk, s);
    }
    most = squares > most ? squares : most;
    for (int64_t lane = 0; lane < lanes; lane += kPanel) {
      // Rows are asked for one chunk ahead, as in screen.h.
      const Ahead ahead = lane > 0 ? kNothingAhead : chunk.ahead(kCeilingRows, bytes / 4);
      const unsigned char* q = s.screened_queries + lane * bytes;
      const int32_t* offset = kExact ? s.row_offset : s.lane_offset + lane;
      const Ceilings<typename N::Registers, kExact> sink = {s.row_scales, offset, s.best.value + lane};
      const bool wide = lanes - lane > Isa::kFloats;
      if constexpr (kExact) {
        if (wide) {
          N::template exact_products<Isa::kVecs, kPanel>(narrow, q, ahead, sink);
        } else {
          N::template exact_products<1, Isa::kFloats>(narrow, q, ahead, sink);
        }
      } else if (wide) {
        N::template int8_products<Isa::kVecs, kPanel>(narrow, q, ahead, sink);
      } else {
        N::template int8_products<1, Isa::kFloats>(narrow, q, ahead, sink);
      }
      if (given_up(chunk.count * kPanel * chunk.dim, s)) return 0.0f;
    }
  }
  return largest_norm(most);
}

// The ceiling of the query whose lanes are [first, last).
inline float ceiling(int64_t first, int64_t last, float norm, const Scratch& s) {
  constexpr float kNone = std::numeric_limits<float>::infinity();
  double sum = 0.0;
  bool plain = norm < kNone;
  for (int64_t l = first; l < last; ++l) {
    const float error = s.lane_error[l];
    plain &= error == error;
    // A lane of zeros has the error -inf, and its maximum is 0.
    const double upper = static_cast<double>(s.best.value[l]) + static_cast<double>(error) * norm;
    sum += error < 0.0f ? 0.0 : upper * static_cast<double>(s.lane_scale[l]);
  }
  // For the roundings of the ceiling and of the score to float32.
  sum += 4.76837158203125e-7 * std::fabs(sum);  // 2^-21
  return plain ? static_cast<float>(sum) : kNone;
}

}  // namespace
}  // namespace colbert_fast
