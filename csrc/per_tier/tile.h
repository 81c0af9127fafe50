// The register tile of a tier, written once. This file is compiled once for each tier, inside the tier's
// target region, and includes no system header: target.h includes those that a tier needs before the region
// opens. loop.h and the headers that it includes use this file. Everything in them has internal linkage.
//
// Before a tier includes it, the tier defines in an anonymous namespace
//
//   struct Isa {
//     using Vec;                      // kFloats float32 numbers
//     using Idx;                      // kFloats int32 numbers
//     static constexpr int kFloats;
//     static constexpr int kRows;     // the register tile: kRows document rows
//     static constexpr int kVecs;     // x kVecs vectors of query tokens
//     static Vec zero();
//     static Vec load(const T*);      // T = float, BFloat16, Float16 or int8_t; exact
//     static constexpr bool kMasks;   // whether there is
//     static Vec load(const T*, int64_t n);  // the first n numbers, fewer than kFloats, and zeros
//     static auto broadcast(const float*);  // a Vec, or another type that fma() multiplies by
//     static Vec fma(Vec a, Vec b, Vec c);  // a * b + c
//     static Vec add(Vec, Vec);
//     static Vec multiply(Vec, float);
//     static void store(float*, Vec);
//     static Idx load(const int32_t*);
//     static void store(int32_t*, Idx);
//     static void transpose(Vec (&rows)[kFloats]);
//
//     // best = max(best, value). NaN wins, and stays.
//     static void update(Vec& best, Vec value);
//
//     // The same. arg becomes the first row that wins.
//     static void update(Vec& best, Idx& arg, Vec value, int32_t row);
//
//     // For upper bounds (upper.h).
//     static Vec everywhere(float);
//     static Idx everywhere(int32_t);
//     static Vec to_float(Idx);
//     static Idx add(Idx, Idx);
//     static Vec multiply(Vec, Vec), max(Vec, Vec);
//
//     // Only for tiers that screen documents (screen.h).
//     static Vec magnitude(Vec);
//     static Vec larger_magnitude(Vec a, Vec b);  // of a, which is not negative, and b
//     static Vec subtract_product(Vec a, Vec b, Vec c);                           // a - b * c
//     static void update_larger(Vec& best, Idx& arg, Vec value, int32_t row);     // update() without NaN
//     static float sum(Vec), largest(Vec);
//     static uint32_t at_least(Vec value, Vec threshold);  // bit i: whether number i is
//     static Vec load_bits(const int8_t*);           // 4 kFloats numbers as they are
//     template <int kByte> int8_to_float(Vec bits);  // a Vec: number kByte of every four
//   };
//
// Lanes are query tokens. The tokens of a block of queries are packed one after the other, regardless of
// where a query ends, into panels of kPanel = kVecs * kFloats lanes. A panel is stored as [steps][width].
// The width is kPanel, or kFloats for a last panel that needs no more.
//
// An element is what one step of a chain takes from a row: a float32 number, or, in the narrow products of
// screen.h, two bfloat16 or four int8 numbers. The Ops of a tile say what a step does. A step broadcasts an
// element of each document row against the vectors of lanes. So a tile of kRows x kVecs accumulators takes
// kRows + kVecs loads for kRows * kVecs multiply-adds per step. The maximum over document tokens is vertical,
// and no horizontal operation occurs before the final sum.

#pragma once

#include "per_tier/rows.h"
#include "per_tier/sums.h"

