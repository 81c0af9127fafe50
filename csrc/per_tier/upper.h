// Upper bounds of scores, from documents as codes (codes.h). This file is compiled once for each tier, inside
// the tier's target region, and includes no system header. loop.h includes it. screen.h says what a tier
// offers as N. A tier without products of int8 widens the int8 numbers of both sides to float32.
//
// THE BOUND. Let q be a query token and x a document token; both are rotated, which changes no dot product.
// Let m v be the code of x, with |x - m v| <= slack, and let s q8 be about q. By Cauchy-Schwarz
//   <q, x> <= m <q, v> + slack |q| <= s (m <q8, v> + slack |q| / s) + |q - s q8| |m v|.
// So the score of a document is at most
//   U = sum over its query tokens of s max_j (m_j <q8, v_j> + slack_j r) + E norm
// where r is at least |q| / s, E is at least the sum of |q - s q8|, and no |m_j v_j| is above `norm`.
// host/upper.cpp computes r and E, with the margins that the next paragraph asks for.
//
// THE ARITHMETIC. Let u' be 2^-23: a rounding of float32 loses at most this much of its result, in whatever
// rounding mode. Let t = <q8, v> / a, where v = a l - b.
//   1. t is computed with an error of at most 5.1 u' |q8| |v / a|. Tiers with products of int8 have the exact
//      t in int32 (`numbers()` below says why its offset is an integer) and round it once. Sums of float32
//      are exact below 2^24. These products have l or, of 8 bits, l - 128 for v / a. So up to 4 bits a sum is
//      at most 4096 * 127 * 15 < 2^23. Of 8 bits, the sum of 1024 products is less than 2^24, and at most 5
//      additions join the sums of the blocks of 4096 numbers (sums.h); each of them loses at most u' times
//      sum |q8_k v_k|, which is at most |q8| |v|.
//   2. a m is exact. p = (a m) t is rounded once, and f = p + slack r at most twice.
// So f lacks at most 7.2 u' |m v| |q8| + 2.1 u' slack r. E has 2^-20 s |q8| for the former, and r is larger
// than |q| / s by a factor of 1 + 2^-20 for the latter. What is left of both also covers the sum over query
// tokens, which is in double. The result is rounded up.
//   3. Numbers below 2^-126 may be flushed to zero: m, slack, p, slack r and f. |t a| is at most 2^26, and r
//      at most 2^13, so that f lacks at most 2^-99. `leasts` is the sum of s 2^-98.
// A row whose multiplier is above 2^100, or whose multiplier or slack is not a number, gets m = 0 and slack =
// inf. Then p is below 2^127 for all rows, and no f is NaN: r is above 0, so that slack r is inf, and no p
// is.

#pragma once

#include "per_tier/screen.h"

