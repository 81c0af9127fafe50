// The sum of a dot product: blocks of numbers, and the sums of these blocks added in pairs. This file is
// compiled once for each tier, inside the tier's target region, and includes no system header. tile.h
// includes it.
//
// A dot product is cut into blocks of kBlockNumbers numbers. A block is one chain of multiply-adds in
// the order of the dimensions. The sums of the blocks are added in pairs, the sums of these pairs are added
// in pairs, and so on. The number of dimensions alone decides which numbers form a block and which blocks
// form a pair; the tile has no say. So a score does not depend on what else is scored, on how the work is cut
// or on the number of threads.
//
// Let L be the logarithm to base 2 of the number of blocks, rounded up. A product passes at most
// 128 + L roundings of float32. One more rounding makes float32 of an int8 number and its scale. Each
// rounding loses at most u = 2^-24 of what is summed, and the score, which is added in double, is rounded
// once. With r = 130 + L the error of a score is therefore at most r u / (1 - r u) times the sum of
// |products| of the rows that win. The tolerance of 1e-5 is 167 u.
//
// One long chain would not do. A chain of 256 numbers has 256 roundings, 1.5e-5, and a product of 1 before
// 255 products of just below u comes close to that error.
//
// At most kMostSums sums wait for a partner. Beyond 2^23 numbers, every further 2^22 numbers therefore add
// one rounding, and 1e-5 holds up to 80 million numbers.

#pragma once

namespace colbert_fast {
namespace {

constexpr int64_t kBlockNumbers = 128;
constexpr int kMostSums = 16;

// Adds the sums of equally many blocks, in pairs, and returns the number of these additions. `sums` points to
// the `count` vectors of block number `block`. The sums that wait lie before it: one for each bit of `block`
// that is 1, the highest bit first. A waiting sum holds as many blocks as its bit stands for. There are
// `most` places, and the first place may hold more blocks than that. This is a function of its own because
// tiles that contain it are larger by a quarter.
template <typename Ops>
CF_NEVER_INLINE int add_pairs(typename Ops::Acc* sums, int64_t count, int64_t block, int most) {
  int pairs = 0;
  while (pairs < most - 1 && ((block >> pairs) & 1) != 0) ++pairs;
  if (pairs == most - 1 && (block >> pairs) != 0) ++pairs;
  for (int pair = 0; pair < pairs; ++pair, sums -= count) {
    for (int64_t i = 0; i < count; ++i) sums[i - count] = Ops::add(sums[i - count], sums[i]);
  }
  return pairs;
}

// The sums of the blocks of kRows x kVecs dot products. Ops whose kBlock is 0 have one block, because their
// sums are exact.
template <typename Ops, int kRows, int kVecs, int kMost = kMostSums>
class BlockSums {
 public:
  using Acc = typename Ops::Acc;
  // GCC 9 takes an array for one of another type if it is declared in other words.
  using Sums = Acc[kRows][kVecs];
  static constexpr int kCount = kRows * kVecs;
  static constexpr int kSize = Ops::kBlock == 0 ? 1 : (kMost + 1) * kCount;

  // `memory` has room for kSize accumulators, of any value.
  explicit CF_ALWAYS_INLINE BlockSums(Acc* memory) : memory_(memory) {}

  // The end of the block that begins with step number `begin`.
  static CF_ALWAYS_INLINE int64_t end_of_block(int64_t begin, int64_t steps) {
    return Ops::kBlock == 0 || steps - begin <= Ops::kBlock ? steps : begin + Ops::kBlock;
  }

  // Takes the sums of a block. After the last block it returns true, and `sums` are the sums of all blocks.
  CF_ALWAYS_INLINE bool done(Sums& sums, int64_t end_of_block, int64_t steps) {
    if constexpr (Ops::kBlock != 0) {
      if (steps <= Ops::kBlock) return true;
      if (end_of_block < steps) {
        Acc* to = memory_ + waiting_ * kCount;
        CF_UNROLL
        for (int r = 0; r < kRows; ++r) {
          CF_UNROLL
          for (int v = 0; v < kVecs; ++v) to[r * kVecs + v] = sums[r][v];
        }
        const int64_t block = end_of_block / Ops::kBlock - 1;
        ++waiting_;
        if ((block & 1) != 0) waiting_ -= add_pairs<Ops>(to, kCount, block, kMost);
        return false;
      }
      for (int sum = waiting_ - 1; sum >= 0; --sum) {
        const Acc* from = memory_ + sum * kCount;
        CF_UNROLL
        for (int r = 0; r < kRows; ++r) {
          CF_UNROLL
          for (int v = 0; v < kVecs; ++v) sums[r][v] = Ops::add(from[r * kVecs + v], sums[r][v]);
        }
      }
    }
    return true;
  }

 private:
  Acc* memory_;
  int waiting_ = 0;
};

}  // namespace
}  // namespace colbert_fast
