// AArch64: its baseline has NEON with FMA and binary16 conversion, so every such processor runs this.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "maxsim.h"
#include "target.h"

#if CF_AARCH64
CF_IN_PROGRAM_ORDER_BEGIN

#include "neon_isa.h"

namespace colbert_fast {
namespace {

struct Narrow {
  static constexpr bool kBFloat16 = false;
  static constexpr bool kFloat = false;
  static constexpr bool kInt8 = false;
};

}  // namespace
}  // namespace colbert_fast

#include "loop.h"

CF_IN_PROGRAM_ORDER_END

namespace colbert_fast {
namespace {
const char* unsupported() { return nullptr; }
constexpr Product kProducts[] = {product<Float32Ops>("float32", 1), {nullptr, 0, nullptr}};
}  // namespace

const Tier kNeon = {"neon",           &unsupported,  kPanel,    Isa::kRows, 0, &score_any<false>,
                    &score_any<true>, &backward_any, kProducts, &read};
}  // namespace colbert_fast

#else

namespace colbert_fast {
namespace {
const char* unsupported() { return "not an AArch64 processor"; }
}  // namespace
const Tier kNeon = {"neon", &unsupported, 1, 1, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
}  // namespace colbert_fast

#endif
