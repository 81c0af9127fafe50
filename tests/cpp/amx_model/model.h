// A model of AMX in plain C++, for CPUs without AMX. It has the tile registers of each thread, the
// instructions that the amx tier uses, and the permission of the kernel. Where the CPU would raise a fault,
// the model prints a message and aborts.
#pragma once

#include <cstdint>

#include "tiers/amx_config.h"

namespace colbert_fast {
namespace amx_model {

// What the functions of amx_permission.h answer. The tiles must not be used before a request was granted.
enum class Kernel { kGrants, kRefuses, kHasNoAmx };
void set_kernel(Kernel kernel);
int64_t requests();  // how often the kernel was asked so far

// How many instructions of each kind this thread has executed.
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