namespace colbert_fast {
namespace {

// Asks for a line of memory, into L2. The hardware prefetcher loses track where kRows rows are read side by
// side, and does not know which item is next.
CF_ALWAYS_INLINE void prefetch(uintptr_t address) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(reinterpret_cast<const void*>(address), 0, 2);
#elif CF_X86_64
  _mm_prefetch(reinterpret_cast<const char*>(address), _MM_HINT_T1);
#else
  (void)address;
#endif
}

// The Ops of products of float32. All Ops have these members: an Element, a vector Acc with a running sum for
// each lane, and kBlock, the steps of a block (sums.h). kBlock is 0 if sums are exact, and then add() is not
// needed.
struct Float32Ops {
  using Element = float;
  using Acc = typename Isa::Vec;
  static constexpr int64_t kBlock = kBlockNumbers;
  static CF_ALWAYS_INLINE Acc zero() { return Isa::zero(); }
  static CF_ALWAYS_INLINE Acc load(const Element* from) { return Isa::load(from); }
  static CF_ALWAYS_INLINE auto broadcast(const Element* from) { return Isa::broadcast(from); }
  template <typename Broadcast>
  static CF_ALWAYS_INLINE Acc fma(Broadcast element, Acc lanes, Acc sum) {
    return Isa::fma(element, lanes, sum);
  }
  static CF_ALWAYS_INLINE Acc add(Acc a, Acc b) { return Isa::add(a, b); }
};

// An element of narrow numbers. It may have any address.
struct FourBytes {
  unsigned char bytes[4];
};

CF_ALWAYS_INLINE int32_t bits_of(const FourBytes* from) {
  int32_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return bits;
}

// A sink says what becomes of the dot products of a tile. This sink takes them into the maxima of lanes.
template <bool kArgmax>
struct Maxima {
  Best best;
  int64_t first_token;  // which token of the document the first row is

  template <int kRows, int kVecs>
  CF_ALWAYS_INLINE void take(const typename Isa::Vec (&dots)[kRows][kVecs], int64_t row) const {
    CF_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      typename Isa::Vec top = Isa::load(best.value + v * Isa::kFloats);
      if constexpr (kArgmax) {
        typename Isa::Idx where = Isa::load(best.token + v * Isa::kFloats);
        CF_UNROLL
        for (int r = 0; r < kRows; ++r)
          Isa::update(top, where, dots[r][v], static_cast<int32_t>(first_token + row + r));
        Isa::store(best.token + v * Isa::kFloats, where);
      } else {
        CF_UNROLL
        for (int r = 0; r < kRows; ++r) Isa::update(top, dots[r][v]);
      }
      Isa::store(best.value + v * Isa::kFloats, top);
    }
  }
};

// Asks for the lines that are ahead a few at a time, while steps of kRows rows are done. A CPU that has no
// place left to note a request drops the request, so many requests at once would be lost.
template <int kRows>
class Prefetcher {
 public:
  explicit CF_ALWAYS_INLINE Prefetcher(const Ahead& ahead)
      : ahead_(ahead), asked_(ahead.position >> kLineBits) {}
  CF_ALWAYS_INLINE void before(int64_t step) {
    for (const int64_t due = (ahead_.position + kRows * step * ahead_.rate) >> kLineBits; asked_ < due;
         ++asked_)
      prefetch(ahead_.address + static_cast<uintptr_t>(64 * asked_));
  }

 private:
  Ahead ahead_;
  int64_t asked_;
};
constexpr int64_t kStepsTogether = 4;

