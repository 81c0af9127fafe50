// x86-64 with AVX-512, AVX512-BF16 and AVX512-VNNI, for processors of AMD (Zen 4 and later): the avx512_vnni
// tier, with bfloat16 multiplied as it is.
//
// vdpbf16ps multiplies two pairs of bfloat16 numbers and adds both products to a float32. On Zen 5 it issues
// as often as an FMA, which makes it twice as fast (`make bench` measures both peaks). Each of the two
// additions rounds at most once, so a block has as many roundings as a block of multiply-adds.
#include "codes.h"
#include "host/cpu_features.h"
#include "maxsim.h"
#include "scratch.h"
#include "target.h"

#if CF_AVX512_BF16
CF_TARGET_BEGIN("avx512bf16,avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

#include "tiers/avx512_vnni.h"

namespace colbert_fast {
namespace {

struct BFloat16Ops {
  using Element = FourBytes;
  using Acc = __m512;
  static constexpr int64_t kBlock = kBlockNumbers / 2;
  static CF_ALWAYS_INLINE Acc zero() { return _mm512_setzero_ps(); }
  static CF_ALWAYS_INLINE Acc load(const Element* from) { return _mm512_loadu_ps(from); }
  static CF_ALWAYS_INLINE Acc broadcast(const Element* from) {
    return _mm512_castsi512_ps(_mm512_set1_epi32(bits_of(from)));
  }
  static CF_ALWAYS_INLINE Acc fma(Acc element, Acc lanes, Acc sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(element), reinterpret_cast<__m512bh>(lanes));
  }
  static CF_ALWAYS_INLINE Acc add(Acc a, Acc b) { return _mm512_add_ps(a, b); }
};

struct Narrow : RaisedInt8Narrow {
  static constexpr bool kBFloat16 = true;
  static constexpr const Tier* kForFloat32Queries = &kAvx512Vnni;
  using Direct = BFloat16Ops;
  // screen.h says how to measure. In ns a document token of bfloat16, multiplied as it is and screened, on
  // Zen 5: 19 and 23 for 32 query tokens, 36 and 36 for 64, 72 and 60 for 128, 144 and 112 for 256. On Zen 4:
  // 70 and 59 for 48, 131 and 110 for 96; for 64 with documents of 80 tokens 88 and 91, of 120 also 88 and
  // 89, of 180 87 and 80.
  template <typename T>
  static constexpr int64_t least_lanes() {
    return std::is_same<T, BFloat16>::value ? 33 : 1;
  }
  template <typename T>
  static constexpr int64_t least_rows(int64_t lanes) {
    return std::is_same<T, BFloat16>::value && lanes < 97 ? 128 : RaisedInt8Narrow::least_rows<T>(lanes);
  }

  template <int kVecs, int kWidth, bool kArgmax>
  static void maxima(const NarrowRows& rows, const unsigned char* q, Ahead ahead,
                     const Maxima<kArgmax>& maxima) {
    panel<BFloat16Ops, kVecs, kWidth>(rows, q, ahead, maxima);
  }
};

}  // namespace
}  // namespace colbert_fast

#include "per_tier/loop.h"

namespace colbert_fast {
namespace {

// The avx512_vnni tier, which runs wherever this tier does, scores what is not bfloat16, and does all else.
// Compiled again here, the same code would take 160 KB.
template <bool kArgmax>
void score_bfloat16(const ScoreJob& job, const Task& task, Scratch& scratch) {
  if (job.problem->d.dtype == DType::kBFloat16) return score_task<BFloat16, kArgmax>(job, task, scratch);
  return (kArgmax ? kAvx512Vnni.score_argmax : kAvx512Vnni.score)(job, task, scratch);
}
void ceilings(const ScoreJob& job, const Task& task, Scratch& scratch) {
  kAvx512Vnni.ceilings(job, task, scratch);
}
void backward(const BackwardJob& job, const BackwardTask& task, Scratch& scratch) {
  kAvx512Vnni.backward(job, task, scratch);
}
void upper(const UpperJob& job, const Task& task, Scratch& scratch) { kAvx512Vnni.upper(job, task, scratch); }

}  // namespace
}  // namespace colbert_fast

CF_TARGET_END

namespace colbert_fast {
namespace {
const char* unsupported() {
  if (const char* reason = kAvx512Vnni.unsupported()) return reason;
  if (!features().avx512bf16) return "this CPU has no AVX512-BF16";
  return features().intel ? "Intel's products of bfloat16 take longer than screening in int8" : nullptr;
}

constexpr Tier avx512_bf16_tier() {
  Tier tier = tier_of("avx512_bf16", &unsupported);
  tier.score = &score_bfloat16<false>;
  tier.score_argmax = &score_bfloat16<true>;
  tier.ceilings = &ceilings;
  tier.backward = &backward;
  tier.upper = &upper;
  return tier;
}
}  // namespace

constexpr Tier kAvx512Bf16 = avx512_bf16_tier();
}  // namespace colbert_fast

#else

namespace colbert_fast {
namespace {
const char* unsupported() {
  return CF_X86_64 ? "built without AVX512-BF16, which takes GCC 10, Clang 9 or Visual Studio 2022"
                   : not_x86_64();
}
}  // namespace

constexpr Tier kAvx512Bf16 = absent("avx512_bf16", &unsupported);
}  // namespace colbert_fast

#endif
