// x86-64 with AMX (Sapphire Rapids and later) on Linux: bfloat16 is multiplied as it is, float32 and float16
// are screened in bfloat16, and int8 is screened in int8 (screen.h). What AMX cannot do is done by AVX-512.
//
// A tile holds 16 rows of 64 bytes. tdpbf16ps and tdpbssd compute C += A B. C is 16 x 16 numbers of float32
// or int32. A is 16 rows of 64 bytes. B has, for each of 16 columns, 16 elements of 4 bytes. Documents are A:
// a tile is loaded with any stride, so rows are loaded from where they lie. Queries are B: its layout is the
// layout of packed elements (tile.h). So C has a row for each document token and a column for each lane, and
// the maximum is vertical.
//
// All eight tiles are used: 2 x 2 for C (32 document rows x 32 lanes), 2 for A and 2 for B. A step takes 64
// bytes of each row; it loads 4 tiles and multiplies 4 times. The four chains, with a product every 16
// cycles, cover the latency of 52 cycles (Intel's optimization manual, AMX).
//
// Sums: tdpbf16ps has one chain for the even and one chain for the odd numbers among its 32. It adds the two
// chains, and adds the result to C (SDM volume 2). So a product passes at most 16 + 1 + n / 32 roundings: 81
// in a block of 2048 numbers, fewer than the 128 of sums.h, which also says how blocks are added. At most n +
// 2 ceil(n / 32) sums can be flushed, or 1 for n = 1. That is at most the 2n of bfloat16.h. The rows of a
// short document are computed in the same way, because equal rows must have equal products.
//
// Rows that are no multiple of 64 bytes are copied and padded before they come here. If the number of rows is
// no multiple of 16, the last tile overlaps the tile before it, and some products are computed twice, with
// the same result. Fewer than 16 rows are copied, 64 bytes of each row at a time. Nothing past a row is read.
#include "codes.h"
#include "host/amx_permission.h"
#include "host/cpu_features.h"
#include "maxsim.h"
#include "scratch.h"
#include "target.h"
#include "tiers/amx_config.h"

