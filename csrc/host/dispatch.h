// Chooses a tier, cuts a problem into units and runs them. The bounds of the problem have been checked.
#pragma once

#include <cstdint>

#include "host/threads.h"
#include "maxsim.h"

namespace colbert_fast {

// Best first, ended by null. This list is the whole CPU dispatch.
extern const Tier* const kTiers[];

// Null, or the reason why a tier cannot run: its own, or that of the operating system, which this asks for
// what the tier needs. To be called before anything else below.
const char* refused(const Tier& tier);

// How often a tier has scored or differentiated since the process started: how tests know that it really ran.
int64_t calls(const Tier& tier);

// How many chunks of documents it has screened (screen.h): how tests know that this happens.
int64_t chunks_screened(const Tier& tier);

// scores [pairs]; argmax [pairs][problem.max_lq] or null. True if some document had no token.
// May throw std::bad_alloc, before any work is done. After an interrupt what was written is of no use.
bool score(const Tier& tier, const Problem& problem, int threads, float* scores, int32_t* argmax,
           Interrupt& interrupt);

// Adds to one side's gradient [rows][dim], which the caller has zeroed. May throw std::bad_alloc likewise.
void backward(const Tier& tier, const Problem& problem, int threads, bool to_queries,
              const float* grad_scores, const int32_t* argmax, float* grad, Interrupt& interrupt);

}  // namespace colbert_fast
