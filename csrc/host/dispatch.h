// One call: a problem is scored on a tier. The bounds of the problem have been checked.
#pragma once

#include <cstdint>

#include "host/threads.h"
#include "maxsim.h"

namespace colbert_fast {

// scores is [pairs]; argmax is [pairs][problem.max_lq] or null. Returns whether a document had no token.
// May throw std::bad_alloc, before any work is done. After an interrupt the results are of no use.
bool score(const Tier& tier, const Problem& problem, int threads, float* scores, int32_t* argmax,
           Interrupt& interrupt);

// Whether ceilings() can be called for this problem.
bool has_ceilings(const Tier& tier, const Problem& problem);

// Writes what each score is at most to `most`, [pairs]. The problem must be of all pairs. Otherwise as
// score().
bool ceilings(const Tier& tier, const Problem& problem, int threads, float* most, Interrupt& interrupt);

}  // namespace colbert_fast