#if CF_AMX
CF_TARGET_BEGIN("avx512bf16,avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

#include "tiers/avx512_bf16.h"
#ifdef CF_AMX_MODEL  // tests/cpp/amx_model
#include CF_AMX_MODEL
#else
#include "tiers/amx_tiles.h"
#endif

namespace colbert_fast {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;
constexpr TileConfig kConfig = {1,
                                0,
                                {},
                                {64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0},
                                {16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0}};

// While an object of this class lives, the tiles of this thread are configured as above. Other code uses AMX
// on the same threads, such as torch through oneDNN, and may keep its configuration from one call to the
// next. So the configuration that was loaded before is loaded again at the end. What the tiles of the other
// code held is lost. But loading a configuration clears the tiles, so nobody can rely on what they held.
class Configured {
 public:
  Configured() {
    tiles::store_config(before_);
    tiles::load_config(kConfig);
  }
  Configured(const Configured&) = delete;
  Configured& operator=(const Configured&) = delete;
  ~Configured() {
    if (before_.palette == 0) {
      tiles::release();
    } else {
      tiles::load_config(before_);
    }
  }

 private:
  TileConfig before_;
};

// What BlockSums needs of Ops. A step takes 64 bytes of a row. 12 sums that wait are enough for 2^22 numbers,
// as in sums.h.
constexpr int64_t kTileBlockNumbers = 2048;
constexpr int kMostTileSums = 12;

struct BFloat16Tiles {
  using Acc = Isa::Vec;
  static constexpr int64_t kBlock = 2 * kTileBlockNumbers / kTileBytes;
  static CF_ALWAYS_INLINE Acc add(Acc a, Acc b) { return Isa::add(a, b); }
  template <int kC, int kA, int kB>
  static CF_ALWAYS_INLINE void multiply() {
    tiles::multiply_bfloat16<kC, kA, kB>();
  }
};

struct Int8Tiles {
  using Acc = Isa::Idx;
  static constexpr int64_t kBlock = 0;
  template <int kC, int kA, int kB>
  static CF_ALWAYS_INLINE void multiply() {
    tiles::multiply_int8<kC, kA, kB>();
  }
};

// Asks for the lines that are due with 64 bytes, which are 16 elements, of each row of a tile. It is called
// beside the products of each tile, so that a step does not ask for all its lines at once.
CF_ALWAYS_INLINE void prefetch_beside(Ahead& ahead) {
  Prefetcher<kTileRows>(ahead).before(kTileBytes / 4);
  ahead.position += kTileRows * (kTileBytes / 4) * ahead.rate;
}

// Multiplies kTiles tiles of rows by kVecs vectors of a panel of kWidth lanes, from byte `from` to byte `to`
// of each row. Tile t of rows begins at row begin[t]. Tiles 0 to 3 are C, [2][2]; tiles 4 and 5 are A; tiles
// 6 and 7 are B. If kShort, there are fewer rows than a tile has.
template <typename Ops, int kTiles, int kVecs, int kWidth, bool kShort>
CF_ALWAYS_INLINE void multiply_tiles(const NarrowRows& rows, const int64_t (&begin)[2],
                                     const unsigned char* q, int64_t from, int64_t to, Ahead& ahead) {
  tiles::zero<0>();
  if constexpr (kVecs == 2) tiles::zero<1>();
  if constexpr (kTiles == 2) tiles::zero<2>();
  if constexpr (kTiles == 2 && kVecs == 2) tiles::zero<3>();
  alignas(64) unsigned char copied[kShort ? kTileRows * kTileBytes : 1] = {};
  const unsigned char* first = rows.rows + begin[0] * rows.stride;
  const unsigned char* second = rows.rows + begin[1] * rows.stride;
  // A local copy. The compiler would read rows.stride again after every tile that is loaded, because for all
  // it knows the load may have changed any memory.
  const int64_t stride = rows.stride;
  const int64_t q_stride = kWidth * 4;
  for (int64_t k = from; k < to; k += kTileBytes) {
    tiles::load<6>(q + k * kWidth, q_stride);
    if constexpr (kVecs == 2) tiles::load<7>(q + k * kWidth + 64, q_stride);
    if constexpr (kShort) {
      for (int64_t r = 0; r < rows.count; ++r)
        _mm512_store_si512(copied + r * kTileBytes, _mm512_loadu_si512(first + r * stride + k));
      tiles::load<4>(copied, kTileBytes);
    } else {
      tiles::load<4>(first + k, stride);
    }
    Ops::template multiply<0, 4, 6>();
    if constexpr (kVecs == 2) Ops::template multiply<1, 4, 7>();
    prefetch_beside(ahead);
    if constexpr (kTiles == 2) {
      tiles::load<5>(second + k, stride);
      Ops::template multiply<2, 5, 6>();
      if constexpr (kVecs == 2) Ops::template multiply<3, 5, 7>();
      prefetch_beside(ahead);
    }
  }
}

// Computes the dot products of kTiles tiles of rows with kVecs vectors of lanes, block after block.
template <typename Ops, int kTiles, int kVecs, int kWidth, bool kShort>
CF_ALWAYS_INLINE void multiply(const NarrowRows& rows, const int64_t (&begin)[2], const unsigned char* q,
                               Ahead ahead, typename Ops::Acc* memory,
                               typename Ops::Acc (&sums)[kTiles * kTileRows][kVecs]) {
  constexpr int64_t kStride = sizeof sums[0];
  constexpr int kSecond = (kTiles - 1) * kTileRows;
  BlockSums<Ops, kTiles * kTileRows, kVecs, kMostTileSums> blocks(memory);
  const int64_t steps = rows.bytes / kTileBytes;
  for (int64_t from = 0, to = 0;; from = to) {
    to = blocks.end_of_block(from, steps);
    multiply_tiles<Ops, kTiles, kVecs, kWidth, kShort>(rows, begin, q, from * kTileBytes, to * kTileBytes,
                                                       ahead);
    tiles::store<0>(&sums[0][0], kStride);
    if constexpr (kVecs == 2) tiles::store<1>(&sums[0][1], kStride);
    if constexpr (kTiles == 2) tiles::store<2>(&sums[kSecond][0], kStride);
    if constexpr (kTiles == 2 && kVecs == 2) tiles::store<3>(&sums[kSecond][1], kStride);
    if (blocks.done(sums, to, steps)) break;
  }
}

// The sink that takes dot products, of bfloat16 or int8, into bounds (screen.h). The tiles of rows begin at
// rows begin[0] and begin[1] and have `count` rows each. Only a single tile has fewer than 16.
struct TileBounds {
  Bounds bounds;
  int64_t first;  // the number of the first row, for bounds

  template <int kTiles, int kVecs, typename Acc>
  CF_ALWAYS_INLINE void take(const Acc (&sums)[kTiles * kTileRows][kVecs], const int64_t (&begin)[2],
                             int64_t count) const {
    CF_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      Guesses guesses = Guesses::load(bounds, v);
      for (int t = 0; t < kTiles; ++t) {
        for (int64_t r = 0; r < count; ++r) {
          const int64_t row = first + begin[t] + r;
          const Isa::Vec scale = Isa::everywhere(bounds.scales[row]);
          const Isa::Idx offset = Isa::load(bounds.offset + v * Isa::kFloats);
          const Isa::Vec upper = upper_bound(sums[t * kTileRows + r][v], offset, scale);
          Isa::store(bounds.uppers + row * kVecs * Isa::kFloats + v * Isa::kFloats, upper);
          guesses.take(upper, scale, static_cast<int32_t>(row));
        }
      }
      guesses.store(bounds, v);
    }
  }
};

// The sink that takes dot products into upper bounds of scores.
struct TileUppers {
  Uppers uppers;

  template <int kTiles, int kVecs>
  CF_ALWAYS_INLINE void take(const Isa::Idx (&sums)[kTiles * kTileRows][kVecs], const int64_t (&begin)[2],
                             int64_t count) const {
    CF_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      const Isa::Idx offset = Isa::load(uppers.offset + v * Isa::kFloats);
      const Isa::Vec ratio = Isa::load(uppers.ratio + v * Isa::kFloats);
      Isa::Vec best = Isa::load(uppers.best + v * Isa::kFloats);
      for (int t = 0; t < kTiles; ++t) {
        for (int64_t r = 0; r < count; ++r) {
          const int64_t row = begin[t] + r;
          const Isa::Vec scale = Isa::everywhere(uppers.scales[row]);
          const Isa::Vec slack = Isa::everywhere(uppers.slacks[row]);
          const Isa::Vec value = Isa::multiply(with_offset(sums[t * kTileRows + r][v], offset), scale);
          best = Isa::max(best, Isa::fma(slack, ratio, value));
        }
      }
      Isa::store(uppers.best + v * Isa::kFloats, best);
    }
  }
};

