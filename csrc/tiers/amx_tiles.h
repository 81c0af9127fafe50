// The instructions of AMX, by the number of the tile. Include it inside a target region, after
// amx_permission.h has defined CF_AMX. tests/cpp/amx_model has the same functions in plain C++.
//
// These are not the compiler's intrinsics. The intrinsics of GCC 12 do not tell the compiler that a tile is
// loaded from memory, nor that a configuration has more than eight bytes. The compiler may then move or drop
// the stores before them.

#pragma once

#include "tiers/amx_config.h"

namespace colbert_fast {
namespace {
namespace tiles {

CF_ALWAYS_INLINE void load_config(const TileConfig& config) {
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
}
CF_ALWAYS_INLINE void store_config(TileConfig& config) { __asm__ volatile("sttilecfg %0" : "=m"(config)); }
CF_ALWAYS_INLINE void release() { __asm__ volatile("tilerelease"); }

template <int kTile>
CF_ALWAYS_INLINE void zero() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
// A tile is 16 rows of 64 bytes, which lie `stride` bytes apart.
template <int kTile>
CF_ALWAYS_INLINE void load(const void* from, int64_t stride) {
  __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(kTile), "r"(from), "r"(stride) : "memory");
}
template <int kTile>
CF_ALWAYS_INLINE void store(void* to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(kTile), "r"(to), "r"(stride) : "memory");
}
// C += A B: bfloat16 into float32, and signed int8 into int32.
template <int kC, int kA, int kB>
CF_ALWAYS_INLINE void multiply_bfloat16() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
}
template <int kC, int kA, int kB>
CF_ALWAYS_INLINE void multiply_int8() {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
}

}  // namespace tiles
}  // namespace
}  // namespace colbert_fast
