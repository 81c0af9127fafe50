// AArch64 with FEAT_I8MM, FEAT_BF16 and FEAT_DotProd (Neoverse N2 and V1, Apple M2 and later; Armv8.6 has all
// three): bfloat16 is multiplied as it is, and everything else is screened in int8 (screen.h). Both use
// products of matrices.
//
// SMMLA and BFMMLA multiply two rows by two lanes, eight bytes of each, and add the 2 x 2 products to four
// numbers. They issue as often as SDOT and do twice its work, according to LLVM's models of Neoverse N2, V1
// and V2. By the model of V1 this tile takes 6.8 cycles where the tile of neon_dotprod.h takes 12.
//
// The tile keeps the shape of neon_isa.h: 6 rows are 3 pairs, 16 lanes are 8 pairs, and 3 x 8 products fill
// the same 24 registers. In a panel the eight bytes of a lane lie together, so two lanes are one load. Two
// rows are one load, and one load into the upper half, which also takes a slot of the vector pipes: 3 slots
// for 24 products. A last row without a partner is its own partner.
//
// BFMMLA adds two products to each of its sums, and then the next two. Unless a program asks for FEAT_EBF16,
// it rounds to odd: once the sum of the two products, and once its sum with the chain. Each of these is off
// by less than 2^-23, twice as much as rounding to nearest may lose. A product passes one such rounding for
// every two numbers, and one more. So a block of 128 numbers errs by at most 65 of them, which is as much as
// 130 roundings of a float32 chain. A block of float32 has 128 roundings, and sums.h has room for two more.
// Denormal inputs count as zero. Denormal products and sums, four for two numbers, become zero: this is the
// 2n in the A of bfloat16.h.
#include "codes.h"
#include "host/cpu_features.h"
#include "maxsim.h"
#include "scratch.h"
#include "target.h"

#if CF_AARCH64_DOT
CF_TARGET_BEGIN("arch=armv8.2-a+dotprod+bf16+i8mm")
CF_IN_PROGRAM_ORDER_BEGIN

#include "tiers/neon_dotprod.h"

