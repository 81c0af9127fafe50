// The arithmetic of a tier, written once. A tier opens its target region, defines in an anonymous namespace
//
//   struct Isa {
//     using Vec;                      // kLanes floats
//     using Idx;                      // kLanes int32
//     static constexpr int kLanes;
//     static constexpr int kRows;     // the register tile: kRows document rows
//     static constexpr int kVecs;     // x kVecs vectors of query tokens
//     static Vec zero();
//     static Vec load(const float*);
//     static auto broadcast(const float*);  // a Vec, or what else fma() multiplies by
//     static Vec fma(Vec, Vec, Vec);
//     static void store(float*, Vec);
//     static Idx load(const int32_t*);
//     static void store(int32_t*, Idx);
//
//     // best = max(best, value). NaN wins, and stays.
//     static void update(Vec& best, Vec value);
//
//     // The same, and the first row that wins.
//     static void update(Vec& best, Idx& arg, Vec value, int32_t row);
//
//     // Exact, for T = BFloat16 and Float16.
//     static void widen(const T* from, float* to, int64_t n);
//
//     // Rounded once.
//     static void widen(const int8_t* from, float scale, float* to, int64_t n);
//   };
//
// and includes this file inside the region. Everything here has internal linkage.
//
// Lanes are query tokens: the tokens of a block of queries are packed one after the other, regardless of
// where a query ends, into panels of kPanel = kVecs * kLanes lanes, each panel stored [dim][width] with width
// = kPanel, or kLanes for a last panel that needs no more. A document element is broadcast against a vector
// of lanes, so a tile of kRows x kVecs accumulators takes kRows + kVecs loads for kRows * kVecs FMAs per
// dimension, the maximum over document tokens is vertical, and no horizontal operation occurs before the
// final sum.
//
// Every dot product is one chain of multiply-adds in the order of the dimensions, whatever the tile it falls
// in: a score does not depend on what else is scored, on how the work is cut or on the number of threads.

namespace colbert_fast {
namespace {

constexpr int kPanel = Isa::kVecs * Isa::kLanes;
constexpr int64_t kFloatsPerLine = 16;
// How far ahead of the rows in use memory is asked for, into L2. The hardware prefetcher is lost where kRows
// rows are read side by side: a prototype of this loop on Sapphire Rapids, 12 rows of 512 bytes, took 79 to
// 104 ns a row without prefetching and 49 ns with this distance.
constexpr uintptr_t kPrefetchBytes = 24 * 1024;

CF_ALWAYS_INLINE void prefetch(uintptr_t address) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(reinterpret_cast<const void*>(address), 0, 2);
#elif CF_X86_64
  _mm_prefetch(reinterpret_cast<const char*>(address), _MM_HINT_T1);
#else
  (void)address;
#endif
}

// The rows of an item, and the scales of these rows if they have any.
template <typename T>
const T* item_rows(const Tokens& tokens, int64_t item) {
  if (tokens.items != nullptr) return static_cast<const T*>(tokens.items[item]);
  return static_cast<const T*>(tokens.data) + tokens.starts[item] * tokens.row_stride;
}

inline const float* item_scales(const Tokens& tokens, int64_t item) {
  return tokens.scales == nullptr ? nullptr : tokens.scales + tokens.starts[item];
}

// `n` numbers of a row as float32: where they are, or in `to`. If it is int8, scales[index] is its scale.
template <typename T>
CF_ALWAYS_INLINE const float* widened(const T* row, const float* scales, int64_t index, int64_t n,
                                      float* to) {
  if constexpr (std::is_same<T, float>::value) {
    return row;
  } else if constexpr (std::is_same<T, int8_t>::value) {
    Isa::widen(row, scales[index], to, n);
    return to;
  } else {
    Isa::widen(row, to, n);
    return to;
  }
}

// kRows document rows against one panel of queries. `ahead`, if not 0, is the memory to prefetch meanwhile:
// as many bytes as the rows themselves, in address order.
template <int kRows, int kVecs, bool kArgmax>
void tile(const float* q, const float* rows, int64_t stride, int64_t dim, int64_t first_row, uintptr_t ahead,
          float* best, int32_t* arg) {
  using Vec = typename Isa::Vec;
  constexpr int kWidth = kVecs * Isa::kLanes;
  // Three rows share one base pointer: twelve addresses then need six registers and no spills.
  constexpr int kBases = (kRows + 2) / 3;
  const float* base[kBases];
  CF_UNROLL
  for (int b = 0; b < kBases; ++b) base[b] = rows + 3 * b * stride;
  Vec acc[kRows][kVecs];
  CF_UNROLL
  for (int r = 0; r < kRows; ++r) {
    CF_UNROLL
    for (int v = 0; v < kVecs; ++v) acc[r][v] = Isa::zero();
  }
  for (int64_t done = 0; done < dim; done += kFloatsPerLine) {
    if (ahead != 0) {
      CF_UNROLL
      for (int r = 0; r < kRows; ++r) prefetch(ahead + static_cast<uintptr_t>(64 * r));
      ahead += 64 * kRows;
    }
    const int64_t end = dim - done < kFloatsPerLine ? dim : done + kFloatsPerLine;
    for (int64_t k = done; k < end; ++k) {
      Vec lanes[kVecs];
      CF_UNROLL
      for (int v = 0; v < kVecs; ++v) lanes[v] = Isa::load(q + k * kWidth + v * Isa::kLanes);
      CF_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const auto element = Isa::broadcast(base[r / 3] + (r % 3) * stride + k);
        CF_UNROLL
        for (int v = 0; v < kVecs; ++v) acc[r][v] = Isa::fma(element, lanes[v], acc[r][v]);
      }
    }
  }
  CF_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    Vec top = Isa::load(best + v * Isa::kLanes);
    if constexpr (kArgmax) {
      typename Isa::Idx where = Isa::load(arg + v * Isa::kLanes);
      CF_UNROLL
      for (int r = 0; r < kRows; ++r) Isa::update(top, where, acc[r][v], static_cast<int32_t>(first_row + r));
      Isa::store(arg + v * Isa::kLanes, where);
    } else {
      CF_UNROLL
      for (int r = 0; r < kRows; ++r) Isa::update(top, acc[r][v]);
    }
    Isa::store(best + v * Isa::kLanes, top);
  }
}