// Computes kRows document rows with kVecs vectors of a panel of kWidth lanes. `row` is the number of the
// first row, for the sink. `memory` is for BlockSums. Ops that multiply matrices have a Tile of their own, in
// neon_i8mm.cpp.
template <typename Ops>
struct Tile {
  template <int kRows, int kVecs, int kWidth, typename Sink>
  static void compute(const typename Ops::Element* q, const typename Ops::Element* rows, int64_t stride,
                      int64_t steps, int64_t row, Ahead ahead, typename Ops::Acc* memory, const Sink& sink) {
    using Acc = typename Ops::Acc;
    // Three rows share one base pointer: twelve addresses then need six registers and no spills.
    constexpr int kBases = (kRows + 2) / 3;
    const typename Ops::Element* base[kBases];
    CF_UNROLL
    for (int b = 0; b < kBases; ++b) base[b] = rows + 3 * b * stride;
    typename BlockSums<Ops, kRows, kVecs>::Sums acc;
    BlockSums<Ops, kRows, kVecs> blocks(memory);
    Prefetcher<kRows> prefetcher(ahead);
    for (int64_t begin = 0, end_of_block = 0;; begin = end_of_block) {
      end_of_block = blocks.end_of_block(begin, steps);
      CF_UNROLL
      for (int r = 0; r < kRows; ++r) {
        CF_UNROLL
        for (int v = 0; v < kVecs; ++v) acc[r][v] = Ops::zero();
      }
      for (int64_t done = begin; done < end_of_block; done += kStepsTogether) {
        prefetcher.before(done + kStepsTogether);
        const int64_t end = end_of_block - done < kStepsTogether ? end_of_block : done + kStepsTogether;
        for (int64_t k = done; k < end; ++k) {
          Acc lanes[kVecs];
          CF_UNROLL
          for (int v = 0; v < kVecs; ++v) lanes[v] = Ops::load(q + k * kWidth + v * Isa::kFloats);
          CF_UNROLL
          for (int r = 0; r < kRows; ++r) {
            const auto element = Ops::broadcast(base[r / 3] + (r % 3) * stride + k);
            CF_UNROLL
            for (int v = 0; v < kVecs; ++v) acc[r][v] = Ops::fma(element, lanes[v], acc[r][v]);
          }
        }
      }
      if (blocks.done(acc, end_of_block, steps)) break;
    }
    sink.template take<kRows, kVecs>(acc, row);
  }
};

template <typename Ops, typename Sink>
using TileFunction = void (*)(const typename Ops::Element*, const typename Ops::Element*, int64_t, int64_t,
                              int64_t, Ahead, typename Ops::Acc*, const Sink&);

// The tile of `rows` rows, which are 1 to kRows.
template <typename Ops, int kVecs, int kWidth, typename Sink, int... kMinusOne>
TileFunction<Ops, Sink> tile_for(int64_t rows, std::integer_sequence<int, kMinusOne...>) {
  static constexpr TileFunction<Ops, Sink> kTiles[] = {
      &Tile<Ops>::template compute<kMinusOne + 1, kVecs, kWidth, Sink>...};
  return kTiles[rows - 1];
}

// Computes `count` rows with kVecs vectors of one panel, in tiles that are as equal as they can be. 13 rows
// are 7 + 6 and not 12 + 1, because a tile of few rows has too few chains to hide their latency.
template <typename Ops, int kVecs, int kWidth, typename Sink>
void panel(const typename Ops::Element* q, const typename Ops::Element* rows, int64_t stride, int64_t steps,
           int64_t count, Ahead ahead, const Sink& sink) {
  const int64_t tiles = (count + Isa::kRows - 1) / Isa::kRows;
  const int64_t least = count / tiles;
  const int64_t larger = count % tiles;
  typename Ops::Acc memory[BlockSums<Ops, Isa::kRows, kVecs>::kSize];
  for (int64_t t = 0, row = 0; t < tiles; ++t) {
    const int64_t n = least + (t < larger ? 1 : 0);
    tile_for<Ops, kVecs, kWidth, Sink>(n, std::make_integer_sequence<int, Isa::kRows>())(
        q, rows + row * stride, stride, steps, row, ahead, memory, sink);
    ahead.position += n * steps * ahead.rate;
    row += n;
  }
}

// Rows of narrow numbers: `count` rows of `bytes` bytes, `stride` bytes apart.
struct NarrowRows {
  const unsigned char* rows;
  int64_t stride;
  int64_t bytes;
  int64_t count;
};