namespace colbert_fast {
namespace {

// The bits of bfloat16 numbers.
constexpr uint32_t kMostMultiplier = (127 + 100) << 7;
constexpr uint32_t kBFloat16Infinity = 0x7f80;

// How far ahead of the codes in use memory is asked for.
constexpr uintptr_t kPrefetchBytes = 24 * 1024;

constexpr uint64_t in_every_byte(uint64_t byte) { return byte * 0x0101010101010101u; }

// Writes of(a, b) of kWords words: of eight bytes of `high` each, and of `low` at the same place.
template <int64_t kWords, typename Of>
CF_ALWAYS_INLINE void words(const unsigned char* __restrict high, const unsigned char* __restrict low,
                            unsigned char* __restrict to, const Of& of) {
  uint64_t a[kWords];
  uint64_t b[kWords];
  std::memcpy(a, high, sizeof a);
  std::memcpy(b, low, sizeof b);
  CF_UNROLL
  for (int64_t w = 0; w < kWords; ++w) a[w] = of(a[w], b[w]);
  std::memcpy(to, a, sizeof a);
}

// The same for rows of `bytes` bytes. It may write up to seven bytes more.
template <typename Of>
CF_ALWAYS_INLINE void each_word(const unsigned char* __restrict high, const unsigned char* __restrict low,
                                int64_t bytes, unsigned char* __restrict to, const Of& of) {
  int64_t j = 0;
  for (; j + 32 <= bytes; j += 32) words<4>(high + j, low + j, to + j, of);
  for (; j + 16 <= bytes; j += 16) words<2>(high + j, low + j, to + j, of);
  for (; j + 8 <= bytes; j += 8) words<1>(high + j, low + j, to + j, of);
  if (j == bytes) return;
  unsigned char rest[2][8] = {};
  for (int64_t k = 0; k < bytes - j; ++k) {
    rest[0][k] = high[j + k];
    rest[1][k] = low[j + k];
  }
  words<1>(rest[0], rest[1], to + j, of);
}

// Unpacks the numbers of kBits bits from number kFirst of each byte on.
template <int kBits, int kFirst = 0>
CF_ALWAYS_INLINE void unpack_row(const unsigned char* row, int64_t bytes, unsigned char* to) {
  constexpr uint64_t kMask = in_every_byte((1u << kBits) - 1);
  each_word(row, row, bytes, to + kFirst * bytes,
            [](uint64_t word, uint64_t) { return (word >> (kBits * kFirst)) & kMask; });
  if constexpr (kBits * (kFirst + 1) < 8) unpack_row<kBits, kFirst + 1>(row, bytes, to);
}

// Writes level numbers of rows, one a byte, `stride` bytes apart, and up to seven bytes after the last row.
// If kSigned, levels of eight bits become l - 128. kDim is the dim, or 0 for any: a compiler that knows it
// leaves no loop within a row. With these loops a row of fewer bits takes 3 to 9 ns more than one of eight,
// which takes 24; without them it takes no more. (Zen 4, AVX-512 VNNI, dim 128, 32 query tokens.)
template <bool kSigned, int64_t kDim>
void unpack_rows(const Codes& d, int64_t row, int64_t count, int64_t stride, unsigned char* to) {
  constexpr uint64_t kFlip = in_every_byte(kSigned ? 0x80 : 0);
  constexpr uint64_t kLow = in_every_byte(0x0f);
  const auto bytes_with = [&d](int bits) { return kDim > 0 ? kDim * bits / 8 : d.row_bytes; };
  const int64_t bytes = d.row_bytes;
  const unsigned char* from = d.levels + row * bytes;
  const unsigned char* low = d.low == nullptr ? nullptr : d.low + row * bytes;
  for (int64_t r = 0; r < count; ++r, from += bytes, to += stride) {
    for (int64_t b = 0; b < bytes; b += 64) prefetch(reinterpret_cast<uintptr_t>(from + b) + kPrefetchBytes);
    if (low != nullptr) {
      for (int64_t b = 0; b < bytes; b += 64) prefetch(reinterpret_cast<uintptr_t>(low + b) + kPrefetchBytes);
      each_word(from, low, bytes_with(4), to,
                [](uint64_t h, uint64_t l) { return (((h & kLow) << 4) | (l & kLow)) ^ kFlip; });
      each_word(from, low, bytes_with(4), to + bytes_with(4),
                [](uint64_t h, uint64_t l) { return ((h & ~kLow) | ((l >> 4) & kLow)) ^ kFlip; });
      low += bytes;
    } else if (d.bits == 8) {
      each_word(from, from, bytes_with(8), to, [](uint64_t word, uint64_t) { return word ^ kFlip; });
    } else if (d.bits == 4) {
      unpack_row<4>(from, bytes_with(4), to);
    } else if (d.bits == 2) {
      unpack_row<2>(from, bytes_with(2), to);
    } else {
      unpack_row<1>(from, bytes_with(1), to);
    }
  }
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Widens the multipliers, times a, and the slacks of rows.
inline void widen_factors(const Codes& d, int64_t row, int64_t count, Scratch& s) {
  const uint16_t* multipliers = d.multipliers + row;
  const uint16_t* slacks = d.slack + row;
  float* scales = s.row_scales;
  float* to = s.row_slacks;
  const float a = d.bits == 8 ? 1.0f : 2.0f;
  for (int64_t r = 0; r < count; ++r) {
    const uint32_t multiplier = multipliers[r];
    const uint32_t slack = slacks[r];
    const bool usable = (multiplier & 0x7fff) <= kMostMultiplier && slack <= kBFloat16Infinity;
    scales[r] = a * float_of(usable ? multiplier << 16 : 0);
    to[r] = float_of((usable ? slack : kBFloat16Infinity) << 16);
  }
}

// The rows of a chunk as they are multiplied, by a tier with products of int8, and by another tier.
template <typename N>
constexpr int64_t coded_bytes(const Codes& d) {
  constexpr int64_t kBytes = N::kBytes == 0 ? 1 : N::kBytes;
  return (d.numbers() + kBytes - 1) / kBytes * kBytes;
}

// Whether rows of level numbers of eight bits are signed.
template <typename N>
constexpr bool signed_rows() {
  if constexpr (N::kBytes == 0) {
    return true;
  } else {
    return N::kRaise == 0;
  }
}

// Packs lane number `lane` of the block as lane l of a panel of int8 numbers.
template <typename N>
void pack_coded_lane(const int8_t* numbers, int64_t dim, int64_t bytes, int64_t width, int64_t l,
                     unsigned char* panel) {
  for (int64_t element = 0; element < bytes / 4; ++element) {
    const int64_t left = numbers == nullptr ? 0 : dim - 4 * element;
    uint32_t four = 0;
    if (left > 0) std::memcpy(&four, numbers + 4 * element, static_cast<size_t>(left < 4 ? left : 4));
    std::memcpy(element_of<N>(panel, width, element, l), &four, sizeof four);
  }
}

// Puts queries [begin, end) into lanes, unless they are there already. Returns the number of lanes.
template <typename N>
int64_t pack_coded_queries(const UpperJob& job, int64_t begin, int64_t end, Scratch& s) {
  const CodedQueries& q = *job.q;
  const Codes& d = *job.d;
  const int64_t first = q.segment[begin];
  const int64_t lanes = q.segment[end] - first;
  if (s.packed_begin == begin && s.packed_end == end) return lanes;
  s.packed_begin = begin;
  s.packed_end = end;
  const int64_t bytes = coded_bytes<N>(d);
  // An offset makes <q8, v> / a of <q8, l>. It is -b / a times the sum of q8: a multiple of 1/2 of an even
  // number.
  const int32_t halves = d.bits == 8 ? (signed_rows<N>() ? 0 : 256) : (1 << d.bits) - 1;
  for (int64_t panel = 0; panel < lanes; panel += kPanel) {
    const int64_t width = lanes - panel > Isa::kFloats ? kPanel : Isa::kFloats;
    for (int64_t l = 0; l < width; ++l) {
      const int64_t lane = panel + l;
      const bool used = lane < lanes;
      const int8_t* numbers = used ? q.numbers + (first + lane) * d.dim : nullptr;
      s.lane_offset[lane] = used ? -halves * (q.sums[first + lane] / 2) : 0;
      s.lane_ratio[lane] = used ? q.ratios[first + lane] : 1.0f;
      if constexpr (N::kBytes > 0) {
        pack_coded_lane<N>(numbers, d.dim, bytes, width, l, s.screened_queries + panel * bytes);
      } else if (used) {
        float* to = s.query_rows + lane * bytes;
        widened(numbers, 1.0f, d.dim, to);
        for (int64_t k = d.dim; k < bytes; ++k) to[k] = 0.0f;
      }
    }
  }
  if constexpr (N::kBytes == 0) pack(bytes, lanes, s);
  return lanes;
}

// Multiplies the rows of a chunk by all packed lanes, into s.best.
template <typename N>
void bound_chunk(const Codes& d, int64_t row, int64_t count, int64_t lanes, Scratch& s) {
  const int64_t bytes = coded_bytes<N>(d);
  widen_factors(d, row, count, s);
  [[maybe_unused]] NarrowRows rows = {s.narrow_rows, bytes, bytes, count};
  const bool in_place = !signed_rows<N>() && d.bits == 8 && d.low == nullptr && d.row_bytes == bytes;
  if (in_place) {
    rows.rows = d.levels + row * bytes;
  } else if (d.dim == 128) {  // the dim of most models
    unpack_rows<signed_rows<N>(), 128>(d, row, count, bytes, s.narrow_rows);
  } else {
    unpack_rows<signed_rows<N>(), 0>(d, row, count, bytes, s.narrow_rows);
  }
  if constexpr (N::kBytes == 0)
    widened(reinterpret_cast<const int8_t*>(s.narrow_rows), 1.0f, count * bytes, s.float32_rows);
  for (int64_t lane = 0; lane < lanes && !s.given_up; lane += kPanel) {
    const UpperSink<N::kSinkVecs> sink = {
        {s.row_scales, s.row_slacks, s.lane_offset + lane, s.lane_ratio + lane, s.best.value + lane}};
    const bool wide = lanes - lane > Isa::kFloats;
    if constexpr (N::kBytes > 0) {
      // The lines of these rows, further on: 64 bytes are 16 elements.
      const Ahead ahead = {reinterpret_cast<uintptr_t>(rows.rows) + kPrefetchBytes,
                           in_place && lane == 0 ? (1 << kLineBits) / 16 : 0, 0};
      const unsigned char* q = s.screened_queries + lane * bytes;
      if (wide) {
        N::template int8_products<Isa::kVecs, kPanel>(rows, q, ahead, sink);
      } else {
        N::template int8_products<1, Isa::kFloats>(rows, q, ahead, sink);
      }
    } else {
      const float* q = s.float32_queries + lane * bytes;
      if (wide) {
        panel<Float32Ops, Isa::kVecs, kPanel>(q, s.float32_rows, bytes, bytes, count, kNothingAhead, sink);
      } else {
        panel<Float32Ops, 1, Isa::kFloats>(q, s.float32_rows, bytes, bytes, count, kNothingAhead, sink);
      }
    }
    given_up(count * kPanel * d.dim, s);
  }
}

// The smallest float32 that is not below a number. NaN becomes inf.
inline float rounded_up(double value) {
  using Limits = std::numeric_limits<float>;
  if (!(value <= static_cast<double>(Limits::max()))) return Limits::infinity();
  if (value < static_cast<double>(Limits::lowest())) return Limits::lowest();
  if (value > 0.0 && value < static_cast<double>(Limits::min())) return Limits::min();
  const float nearest = static_cast<float>(value);
  return static_cast<double>(nearest) >= value ? nearest : std::nextafter(nearest, Limits::infinity());
}

// The bound of a query with an item that has tokens. Of a query of zeros it is 0, whatever the item.
inline float bound_of(const CodedQueries& q, int64_t query, int64_t first_lane, float norm,
                      const Scratch& s) {
  const int64_t begin = q.segment[query];
  const float* best = s.best.value + (begin - first_lane);
  double sum = q.leasts[query];
  for (int64_t l = 0; l < q.segment[query + 1] - begin; ++l) {
    const double scale = q.scales[begin + l];
    sum += scale > 0.0 ? scale * static_cast<double>(best[l]) : 0.0;
  }
  const double error = q.errors[query];
  return rounded_up(error > 0.0 ? sum + error * static_cast<double>(norm) : sum);
}

template <typename N>
void upper_task(const UpperJob& job, const Task& task, Scratch& s) {
  const Codes& d = *job.d;
  const int64_t lanes = pack_coded_queries<N>(job, task.q_begin, task.q_end, s);
  const int64_t first_lane = job.q->segment[task.q_begin];
  for (int64_t i = task.begin; i < task.end && !given_up(64, s); ++i) {
    const int64_t length = d.lengths[i];
    reset(0, lanes, s.best);
    // Chunks of about the same length.
    const int64_t chunks = (length + s.block_rows - 1) / s.block_rows;
    for (int64_t c = 0; c < chunks && lanes > 0 && !s.given_up; ++c) {
      const int64_t begin = length * c / chunks;
      bound_chunk<N>(d, d.starts[i] + begin, length * (c + 1) / chunks - begin, lanes, s);
    }
    for (int64_t query = task.q_begin; query < task.q_end; ++query) {
      job.bounds[query * d.count + i] =
          length == 0 ? kEmptyDocumentScore : bound_of(*job.q, query, first_lane, d.norms[i], s);
    }
  }
}

}  // namespace
}  // namespace colbert_fast