using TileFunction = void (*)(const float*, const float*, int64_t, int64_t, int64_t, uintptr_t, float*,
                              int32_t*);

// tile<1 .. kRows>, one for each number of rows that can be left over.
template <int kVecs, bool kArgmax, int... kMinusOne>
TileFunction tile_for(int64_t rows, std::integer_sequence<int, kMinusOne...>) {
  static constexpr TileFunction kTiles[] = {&tile<kMinusOne + 1, kVecs, kArgmax>...};
  return kTiles[rows - 1];
}

// `count` rows against one panel, in tiles as equal as can be: 13 rows are 7 + 6 and not 12 + 1, for a tile
// of few rows has too few chains of FMAs to hide their latency.
template <int kVecs, bool kArgmax>
void panel(const float* q, const float* rows, int64_t stride, int64_t dim, int64_t first_row, int64_t count,
           bool prefetching, float* best, int32_t* arg) {
  const int64_t tiles = (count + Isa::kRows - 1) / Isa::kRows;
  const int64_t least = count / tiles;
  const int64_t larger = count % tiles;
  for (int64_t t = 0, row = 0; t < tiles; ++t) {
    const int64_t n = least + (t < larger ? 1 : 0);
    const float* at = rows + row * stride;
    const uintptr_t ahead = prefetching ? reinterpret_cast<uintptr_t>(at) + kPrefetchBytes : 0;
    tile_for<kVecs, kArgmax>(n, std::make_integer_sequence<int, Isa::kRows>())(
        q, at, stride, dim, first_row + row, ahead, best, arg);
    row += n;
  }
}