namespace colbert_fast {
namespace {

struct Int8Matrix {
  using Element = FourBytes;
  using Acc = int32x4_t;
  static constexpr int64_t kBlock = 0;
  static CF_ALWAYS_INLINE Acc zero() { return vdupq_n_s32(0); }
  static CF_ALWAYS_INLINE Acc load(const Element* from) {
    return vreinterpretq_s32_u8(vld1q_u8(from->bytes));
  }
  static CF_ALWAYS_INLINE Acc fma(Acc rows, Acc lanes, Acc sum) {
    return vmmlaq_s32(sum, vreinterpretq_s8_s32(rows), vreinterpretq_s8_s32(lanes));
  }
  // The lower halves of two vectors, and the upper halves.
  static CF_ALWAYS_INLINE Acc lower(Acc a, Acc b) { return vcombine_s32(vget_low_s32(a), vget_low_s32(b)); }
  static CF_ALWAYS_INLINE Acc upper(Acc a, Acc b) { return vcombine_s32(vget_high_s32(a), vget_high_s32(b)); }
};

struct BFloat16Matrix {
  using Element = FourBytes;
  using Acc = float32x4_t;
  static constexpr int64_t kBlock = kBlockNumbers / 2;
  static CF_ALWAYS_INLINE Acc zero() { return vdupq_n_f32(0.0f); }
  static CF_ALWAYS_INLINE Acc load(const Element* from) {
    return vreinterpretq_f32_u8(vld1q_u8(from->bytes));
  }
  static CF_ALWAYS_INLINE Acc fma(Acc rows, Acc lanes, Acc sum) {
    return vbfmmlaq_f32(sum, vreinterpretq_bf16_f32(rows), vreinterpretq_bf16_f32(lanes));
  }
  static CF_ALWAYS_INLINE Acc add(Acc a, Acc b) { return vaddq_f32(a, b); }
  static CF_ALWAYS_INLINE Acc lower(Acc a, Acc b) { return vcombine_f32(vget_low_f32(a), vget_low_f32(b)); }
  static CF_ALWAYS_INLINE Acc upper(Acc a, Acc b) { return vcombine_f32(vget_high_f32(a), vget_high_f32(b)); }
};

// The Tile of tile.h. Each step takes two elements. There is an even number of them.
template <typename Ops>
struct MatrixTile {
  template <int kRows, int kVecs, int kWidth, typename Sink>
  static void compute(const FourBytes* q, const FourBytes* rows, int64_t stride, int64_t steps, int64_t row,
                      Ahead ahead, typename Ops::Acc* memory, const Sink& sink) {
    using Acc = typename Ops::Acc;
    constexpr int kPairs = (kRows + 1) / 2;
    const FourBytes* first[kPairs];
    const FourBytes* second[kPairs];
    Acc acc[kPairs][2 * kVecs];
    CF_UNROLL
    for (int p = 0; p < kPairs; ++p) {
      first[p] = rows + 2 * p * stride;
      second[p] = 2 * p + 1 < kRows ? first[p] + stride : first[p];
    }
    BlockSums<Ops, kPairs, 2 * kVecs> blocks(memory);
    Prefetcher<kRows> prefetcher(ahead);
    for (int64_t begin = 0, end_of_block = 0;; begin = end_of_block) {
      end_of_block = blocks.end_of_block(begin, steps);
      CF_UNROLL
      for (int p = 0; p < kPairs; ++p) {
        CF_UNROLL
        for (int v = 0; v < 2 * kVecs; ++v) acc[p][v] = Ops::zero();
      }
      for (int64_t done = begin; done < end_of_block; done += kStepsTogether) {
        prefetcher.before(done + kStepsTogether);
        const int64_t end = end_of_block - done < kStepsTogether ? end_of_block : done + kStepsTogether;
        for (int64_t k = done; k < end; k += 2) {
          Acc pair[kPairs];
          CF_UNROLL
          for (int p = 0; p < kPairs; ++p) {
            const uint8x16_t both = vcombine_u8(vld1_u8(first[p][k].bytes), vld1_u8(second[p][k].bytes));
            std::memcpy(&pair[p], &both, sizeof both);
          }
          CF_UNROLL
          for (int v = 0; v < 2 * kVecs; ++v) {
            const Acc lanes = Ops::load(q + k * kWidth + v * Isa::kFloats);
            CF_UNROLL
            for (int p = 0; p < kPairs; ++p) acc[p][v] = Ops::fma(pair[p], lanes, acc[p][v]);
          }
        }
      }
      if (blocks.done(acc, end_of_block, steps)) break;
    }
    Acc dots[kRows][kVecs];
    CF_UNROLL
    for (int p = 0; p < kPairs; ++p) {
      CF_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        dots[2 * p][v] = Ops::lower(acc[p][2 * v], acc[p][2 * v + 1]);
        if (2 * p + 1 < kRows) dots[2 * p + 1][v] = Ops::upper(acc[p][2 * v], acc[p][2 * v + 1]);
      }
    }
    sink.template take<kRows, kVecs>(dots, row);
  }
};

template <>
struct Tile<Int8Matrix> : MatrixTile<Int8Matrix> {};
template <>
struct Tile<BFloat16Matrix> : MatrixTile<BFloat16Matrix> {};

struct Narrow : Int8Narrow {
  // bfloat16 is not screened, because the chains of BFMMLA are always of two rows and two lanes: decide() of
  // screen.h could not compute the chain of one row with one lane.
  template <typename T>
  using Screen = typename std::conditional<std::is_same<T, BFloat16>::value, void, int8_t>::type;
  static constexpr bool kBFloat16 = true;
  static constexpr const Tier* kForFloat32Queries = &kNeonDotprod;
  static constexpr int64_t kBytes = 8;
  static constexpr int64_t kTogether = 8;

  template <typename Number, int kVecs, int kWidth>
  static void products(const NarrowRows& rows, const unsigned char* q, Ahead ahead, const Bounds& bounds) {
    panel<Int8Matrix, kVecs, kWidth>(rows, q, ahead, BoundsOfInt8<kSinkVecs>{bounds});
  }
  template <int kVecs, int kWidth, typename Sink>
  static void int8_products(const NarrowRows& rows, const unsigned char* q, Ahead ahead, const Sink& sink) {
    panel<Int8Matrix, kVecs, kWidth>(rows, q, ahead, sink);
  }
  template <int kVecs, int kWidth, typename Sink>
  static void exact_products(const NarrowRows& rows, const unsigned char* q, Ahead ahead, const Sink& sink) {
    int8_products<kVecs, kWidth>(rows, q, ahead, sink);
  }
  template <int kVecs, int kWidth, bool kArgmax>
  static void maxima(const NarrowRows& rows, const unsigned char* q, Ahead ahead,
                     const Maxima<kArgmax>& maxima) {
    panel<BFloat16Matrix, kVecs, kWidth>(rows, q, ahead, maxima);
  }
};

}  // namespace
}  // namespace colbert_fast

#include "per_tier/loop.h"

CF_IN_PROGRAM_ORDER_END
CF_TARGET_END

namespace colbert_fast {
namespace {
const char* unsupported() {
  return features().i8mm && features().bf16 && features().dotprod
             ? nullptr
             : "this CPU has no FEAT_I8MM, FEAT_BF16 and FEAT_DotProd";
}
}  // namespace

constexpr Tier kNeonI8mm = tier_of("neon_i8mm", &unsupported);
}  // namespace colbert_fast

#else

namespace colbert_fast {
constexpr Tier kNeonI8mm = absent("neon_i8mm", &not_aarch64);
}  // namespace colbert_fast

#endif
