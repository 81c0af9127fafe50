// What becomes of products of int8 when documents are screened: the sinks of the register tile. This file is
// compiled once for each tier with such products, inside the tier's target region, and includes no system
// header. avx512_vnni.h, avx_vnni.cpp and neon_dotprod.h include it.

#pragma once

#include "per_tier/tile.h"

namespace colbert_fast {
namespace {

// What a dot product can be at most, in the lane's scale: from a product of int8, whose lane has an offset,
// or from a product of bfloat16.
CF_ALWAYS_INLINE typename Isa::Vec upper_bound(typename Isa::Idx product, typename Isa::Idx offset,
                                               typename Isa::Vec scale) {
  return Isa::multiply(Isa::to_float(Isa::add(product, offset)), scale);
}
CF_ALWAYS_INLINE typename Isa::Vec upper_bound(typename Isa::Vec product, typename Isa::Idx,
                                               typename Isa::Vec) {
  return product;
}

// The guesses of vector number v of the lanes of a panel, in registers while rows are taken.
struct Guesses {
  typename Isa::Vec spread;
  typename Isa::Vec least;
  typename Isa::Idx guess;

  static CF_ALWAYS_INLINE Guesses load(const Bounds& bounds, int v) {
    return {Isa::load(bounds.spread + v * Isa::kFloats), Isa::load(bounds.least + v * Isa::kFloats),
            Isa::load(bounds.guess + v * Isa::kFloats)};
  }

  CF_ALWAYS_INLINE void take(typename Isa::Vec upper, typename Isa::Vec scale, int32_t row) {
    Isa::update_larger(least, guess, Isa::subtract_product(upper, scale, spread), row);
  }

  CF_ALWAYS_INLINE void store(const Bounds& bounds, int v) const {
    Isa::store(bounds.least + v * Isa::kFloats, least);
    Isa::store(bounds.guess + v * Isa::kFloats, guess);
  }
};

// The sink of tiles of products of rows that were int8 before. Both bounds are the same.
struct ExactBounds {
  Bounds bounds;
  int64_t first;  // the number of the first row, for bounds

  template <int kRows, int kVecs>
  CF_ALWAYS_INLINE void take(const typename Isa::Idx (&sums)[kRows][kVecs], int64_t row) const {
    CF_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      float* uppers = bounds.uppers + (first + row) * kVecs * Isa::kFloats + v * Isa::kFloats;
      typename Isa::Vec least = Isa::load(bounds.least + v * Isa::kFloats);
      typename Isa::Idx guess = Isa::load(bounds.guess + v * Isa::kFloats);
      CF_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const typename Isa::Vec upper =
            upper_bound(sums[r][v], Isa::everywhere(bounds.row_offset[first + row + r]),
                        Isa::everywhere(bounds.scales[first + row + r]));
        Isa::store(uppers + r * kVecs * Isa::kFloats, upper);
        Isa::update_larger(least, guess, upper, static_cast<int32_t>(first + row + r));
      }
      Isa::store(bounds.least + v * Isa::kFloats, least);
      Isa::store(bounds.guess + v * Isa::kFloats, guess);
    }
  }
};

// The sink of tiles of products of rows that became int8. It has kSinkVecs vectors of lanes in registers at
// once.
template <int kSinkVecs>
struct BoundsOfInt8 {
  Bounds bounds;

  template <int kRows, int kVecs>
  CF_ALWAYS_INLINE void take(const typename Isa::Idx (&sums)[kRows][kVecs], int64_t row) const {
    constexpr int kStep = kSinkVecs < kVecs ? kSinkVecs : kVecs;
    constexpr int kWidth = kVecs * Isa::kFloats;
    float* uppers = bounds.uppers + row * kWidth;
    CF_UNROLL
    for (int first = 0; first < kVecs; first += kStep) {
      typename Isa::Idx offset[kStep];
      Guesses guesses[kStep];
      CF_UNROLL
      for (int v = 0; v < kStep; ++v) {
        offset[v] = Isa::load(bounds.offset + (first + v) * Isa::kFloats);
        guesses[v] = Guesses::load(bounds, first + v);
      }
      CF_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const typename Isa::Vec scale = Isa::everywhere(bounds.scales[row + r]);
        CF_UNROLL
        for (int v = 0; v < kStep; ++v) {
          const typename Isa::Vec upper = upper_bound(sums[r][first + v], offset[v], scale);
          Isa::store(uppers + r * kWidth + (first + v) * Isa::kFloats, upper);
          guesses[v].take(upper, scale, static_cast<int32_t>(row + r));
        }
      }
      CF_UNROLL
      for (int v = 0; v < kStep; ++v) guesses[v].store(bounds, first + v);
    }
  }
};

}  // namespace
}  // namespace colbert_fast
