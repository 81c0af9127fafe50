// What the hardware could do: the limits that a benchmark sets beside its measurements.
#pragma once

#include <cstdint>

#include "maxsim.h"

namespace colbert_fast {

// Floating-point operations a second of the tier's multiply-adds, on `threads` threads, over about `seconds`.
double measure_flops(const Product& product, int threads, double seconds);

// Bytes a second when `threads` threads read `bytes` bytes once, in order, with software prefetch.
double measure_read(const Tier& tier, int threads, const void* data, int64_t bytes);

}  // namespace colbert_fast