// `count` rows of a document, the first being its token number `first_row`, into best and arg of all packed
// lanes. `scales` are those of the document's tokens, if they have any.
template <typename T, bool kArgmax>
void accumulate(const Problem& p, const T* rows, const float* scales, int64_t first_row, int64_t count,
                int64_t lanes, Scratch& s) {
  // With one panel nothing is read twice, and a document is one block.
  const bool one_block = std::is_same<T, float>::value && lanes <= kPanel;
  const int64_t block = one_block ? count : s.block_rows;
  for (int64_t row = 0; row < count; row += block) {
    const int64_t n = count - row < block ? count - row : block;
    const T* at = rows + row * p.d.row_stride;
    const float* values;
    int64_t stride;
    if constexpr (std::is_same<T, float>::value) {
      values = at;
      stride = p.d.row_stride;
    } else {
      const uintptr_t line = reinterpret_cast<uintptr_t>(at) + kPrefetchBytes;
      const uintptr_t row_bytes = static_cast<uintptr_t>(p.dim) * sizeof(T);
      for (int64_t r = 0; r < n; ++r) {
        for (uintptr_t b = 0; b < row_bytes; b += 64)
          prefetch(line + static_cast<uintptr_t>(r) * row_bytes + b);
        widened(at + r * p.d.row_stride, scales, first_row + row + r, p.dim, s.rows + r * p.dim);
      }
      values = s.rows;
      stride = p.dim;
    }
    for (int64_t lane = 0; lane < lanes; lane += kPanel) {
      const float* q = s.packed + lane * p.dim;
      // The first panel streams the rows from memory; the others find them in the cache.
      const bool prefetching = std::is_same<T, float>::value && lane == 0;
      if (lanes - lane > Isa::kLanes) {
        panel<Isa::kVecs, kArgmax>(q, values, stride, p.dim, first_row + row, n, prefetching, s.best + lane,
                                   s.arg + lane);
      } else {
        panel<1, kArgmax>(q, values, stride, p.dim, first_row + row, n, prefetching, s.best + lane,
                          s.arg + lane);
      }
    }
  }
}

inline bool is_zero(float value) { return value == 0.0f; }
inline bool is_zero(BFloat16 value) { return (value.bits & 0x7fff) == 0; }
inline bool is_zero(Float16 value) { return (value.bits & 0x7fff) == 0; }
inline bool is_zero(int8_t value) { return value == 0; }

template <typename T>
bool is_zero_row(const T* row, int64_t dim) {
  for (int64_t k = 0; k < dim; ++k) {
    if (!is_zero(row[k])) return false;
  }
  return true;
}

// Packs queries [begin, end) into lanes, leaving zero rows out where the problem says that they are padding.
template <typename T>
void pack(const Problem& p, int64_t begin, int64_t end, Scratch& s) {
  int64_t lanes = 0;
  for (int64_t q = begin; q < end; ++q) {
    s.segment[q - begin] = lanes;
    for (int64_t t = 0; t < p.q.lengths[q]; ++t) {
      const T* row = item_rows<T>(p.q, q) + t * p.q.row_stride;
      if (p.skip_zero_q && is_zero_row(row, p.dim)) continue;
      s.token[lanes++] = static_cast<int32_t>(t);
    }
  }
  s.segment[end - begin] = lanes;

  int64_t q = begin;
  for (int64_t lane = 0; lane < lanes; ++lane) {
    while (lane == s.segment[q + 1 - begin]) ++q;
    const T* row = item_rows<T>(p.q, q) + s.token[lane] * p.q.row_stride;
    const float* values = widened(row, nullptr, 0, p.dim, s.rows);
    const int64_t panel_start = lane / kPanel * kPanel;
    const int64_t width = lanes - panel_start > Isa::kLanes ? kPanel : Isa::kLanes;
    float* to = s.packed + panel_start * p.dim + (lane - panel_start);
    for (int64_t k = 0; k < p.dim; ++k) to[k * width] = values[k];
  }
  // The unused lanes of the last panel: any finite number would do, for nobody reads their maxima.
  const int64_t panel_start = lanes / kPanel * kPanel;
  const int64_t width = lanes - panel_start > Isa::kLanes ? kPanel : Isa::kLanes;
  if (lanes > panel_start) {
    for (int64_t k = 0; k < p.dim; ++k) {
      for (int64_t l = lanes - panel_start; l < width; ++l)
        s.packed[panel_start * p.dim + k * width + l] = 0.0f;
    }
  }
}

inline void pack_any(const Problem& p, int64_t begin, int64_t end, Scratch& s) {
  if (s.packed_begin == begin && s.packed_end == end) return;
  s.packed_begin = begin;
  s.packed_end = end;
  switch (p.q.dtype) {
    case DType::kFloat32:
      return pack<float>(p, begin, end, s);
    case DType::kBFloat16:
      return pack<BFloat16>(p, begin, end, s);
    case DType::kFloat16:
      return pack<Float16>(p, begin, end, s);
    case DType::kInt8:
      return;
  }
}

inline void reset(int64_t first_row, int64_t lanes, Scratch& s) {
  const int64_t padded = (lanes + kPanel - 1) / kPanel * kPanel;
  for (int64_t l = 0; l < padded; ++l) {
    s.best[l] = -std::numeric_limits<float>::infinity();
    s.arg[l] = static_cast<int32_t>(first_row);
  }
}