// The sink that takes dot products into the maxima of lanes.
template <bool kArgmax>
struct TileMaxima {
  Maxima<kArgmax> maxima;

  template <int kTiles, int kVecs>
  CF_ALWAYS_INLINE void take(const Isa::Vec (&sums)[kTiles * kTileRows][kVecs], const int64_t (&begin)[2],
                             int64_t count) const {
    CF_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      Isa::Vec top = Isa::load(maxima.best.value + v * Isa::kFloats);
      if constexpr (kArgmax) {
        Isa::Idx where = Isa::load(maxima.best.token + v * Isa::kFloats);
        for (int t = 0; t < kTiles; ++t) {
          for (int64_t r = 0; r < count; ++r)
            Isa::update(top, where, sums[t * kTileRows + r][v],
                        static_cast<int32_t>(maxima.first_token + begin[t] + r));
        }
        Isa::store(maxima.best.token + v * Isa::kFloats, where);
      } else {
        // vmaxps loses a NaN, so NaN is noted beside it, for two rows with one comparison. This is a chain of
        // 2 cycles a row. Isa::update would be a chain of 8 cycles, which take longer than the products.
        // Whether +0 or -0 wins makes no difference to a score, because its sum begins with +0.
        __mmask16 nan = _mm512_cmp_ps_mask(top, top, _CMP_UNORD_Q);
        for (int t = 0; t < kTiles; ++t) {
          for (int64_t r = 0; r < count; r += 2) {
            const Isa::Vec even = sums[t * kTileRows + r][v];
            const Isa::Vec odd = r + 1 < count ? sums[t * kTileRows + r + 1][v] : even;
            nan = static_cast<__mmask16>(nan | _mm512_cmp_ps_mask(even, odd, _CMP_UNORD_Q));
            top = _mm512_max_ps(top, _mm512_max_ps(even, odd));
          }
        }
        top = _mm512_mask_mov_ps(top, nan, _mm512_set1_ps(std::numeric_limits<float>::quiet_NaN()));
      }
      Isa::store(maxima.best.value + v * Isa::kFloats, top);
    }
  }
};

template <typename Ops, int kVecs, int kWidth, typename Sink>
void panel_of_tiles(const NarrowRows& rows, const unsigned char* q, Ahead ahead, const Sink& sink) {
  typename Ops::Acc memory[BlockSums<Ops, 2 * kTileRows, kVecs, kMostTileSums>::kSize];
  typename Ops::Acc one[kTileRows][kVecs];
  if (rows.count < kTileRows) {
    const int64_t begin[2] = {0, 0};
    multiply<Ops, 1, kVecs, kWidth, true>(rows, begin, q, ahead, memory, one);
    sink.template take<1, kVecs>(one, begin, rows.count);
    return;
  }
  const int64_t last = rows.count - kTileRows;
  for (int64_t row = 0; row < rows.count; row += 2 * kTileRows) {
    const Ahead here = {ahead.address, ahead.rate, ahead.position + row * (rows.bytes / 4) * ahead.rate};
    if (row + kTileRows < rows.count) {
      const int64_t second = row + kTileRows < last ? row + kTileRows : last;
      const int64_t begin[2] = {row, second};
      typename Ops::Acc two[2 * kTileRows][kVecs];
      multiply<Ops, 2, kVecs, kWidth, false>(rows, begin, q, here, memory, two);
      sink.template take<2, kVecs>(two, begin, kTileRows);
    } else {
      const int64_t begin[2] = {last, last};
      multiply<Ops, 1, kVecs, kWidth, false>(rows, begin, q, here, memory, one);
      sink.template take<1, kVecs>(one, begin, kTileRows);
    }
  }
}

