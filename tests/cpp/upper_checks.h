// Checks of upper bounds, for kernels.cpp.
#pragma once

#include <cstdint>

#include "maxsim.h"

// Checks the bounds of a tier against their definition in double. Returns a number made of their bits, which
// is the same for all tiers that fuse multiplication and addition.
uint64_t check_upper(const colbert_fast::Tier& tier, bool only_shared_work);