// A zero row scores 0, or NaN against an infinite query: unless a maximum is one of these, zero rows changed
// nothing.
inline bool zero_rows_may_win(int64_t lanes, const Scratch& s) {
  for (int64_t l = 0; l < lanes; ++l) {
    if (s.best[l] == 0.0f || s.best[l] != s.best[l]) return true;
  }
  return lanes == 0;
}

// The maxima of one document for all packed lanes. False: the document has no token.
template <typename T, bool kArgmax>
bool document(const Problem& p, int64_t d, int64_t lanes, Scratch& s) {
  const int64_t length = p.d.lengths[d];
  if (length == 0) return false;
  const T* rows = item_rows<T>(p.d, d);
  const float* scales = item_scales(p.d, d);
  reset(0, lanes, s);
  accumulate<T, kArgmax>(p, rows, scales, 0, length, lanes, s);
  if (!p.skip_zero_d || !zero_rows_may_win(lanes, s)) return true;

  const auto zero = [&](int64_t row) { return is_zero_row(rows + row * p.d.row_stride, p.dim); };
  bool any = false;
  for (int64_t row = 0; row < length;) {
    while (row < length && zero(row)) ++row;
    const int64_t from = row;
    while (row < length && !zero(row)) ++row;
    if (row == from) break;
    if (!any) reset(from, lanes, s);
    any = true;
    accumulate<T, kArgmax>(p, rows + from * p.d.row_stride, scales, from, row - from, lanes, s);
  }
  return any;
}

// Sums the maxima of the packed query number `index` into the pair `pair` (document token numbers into
// argmax).
inline void emit(const ScoreJob& job, int64_t pair, int64_t index, bool has_tokens, const Scratch& s) {
  const int64_t first = s.segment[index];
  const int64_t last = s.segment[index + 1];
  // In double: the only rounding is the final one, and it does not grow with the length of the query.
  double sum = 0.0;
  for (int64_t l = first; l < last; ++l) sum += static_cast<double>(s.best[l]);
  job.scores[pair] = has_tokens ? static_cast<float>(sum) : kEmptyDocumentScore;
  if (job.argmax == nullptr) return;
  int32_t* to = job.argmax + pair * job.problem->max_lq;
  for (int64_t t = 0; t < job.problem->max_lq; ++t) to[t] = -1;
  if (!has_tokens) return;
  for (int64_t l = first; l < last; ++l) to[s.token[l]] = s.arg[l];
}

template <typename T, bool kArgmax>
void score_unit(const ScoreJob& job, const Unit& u, Scratch& s) {
  const Problem& p = *job.problem;
  for (int64_t i = u.begin; i < u.end; ++i) {
    const int64_t pair = job.order != nullptr ? job.order[i] : 0;
    const int64_t q_begin = job.order != nullptr ? p.pairs[2 * pair] : u.q_begin;
    const int64_t q_end = job.order != nullptr ? q_begin + 1 : u.q_end;
    const int64_t d = job.order != nullptr ? p.pairs[2 * pair + 1] : i;
    pack_any(p, q_begin, q_end, s);
    const bool has_tokens = document<T, kArgmax>(p, d, s.segment[q_end - q_begin], s);
    if (!has_tokens) s.saw_empty_document = true;
    for (int64_t q = q_begin; q < q_end; ++q) {
      emit(job, job.order != nullptr ? pair : q * p.d.count + d, q - q_begin, has_tokens, s);
    }
  }
}

template <bool kArgmax>
void score_any(const ScoreJob& job, const Unit& u, Scratch& s) {
  switch (job.problem->d.dtype) {
    case DType::kFloat32:
      return score_unit<float, kArgmax>(job, u, s);
    case DType::kBFloat16:
      return score_unit<BFloat16, kArgmax>(job, u, s);
    case DType::kFloat16:
      return score_unit<Float16, kArgmax>(job, u, s);
    case DType::kInt8:
      return score_unit<int8_t, kArgmax>(job, u, s);
  }
}