// What narrow products are taken into when documents are screened. For each row and lane, an upper bound of
// the dot product, up to the e of screen.h. For each lane, a guess: the row that is likely to have the
// largest dot product. A dot product of rows that became int8 is at most scales[row] * (product +
// offset[lane]), and at least that minus scales[row] * spread[lane]. The guess is the first row whose lower
// bound is the largest. For rows that were int8 before, both bounds are scales[row] * (product +
// row_offset[row]), and for bfloat16 they are the product.
struct Bounds {
  const float* scales;        // [rows]
  const int32_t* row_offset;  // [rows]
  const int32_t* offset;      // [lanes of the panel]
  const float* spread;        // [lanes of the panel]
  float* uppers;              // [rows][lanes of the panel]
  float* least;               // [lanes of the panel] the lower bound of the guess, at first -inf
  int32_t* guess;             // [lanes of the panel]
};

// What products are taken into for upper bounds of scores (upper.h): the largest scales[row] * (product +
// offset[lane]) + slacks[row] * ratio[lane] of each lane.
struct Uppers {
  const float* scales;    // [rows]
  const float* slacks;    // [rows]
  const int32_t* offset;  // [lanes of the panel]
  const float* ratio;     // [lanes of the panel]
  float* best;            // [lanes of the panel]
};

CF_ALWAYS_INLINE typename Isa::Vec with_offset(typename Isa::Idx product, typename Isa::Idx offset) {
  return Isa::to_float(Isa::add(product, offset));
}
CF_ALWAYS_INLINE typename Isa::Vec with_offset(typename Isa::Vec product, typename Isa::Idx offset) {
  return Isa::add(product, Isa::to_float(offset));
}

// The sink of these products. It has kSinkVecs vectors of lanes in registers at once.
template <int kSinkVecs>
struct UpperSink {
  Uppers uppers;

  template <int kRows, int kVecs, typename Acc>
  CF_ALWAYS_INLINE void take(const Acc (&sums)[kRows][kVecs], int64_t row) const {
    constexpr int kStep = kSinkVecs < kVecs ? kSinkVecs : kVecs;
    CF_UNROLL
    for (int first = 0; first < kVecs; first += kStep) {
      typename Isa::Idx offset[kStep];
      typename Isa::Vec ratio[kStep];
      typename Isa::Vec best[kStep];
      CF_UNROLL
      for (int v = 0; v < kStep; ++v) {
        offset[v] = Isa::load(uppers.offset + (first + v) * Isa::kFloats);
        ratio[v] = Isa::load(uppers.ratio + (first + v) * Isa::kFloats);
        best[v] = Isa::load(uppers.best + (first + v) * Isa::kFloats);
      }
      CF_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const typename Isa::Vec scale = Isa::everywhere(uppers.scales[row + r]);
        const typename Isa::Vec slack = Isa::everywhere(uppers.slacks[row + r]);
        CF_UNROLL
        for (int v = 0; v < kStep; ++v) {
          const typename Isa::Vec value = Isa::multiply(with_offset(sums[r][first + v], offset[v]), scale);
          best[v] = Isa::max(best[v], Isa::fma(slack, ratio[v], value));
        }
      }
      CF_UNROLL
      for (int v = 0; v < kStep; ++v) Isa::store(uppers.best + (first + v) * Isa::kFloats, best[v]);
    }
  }
};

// What is found out about a row of int8 numbers before it is multiplied as it is: the sum of their squares,
// and what its products grow by where 128 was added to each number of a lane.
struct RowSums {
  int32_t squares;
  int32_t excess;
};

// panel() for narrow rows. Their stride must be a multiple of 4 bytes.
template <typename Ops, int kVecs, int kWidth, typename Sink>
void panel(const NarrowRows& rows, const unsigned char* q, Ahead ahead, const Sink& sink) {
  panel<Ops, kVecs, kWidth>(reinterpret_cast<const FourBytes*>(q),
                            reinterpret_cast<const FourBytes*>(rows.rows), rows.stride / 4, rows.bytes / 4,
                            rows.count, ahead, sink);
}

}  // namespace
}  // namespace colbert_fast
