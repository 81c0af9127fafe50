// A model of AMX in plain C++, for CPUs without it: the tile registers of each thread, the instructions that
// the amx tier uses, and the permission of the kernel. What would be a fault is a message and an abort.
#pragma once

#include <cstdint>

#include "tiers/amx_config.h"

namespace colbert_fast {
namespace amx_model {

// What amx_permission.h answers. The tiles may not be touched before the request was granted.
enum class Kernel { kGrants, kRefuses, kHasNoAmx };
void set_kernel(Kernel kernel);
int64_t requests();  // to the kernel so far

// The instructions this thread has executed.
struct Counts {
  int64_t config_loads, config_stores, releases, loads, stores, products;
};
const Counts& counts();

void load_config(const TileConfig& config);
void store_config(TileConfig& config);
void release();
void zero(int tile);
void load(int tile, const void* from, int64_t stride);
void store(int tile, void* to, int64_t stride);
void multiply_bfloat16(int c, int a, int b);
void multiply_int8(int c, int a, int b);

}  // namespace amx_model
}  // namespace colbert_fast