// T is the dtype of the other side. grad[owner's row] += grad_score * (the other side's row), pair after pair
// and token after token, so that the order of the additions to one element is fixed.
template <typename T>
void backward_unit(const BackwardJob& job, const BackwardUnit& u, Scratch& s) {
  const Problem& p = *job.problem;
  const Tokens& other = job.to_queries ? p.d : p.q;
  const int64_t columns = u.column_end - u.column_begin;
  for (int64_t i = u.begin; i < u.end; ++i) {
    const int64_t pair = job.order[i];
    const int64_t q = !p.all_pairs ? p.pairs[2 * pair] : pair / p.d.count;
    const int64_t d = !p.all_pairs ? p.pairs[2 * pair + 1] : pair % p.d.count;
    const float scale = job.grad_scores[pair];
    for (int64_t t = 0; t < p.q.lengths[q]; ++t) {
      const int64_t j = job.argmax[pair * p.max_lq + t];
      if (j < 0 || j >= p.d.lengths[d]) continue;
      const int64_t q_row = p.q.starts[q] + t;
      const int64_t d_row = p.d.starts[d] + j;
      float* to = job.grad + (job.to_queries ? q_row : d_row) * p.dim + u.column_begin;
      const T* from = static_cast<const T*>(other.data) +
                      (job.to_queries ? d_row : q_row) * other.row_stride + u.column_begin;
      const float* values = widened(from, other.scales, d_row, columns, s.rows);
      for (int64_t k = 0; k < columns; ++k) to[k] += scale * values[k];
    }
  }
}

inline void backward_any(const BackwardJob& job, const BackwardUnit& u, Scratch& s) {
  switch (job.to_queries ? job.problem->d.dtype : job.problem->q.dtype) {
    case DType::kFloat32:
      return backward_unit<float>(job, u, s);
    case DType::kBFloat16:
      return backward_unit<BFloat16>(job, u, s);
    case DType::kFloat16:
      return backward_unit<Float16>(job, u, s);
    case DType::kInt8:
      return backward_unit<int8_t>(job, u, s);
  }
}

// The limits that benchmarks compare with. `steps` times the FMAs of one dimension of a tile, from registers:
// what tile() would reach if its loads cost nothing. Returns the sum, for the compiler must not see that
// nobody wants it.
inline float multiply_add(int64_t steps) {
  using Vec = typename Isa::Vec;
  // Every chain begins with another number: equal ones would be computed once.
  float seed[Isa::kRows * Isa::kVecs + Isa::kLanes];
  for (int i = 0; i < Isa::kRows * Isa::kVecs + Isa::kLanes; ++i)
    seed[i] = 1e-3f * static_cast<float>(steps % 97 + i);
  const Vec factor = Isa::load(seed);
  Vec acc[Isa::kRows][Isa::kVecs];
  CF_UNROLL
  for (int r = 0; r < Isa::kRows; ++r) {
    CF_UNROLL
    for (int v = 0; v < Isa::kVecs; ++v) acc[r][v] = Isa::load(seed + r * Isa::kVecs + v);
  }
  for (int64_t i = 0; i < steps; ++i) {
    CF_UNROLL
    for (int r = 0; r < Isa::kRows; ++r) {
      CF_UNROLL
      for (int v = 0; v < Isa::kVecs; ++v) acc[r][v] = Isa::fma(factor, factor, acc[r][v]);
    }
  }
  float sum = 0.0f;
  for (int r = 0; r < Isa::kRows; ++r) {
    for (int v = 0; v < Isa::kVecs; ++v) {
      Isa::store(seed, acc[r][v]);
      sum += seed[0];
    }
  }
  return sum;
}

// Reads `count` floats, a multiple of 4 * kLanes, in address order and with the prefetch distance of tile().
inline float read(const float* data, int64_t count) {
  using Vec = typename Isa::Vec;
  float ones[Isa::kLanes];
  for (int l = 0; l < Isa::kLanes; ++l) ones[l] = 1.0f;
  const Vec one = Isa::load(ones);
  Vec acc[4] = {Isa::zero(), Isa::zero(), Isa::zero(), Isa::zero()};
  for (int64_t i = 0; i < count; i += 4 * Isa::kLanes) {
    const uintptr_t ahead = reinterpret_cast<uintptr_t>(data + i) + kPrefetchBytes;
    for (uintptr_t b = 0; b < 4 * Isa::kLanes * sizeof(float); b += 64) prefetch(ahead + b);
    CF_UNROLL
    for (int v = 0; v < 4; ++v) acc[v] = Isa::fma(Isa::load(data + i + v * Isa::kLanes), one, acc[v]);
  }
  float sum = 0.0f;
  for (int v = 0; v < 4; ++v) {
    Isa::store(ones, acc[v]);
    sum += ones[0];
  }
  return sum;
}

}  // namespace
}  // namespace colbert_fast
