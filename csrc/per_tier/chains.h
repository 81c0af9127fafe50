// The chains that decide when documents are screened: of each lane of a panel with a row of its own. This
// file is compiled once for each tier, inside the tier's target region, and includes no system header.
// screen.h includes it; it says what the steps are, and what a tier offers as N.

#pragma once

#include "per_tier/float32.h"
#include "per_tier/narrow.h"

namespace colbert_fast {
namespace {

// The chain of each lane of a panel with a row of its own, of `steps` elements.
template <typename Ops, int kVecs, int kWidth>
void chains(const typename Ops::Element* q, const typename Ops::Element* const* rows, int64_t steps,
            float* values) {
  using Element = typename Ops::Element;
  using Blocks = BlockSums<Ops, 1, kVecs>;
  typename Ops::Acc memory[Blocks::kSize];
  Blocks blocks(memory);
  typename Blocks::Sums sums;
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

// The sums of `n` numbers from number `begin` on, at most a block, of kChains vectors of chains side by side.
// Chain l of vector c is of the row of int8 numbers rows[c * kFloats + l], times its scale, and of the lane l
// of q[c], in a panel of kWidth lanes. Rows are transposed as they are, four numbers at a time, which takes a
// quarter of the shuffles.
template <typename N, int kChains, int kWidth>
CF_ALWAYS_INLINE void int8_block(const int8_t* const* rows, const float* const (&q)[kChains],
                                 const typename Isa::Vec* scales, int64_t begin, int64_t n,
                                 typename Isa::Vec* sums) {
  using R = typename N::Registers;
  using Vec = typename Isa::Vec;
  constexpr int64_t kTogether = 4 * Isa::kFloats;
  CF_UNROLL
  for (int c = 0; c < kChains; ++c) sums[c] = Isa::zero();
  for (int64_t k = begin; k < begin + n; k += kTogether) {
    const int64_t left = begin + n - k;
    Vec columns[kChains][Isa::kFloats];
    CF_UNROLL
    for (int c = 0; c < kChains; ++c) {
      CF_UNROLL
      for (int l = 0; l < Isa::kFloats; ++l) {
        int8_t tail[kTogether];
        columns[c][l] = R::load_bits(all_or_tail(rows[c * Isa::kFloats + l] + k, left, tail));
      }
      Isa::transpose(columns[c]);
    }
    const auto step = [&](Vec number, int c, int64_t i) {
      const Vec lanes = Isa::load(q[c] + (k + i) * kWidth);
      sums[c] = Isa::fma(R::multiply(number, scales[c]), lanes, sums[c]);
    };
    if (left >= kTogether) {
      CF_UNROLL
      for (int i = 0; i < Isa::kFloats; ++i) {
        CF_UNROLL
        for (int c = 0; c < kChains; ++c) step(R::template int8_to_float<0>(columns[c][i]), c, 4 * i);
        CF_UNROLL
        for (int c = 0; c < kChains; ++c) step(R::template int8_to_float<1>(columns[c][i]), c, 4 * i + 1);
        CF_UNROLL
        for (int c = 0; c < kChains; ++c) step(R::template int8_to_float<2>(columns[c][i]), c, 4 * i + 2);
        CF_UNROLL
        for (int c = 0; c < kChains; ++c) step(R::template int8_to_float<3>(columns[c][i]), c, 4 * i + 3);
      }
    } else {
      for (int64_t i = 0; i < left; i += 4) {
        for (int c = 0; c < kChains; ++c) {
          const Vec four = columns[c][i / 4];
          step(R::template int8_to_float<0>(four), c, i);
          if (i + 1 < left) step(R::template int8_to_float<1>(four), c, i + 1);
          if (i + 2 < left) step(R::template int8_to_float<2>(four), c, i + 2);
          if (i + 3 < left) step(R::template int8_to_float<3>(four), c, i + 3);
        }
      }
    }
  }
}

// The chain of each lane of a panel with a row of its own of `dim` int8 numbers, times the row's scale.
template <typename N, int kVecs, int kWidth>
void int8_chains(const float* q, const int8_t* const* rows, const float* scales, int64_t dim, float* values) {
  using Vec = typename Isa::Vec;
  using Blocks = BlockSums<Float32Ops, 1, kVecs>;
  Vec memory[Blocks::kSize];
  Blocks blocks(memory);
  typename Blocks::Sums sums;
  const float* lanes[kVecs];
  Vec scale[kVecs];
  for (int v = 0; v < kVecs; ++v) {
    lanes[v] = q + v * Isa::kFloats;
    scale[v] = Isa::load(scales + v * Isa::kFloats);
  }
  int64_t k = 0;
  if constexpr (kVecs == 1) {
    // The latency of one chain is longer than what a step takes beside it. So two blocks are computed at
    // once.
    const int8_t* both[2 * Isa::kFloats];
    for (int l = 0; l < Isa::kFloats; ++l) {
      both[l] = rows[l];
      both[Isa::kFloats + l] = rows[l] + kBlockNumbers;
    }
    const float* const its_lanes[2] = {q, q + kBlockNumbers * kWidth};
    const Vec its_scale[2] = {scale[0], scale[0]};
    for (; dim - k > 2 * kBlockNumbers; k += 2 * kBlockNumbers) {
      Vec of_both[2];
      int8_block<N, 2, kWidth>(both, its_lanes, its_scale, k, kBlockNumbers, of_both);
      for (int b = 0; b < 2; ++b) {
        sums[0][0] = of_both[b];
        blocks.done(sums, k + (b + 1) * kBlockNumbers, dim);
      }
    }
  }
  for (;;) {
    const int64_t end = blocks.end_of_block(k, dim);
    int8_block<N, kVecs, kWidth>(rows, lanes, scale, k, end - k, sums[0]);
    k = end;
    if (blocks.done(sums, end, dim)) break;
  }
  CF_UNROLL
  for (int v = 0; v < kVecs; ++v) Isa::store(values + v * Isa::kFloats, sums[0][v]);
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

// Row r as the elements of Ops: where it is, or in `to`, which has `bytes`.
template <typename Ops, typename T>
const typename Ops::Element* as_elements(Rows<T> rows, int64_t r, int64_t bytes, unsigned char* to) {
  if constexpr (std::is_same<Ops, Float32Ops>::value) {
    (void)bytes;
    return rows.widened(r, reinterpret_cast<float*>(to));
  } else {
    const size_t used = static_cast<size_t>(rows.dim) * sizeof(T);
    if (used == static_cast<size_t>(bytes))
      return reinterpret_cast<const typename Ops::Element*>(rows.row(r));
    std::memcpy(to, rows.row(r), used);
    std::memset(to + used, 0, static_cast<size_t>(bytes) - used);
    return reinterpret_cast<const typename Ops::Element*>(to);
  }
}

// Steps 2 and 5. Takes the chain of each lane of a panel with its row, row_of[lane], into `best`.
template <typename N, typename T, int kVecs, int kWidth>
void decide(Rows<T> rows, const int32_t* row_of, int64_t lane, const Best& best, Scratch& s) {
  using Ops = typename Deciding<N, T>::Ops;
  using Element = typename Ops::Element;
  constexpr int kLanes = kVecs * Isa::kFloats;
  constexpr bool kFloat32 = std::is_same<Ops, Float32Ops>::value;
  const int64_t bytes = kFloat32 ? 4 * rows.dim : narrow_bytes<N, BFloat16>(rows.dim);
  const void* q = kFloat32 ? static_cast<const void*>(s.float32_queries + lane * rows.dim)
                           : s.bf16_queries + lane * bytes;
  float values[kLanes];
  int32_t tokens[kLanes];
  for (int l = 0; l < kLanes; ++l) tokens[l] = static_cast<int32_t>(rows.token + row_of[l]);
  if constexpr (std::is_same<T, int8_t>::value) {
    const int8_t* at[kLanes];
    float scales[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      at[l] = rows.row(row_of[l]);
      scales[l] = rows.scale(row_of[l]);
    }
    int8_chains<N, kVecs, kWidth>(static_cast<const float*>(q), at, scales, rows.dim, values);
  } else {
    const Element* elements[kLanes];
    for (int l = 0; l < kLanes; ++l)
      elements[l] = as_elements<Ops>(rows, row_of[l], bytes, s.chosen_rows + l * bytes);
    chains<Ops, kVecs, kWidth>(static_cast<const Element*>(q), elements,
                               bytes / static_cast<int64_t>(sizeof(Element)), values);
  }
  // Also where no argmax is wanted, whose tokens then mean nothing: so screening is compiled once for both.
  merge<true>(kLanes, values, tokens, from_lane(best, lane));
}

}  // namespace
}  // namespace colbert_fast