struct Narrow : Int8Narrow {
  // float32 and float16 are screened in bfloat16, because narrowing to int8 takes longer than the products
  // that it saves, except with many query tokens.
  template <typename T>
  using Screen = typename std::conditional<
      std::is_same<T, int8_t>::value, int8_t,
      typename std::conditional<std::is_same<T, BFloat16>::value, void, BFloat16>::type>::type;
  static constexpr bool kBFloat16 = true;
  static constexpr const Tier* kForFloat32Queries = &kAvx512Vnni;
  static constexpr int64_t kBytes = kTileBytes;
  static constexpr bool kCeilings = false;  // panel_of_tiles() takes other sinks
  static constexpr int kRaise = 0;
  // Reasoned, and not measured with this code. Multiply-adds take half the time for 16 query tokens that they
  // take for 32, and no less for fewer, because a vector of lanes is multiplied as a whole. The conversion of
  // documents takes the same time for any number of query tokens. So queries of less than half a vector are
  // not screened. For int8, whose rows need no conversion, the limit is taken from screening by
  // AVX512-VNNI, whose products take longer.
  template <typename T>
  static constexpr int64_t least_lanes() {
    return std::is_same<T, int8_t>::value ? 5 : 8;
  }

  template <typename T>
  static float narrow(const T* row, int64_t dim, unsigned char* to) {
    return narrow_bfloat16(row, dim, to);
  }
  static RowSums sums(const int8_t* row, int64_t dim) { return {sums_of_int8(row, dim).squares, 0}; }
  static CF_ALWAYS_INLINE void store_levels(const Isa::Vec (&numbers)[4], unsigned char* to) {
    store_levels_int8<kRaise>(numbers, to);
  }

  template <typename Number, int kVecs, int kWidth>
  static void products(const NarrowRows& rows, const unsigned char* q, Ahead ahead, const Bounds& bounds) {
    panel_of_tiles<BFloat16Tiles, kVecs, kWidth>(rows, q, ahead, TileBounds{bounds, 0});
  }
  template <int kVecs, int kWidth>
  static void exact_products(const NarrowRows& rows, const unsigned char* q, Ahead ahead,
                             const ExactBounds& sink) {
    panel_of_tiles<Int8Tiles, kVecs, kWidth>(rows, q, ahead, TileBounds{sink.bounds, sink.first});
  }
  template <int kVecs, int kWidth>
  static void int8_products(const NarrowRows& rows, const unsigned char* q, Ahead ahead,
                            const UpperSink<kSinkVecs>& sink) {
    panel_of_tiles<Int8Tiles, kVecs, kWidth>(rows, q, ahead, TileUppers{sink.uppers});
  }
  template <int kVecs, int kWidth, bool kArgmax>
  static void maxima(const NarrowRows& rows, const unsigned char* q, Ahead ahead,
                     const Maxima<kArgmax>& maxima) {
    panel_of_tiles<BFloat16Tiles, kVecs, kWidth>(rows, q, ahead, TileMaxima<kArgmax>{maxima});
  }
};

}  // namespace
}  // namespace colbert_fast

#include "per_tier/loop.h"

namespace colbert_fast {
namespace {

template <bool kArgmax>
void score_configured(const ScoreJob& job, const Task& task, Scratch& scratch) {
  const Configured tiles;
  score_any<kArgmax>(job, task, scratch);
}

void upper_configured(const UpperJob& job, const Task& task, Scratch& scratch) {
  const Configured tiles;
  upper_task<Narrow>(job, task, scratch);
}

}  // namespace
}  // namespace colbert_fast

CF_TARGET_END

namespace colbert_fast {
namespace {
const char* unsupported() {
  if (const char* reason = kAvx512Vnni.unsupported()) return reason;
  return features().avx512bf16 ? amx_unsupported() : "this CPU has no AVX512-BF16";
}

constexpr Tier amx_tier() {
  Tier tier = tier_of("amx", &unsupported);
  tier.score = &score_configured<false>;
  tier.score_argmax = &score_configured<true>;
  tier.upper = &upper_configured;
  tier.refused = &amx_refused;
  return tier;
}
}  // namespace

constexpr Tier kAmx = amx_tier();
}  // namespace colbert_fast

#else

namespace colbert_fast {
constexpr Tier kAmx = absent("amx", &amx_unsupported);
}  // namespace colbert_fast

#endif
