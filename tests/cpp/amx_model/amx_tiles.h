// Takes the place of csrc/tiers/amx_tiles.h, and calls the model. csrc/tiers/amx.cpp includes it when it is
// compiled with -DCF_AMX_MODEL='"<this file>"'.

#pragma once

#include "model.h"

namespace colbert_fast {
namespace {
namespace tiles {

using amx_model::load_config;
using amx_model::release;
using amx_model::store_config;

template <int kTile>
void zero() {
  amx_model::zero(kTile);
}
template <int kTile>
void load(const void* from, int64_t stride) {
  amx_model::load(kTile, from, stride);
}
template <int kTile>
void store(void* to, int64_t stride) {
  amx_model::store(kTile, to, stride);
}
template <int kC, int kA, int kB>
void multiply_bfloat16() {
  amx_model::multiply_bfloat16(kC, kA, kB);
}
template <int kC, int kA, int kB>
void multiply_int8() {
  amx_model::multiply_int8(kC, kA, kB);
}

}  // namespace tiles
}  // namespace
}  // namespace colbert_fast
