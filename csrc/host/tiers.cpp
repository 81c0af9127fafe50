#include "host/tiers.h"

#include <stdexcept>

namespace colbert_fast {

// The instruction set is chosen from this table: colbert_fast/_backends/cpu.py makes one backend of each
// tier, in this order, and a call that names no backend runs on the first tier that this machine can run. A
// tier comes before another tier if it is faster wherever both can run.
//
// To add a tier: write csrc/tiers/NAME.cpp, which defines one Tier (csrc/maxsim.h says what a Tier holds, and
// csrc/tiers/avx2.cpp is a short example); declare that Tier at the end of csrc/maxsim.h; and name it
// here. The build finds the new file by itself.
const Tier* const kTiers[] = {&kAmx,      &kAvx512Bf16,  &kAvx512Vnni, &kAvx512,   &kAvxVnni, &kAvx2,
                              &kNeonI8mm, &kNeonDotprod, &kNeon,       &kPortable, nullptr};

namespace {

Counters g_counters[sizeof(kTiers) / sizeof(kTiers[0])];

}  // namespace

const Tier& tier_named(const std::string& name) {
  std::string known;
  for (const Tier* const* t = kTiers; *t != nullptr; ++t) {
    if (name == (*t)->name) return **t;
    known += std::string(known.empty() ? "" : ", ") + (*t)->name;
  }
  throw std::invalid_argument("no CPU tier '" + name + "'; there are " + known);
}

const char* refused(const Tier& tier) {
  if (const char* reason = tier.unsupported()) return reason;
  return tier.refused == nullptr ? nullptr : tier.refused();
}

Counters& counters(const Tier& tier) {
  int index = 0;
  while (kTiers[index] != nullptr && kTiers[index] != &tier) ++index;
  return g_counters[index];
}

}  // namespace colbert_fast
