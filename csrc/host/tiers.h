// The table of tiers: where the instruction set is chosen, and where a new tier is added.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "maxsim.h"

namespace colbert_fast {

// Every tier, the best first, ended by null.
extern const Tier* const kTiers[];

// The tier of this name. Throws std::invalid_argument, with all names, if there is no such tier.
const Tier& tier_named(const std::string& name);

// Null, or the reason why a tier cannot run on this machine. This asks the operating system for what the tier
// needs. Call it before the tier is run for the first time.
const char* refused(const Tier& tier);

// What a tier has done since the process started. Tests read this to know that the tier really ran.
struct Counters {
  std::atomic<int64_t> calls;            // how often it scored, or computed gradients
  std::atomic<int64_t> chunks_screened;  // how many chunks of documents it screened (per_tier/screen.h)
  std::atomic<int64_t> left_out;         // how many pairs it did not score for the best ones (host/best.h)
};
Counters& counters(const Tier& tier);

}  // namespace colbert_fast
