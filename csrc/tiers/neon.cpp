// AArch64. Its baseline has NEON with FMA and conversion of binary16, so every such processor runs this tier.
#include "codes.h"
#include "host/cpu_features.h"
#include "maxsim.h"
#include "scratch.h"
#include "target.h"

#if CF_AARCH64
CF_IN_PROGRAM_ORDER_BEGIN

#include "tiers/neon_isa.h"

#include "per_tier/no_narrow.h"

#include "per_tier/loop.h"  // uses that Isa and Narrow

CF_IN_PROGRAM_ORDER_END

namespace colbert_fast {
namespace {
const char* unsupported() { return nullptr; }
}  // namespace

constexpr Tier kNeon = tier_of("neon", &unsupported);
}  // namespace colbert_fast

#else

namespace colbert_fast {
constexpr Tier kNeon = absent("neon", &not_aarch64);
}  // namespace colbert_fast

#endif
