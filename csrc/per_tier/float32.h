// The maxima of document rows over lanes by products of float32: the definition that every other way of this
// folder has to agree with. This file is compiled once for each tier, inside the tier's target region, and
// includes no system header. screen.h, bfloat16.h, loop.h and upper.h use it.

#pragma once

#include "per_tier/tile.h"

namespace colbert_fast {
namespace {

// Packs the first `lanes` rows of s.query_rows in panels.
inline void pack(int64_t dim, int64_t lanes, Scratch& s) {
  constexpr int64_t kFloats = Isa::kFloats;
  // The unused lanes of the last panel become zeros. Any finite number would do, because nobody reads their
  // maxima.
  const int64_t last_panel = (lanes - 1) / kPanel * kPanel;
  const int64_t padded = lanes == 0 ? 0 : last_panel + (lanes - last_panel > kFloats ? kPanel : kFloats);
  for (int64_t i = lanes * dim; i < padded * dim; ++i) s.query_rows[i] = 0.0f;
  for (int64_t lane = 0; lane < padded; lane += kFloats) {
    const int64_t panel_start = lane / kPanel * kPanel;
    const int64_t width = lanes - panel_start > kFloats ? kPanel : kFloats;
    const float* rows = s.query_rows + lane * dim;
    float* to = s.float32_queries + panel_start * dim + (lane - panel_start);
    int64_t k = 0;
    for (; k + kFloats <= dim; k += kFloats) {
      typename Isa::Vec block[kFloats];
      CF_UNROLL
      for (int l = 0; l < kFloats; ++l) block[l] = Isa::load(rows + l * dim + k);
      Isa::transpose(block);
      CF_UNROLL
      for (int i = 0; i < kFloats; ++i) Isa::store(to + (k + i) * width, block[i]);
    }
    for (; k < dim; ++k) {
      for (int64_t l = 0; l < kFloats; ++l) to[k * width + l] = rows[l * dim + k];
    }
  }
}

template <typename T>
constexpr DType dtype_of() {
  if constexpr (std::is_same<T, BFloat16>::value) return DType::kBFloat16;
  if constexpr (std::is_same<T, Float16>::value) return DType::kFloat16;
  return std::is_same<T, int8_t>::value ? DType::kInt8 : DType::kFloat32;
}

// Takes rows into the maxima of the packed lanes from `begin`, the first lane of a panel, to `end`.
template <typename N, typename T, bool kArgmax>
void accumulate_float32(const Rows<T>& rows, int64_t begin, int64_t end, const Best& best, Scratch& s) {
  if constexpr (N::kLeavesFloat32)
    return N::kFloat32->float32_maxima(dtype_of<T>(), kArgmax, rows.any(), begin, end, best, s);
  constexpr bool kIsFloat32 = std::is_same<T, float>::value;
  // With one panel no row is read twice. Blocks are then for what is asked for ahead: it must stay in L2.
  const int64_t most = kIsFloat32 && end - begin <= kPanel ? 4 * s.block_rows : s.block_rows;
  const int64_t block_rows = part_rows(rows.count, most);
  for (int64_t row = 0; row < rows.count; row += block_rows) {
    if (given_up(0, s)) return;
    const Rows<T> block = rows.part(row, rows.count - row < block_rows ? rows.count - row : block_rows);
    const float* values;
    int64_t stride;
    if constexpr (kIsFloat32) {
      values = block.data;
      stride = block.stride;
    } else {
      Ahead ahead = block.ahead(most, 1);
      for (int64_t r = 0; r < block.count; ++r, ahead.position += ahead.rate) {
        Prefetcher<1>(ahead).before(1);
        block.widened(r, s.float32_rows + r * rows.dim);
      }
      values = s.float32_rows;
      stride = rows.dim;
    }
    for (int64_t lane = begin; lane < end; lane += kPanel) {
      const float* q = s.float32_queries + lane * rows.dim;
      // The first panel streams the rows from memory; the others find them in the cache.
      const Ahead ahead = kIsFloat32 && lane == 0 ? block.ahead(most, rows.dim) : kNothingAhead;
      const Maxima<kArgmax> maxima = {from_lane(best, lane), block.token};
      if (end - lane > Isa::kFloats) {
        panel<Float32Ops, Isa::kVecs, kPanel>(q, values, stride, rows.dim, block.count, ahead, maxima);
      } else {
        panel<Float32Ops, 1, Isa::kFloats>(q, values, stride, rows.dim, block.count, ahead, maxima);
      }
      if (given_up(block.count * kPanel * rows.dim, s)) return;
    }
  }
}

}  // namespace
}  // namespace colbert_fast
