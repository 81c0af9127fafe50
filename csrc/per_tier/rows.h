// The rows of a document and the maxima of lanes, which the functions of this folder pass to one another.
// This file is compiled once for each tier, inside the tier's target region, and includes no system header.
// tile.h includes it.

#pragma once

namespace colbert_fast {
namespace {

// The lanes of a panel. tile.h says what a panel is.
constexpr int kPanel = Isa::kVecs * Isa::kFloats;

// Multiply-adds after which a tier asks whether the call was interrupted: 0.1 ms of a fast tier, 2 ms of a
// slow one.
constexpr int64_t kWorkBetweenLooks = int64_t{1} << 23;

// Counts multiply-adds, and says whether the call was interrupted and the tier has to return.
CF_ALWAYS_INLINE bool given_up(int64_t work, Scratch& s) {
  s.work += work;
  if (s.work < kWorkBetweenLooks) return s.given_up;
  s.work = 0;
  s.given_up = s.interrupted(s.call);
  return s.given_up;
}

// `n` numbers from an address, fewer than a vector has, in a vector that ends in zeros. Nothing past them is
// read: they are copied where the tier has no masks.
template <typename T>
CF_ALWAYS_INLINE typename Isa::Vec load_tail(const T* from, int64_t n) {
  if constexpr (Isa::kMasks) {
    return Isa::load(from, n);
  } else {
    T tail[Isa::kFloats] = {};
    std::memcpy(tail, from, static_cast<size_t>(n) * sizeof(T));
    return Isa::load(tail);
  }
}

// The same for any `n`: the rest of a row, which may be more than a vector, or nothing.
template <typename T>
CF_ALWAYS_INLINE typename Isa::Vec load_up_to(const T* from, int64_t n) {
  return n >= Isa::kFloats ? Isa::load(from) : n > 0 ? load_tail(from, n) : Isa::zero();
}

// The first kCount numbers from an address, where only `n` numbers lie: the address itself if there are
// enough, else a copy in `to`, which ends in zeros.
template <size_t kCount>
CF_ALWAYS_INLINE const int8_t* all_or_tail(const int8_t* from, int64_t n, int8_t (&to)[kCount]) {
  if (n >= static_cast<int64_t>(kCount)) return from;
  std::memset(to, 0, kCount);
  std::memcpy(to, from, static_cast<size_t>(n));
  return to;
}

// `n` numbers of a row as float32: where they are, or in `to`. Numbers of int8 are multiplied by `scale`.
template <typename T>
CF_ALWAYS_INLINE const float* widened(const T* row, [[maybe_unused]] float scale, int64_t n, float* to) {
  if constexpr (std::is_same<T, float>::value) {
    return row;
  } else {
    const auto wide = [&](typename Isa::Vec value) {
      if constexpr (std::is_same<T, int8_t>::value) return Isa::multiply(value, scale);
      return value;
    };
    int64_t k = 0;
    for (; k + Isa::kFloats <= n; k += Isa::kFloats) Isa::store(to + k, wide(Isa::load(row + k)));
    if (k < n) {
      float tail[Isa::kFloats];
      Isa::store(tail, wide(load_tail(row + k, n - k)));
      std::memcpy(to + k, tail, static_cast<size_t>(n - k) * sizeof(float));
    }
    return to;
  }
}

// Memory to ask for while rows are multiplied: `rate` cache lines from `address` on for each element of a
// row. `position` is how many of these lines were asked for before. Both are in units of 2^-16 lines.
struct Ahead {
  uintptr_t address;
  int64_t rate;
  int64_t position;
};
constexpr int kLineBits = 16;
constexpr Ahead kNothingAhead = {0, 0, 0};

// The size of the parts that `count` rows are cut into: as few as possible, of at most `most` rows each, and
// of equal sizes but for the last. A short part would have to ask for all rows of the next one in little
// time.
CF_ALWAYS_INLINE int64_t part_rows(int64_t count, int64_t most) {
  const int64_t parts = (count + most - 1) / most;
  return parts > 1 ? (count + parts - 1) / parts : count;
}

// Rows of one document that follow one another. narrow.h and screen.h take Rows by value: the compiler
// would read a reference from memory again after each store of bytes, because a byte may alias anything.
template <typename T>
struct Rows {
  const T* data;        // the first row
  int64_t stride;       // numbers from one row to the next
  int64_t dim;          // numbers of a row
  int64_t count;        // rows
  int64_t token;        // which token of the document the first row is
  const float* scales;  // of all tokens of the document; null unless T is int8
  const T* next;        // the rows that the task needs after these, in this document or in the next one
  int64_t next_count;   // 0: nobody knows

  // From and to the form in which a tier leaves rows to another tier.
  static CF_ALWAYS_INLINE Rows of(const AnyRows& r) {
    return {static_cast<const T*>(r.data), r.stride,    r.dim, r.count, r.token, r.scales,
            static_cast<const T*>(r.next), r.next_count};
  }
  CF_ALWAYS_INLINE AnyRows any() const { return {data, stride, dim, count, token, scales, next, next_count}; }

  CF_ALWAYS_INLINE const T* row(int64_t r) const { return data + r * stride; }

  CF_ALWAYS_INLINE float scale(int64_t r) const {
    if constexpr (std::is_same<T, int8_t>::value) return scales[token + r];
    return 1.0f;
  }

  CF_ALWAYS_INLINE Rows part(int64_t begin, int64_t n) const {
    const int64_t after = count - begin - n;
    return {row(begin),
            stride,
            dim,
            n,
            token + begin,
            scales,
            after > 0 ? row(begin + n) : next,
            after > 0 ? after : next_count};
  }

  // The next part of the next rows, cut by part_rows(), evenly over the `elements` elements of these rows.
  CF_ALWAYS_INLINE Ahead ahead(int64_t most, int64_t elements) const {
    const int64_t n = part_rows(next_count, most);
    const int64_t lines = (n * stride * static_cast<int64_t>(sizeof(T)) + 63) / 64;
    const int64_t parts = count * elements;
    return {reinterpret_cast<uintptr_t>(next), ((lines << kLineBits) + parts - 1) / (parts > 0 ? parts : 1),
            0};
  }

  CF_ALWAYS_INLINE const float* widened(int64_t r, float* to) const {
    return colbert_fast::widened(row(r), scale(r), dim, to);
  }
};

// The maxima from lane number `lane` on.
CF_ALWAYS_INLINE Best from_lane(const Best& best, int64_t lane) {
  return {best.value + lane, best.token + lane};
}

// Sets the maxima of all lanes back: -inf, and the token from which the document is read.
inline void reset(int64_t first_token, int64_t lanes, const Best& best) {
  const int64_t padded = (lanes + kPanel - 1) / kPanel * kPanel;
  for (int64_t l = 0; l < padded; ++l) {
    best.value[l] = -std::numeric_limits<float>::infinity();
    best.token[l] = static_cast<int32_t>(first_token);
  }
}

// best = max(best, other), as Isa::update() does it. Of tokens with equal values the first wins, in whatever
// order they come.
template <bool kArgmax>
void merge(int64_t lanes, const float* value, const int32_t* token, const Best& best) {
  for (int64_t l = 0; l < lanes; ++l) {
    const bool wins = !(value[l] <= best.value[l]) && best.value[l] == best.value[l];
    if constexpr (kArgmax)
      best.token[l] =
          wins || (value[l] == best.value[l] && token[l] < best.token[l]) ? token[l] : best.token[l];
    best.value[l] = wins ? value[l] : best.value[l];
  }
}

}  // namespace
}  // namespace colbert_fast
