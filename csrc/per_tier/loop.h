// What a tier does with a task: packs queries, walks documents, sums maxima, writes gradients.
// Included inside the tier's target region, over its Isa, of which tile.h says what it is, and its Narrow, of
// which screen.h does; a tier that multiplies nothing but float32 has NoNarrow. tier_of() is what the tier
// then is.

#pragma once

#include "per_tier/screen.h"

namespace colbert_fast {
namespace {

// The rows of an item, and the scales of these rows if they have any.
template <typename T>
const T* item_rows(const Tokens& tokens, int64_t item) {
  if (tokens.items != nullptr) return static_cast<const T*>(tokens.items[item]);
  return static_cast<const T*>(tokens.data) + tokens.starts[item] * tokens.row_stride;
}

inline const float* item_scales(const Tokens& tokens, int64_t item) {
  return tokens.scales == nullptr ? nullptr : tokens.scales + tokens.starts[item];
}

// `count` rows of a document, the first being its token number `first_row`, into best and arg of the packed
// lanes from `begin`, that of a panel, to `end`, by the tiles of float32. `scales` are those of the
// document's tokens, if they have any.
template <typename T, bool kArgmax>
void accumulate_float32(const Problem& p, const T* rows, const float* scales, int64_t first_row,
                        int64_t count, int64_t begin, int64_t end, float* best, int32_t* arg, Scratch& s) {
  // With one panel no row is read twice: a document is one block, but for the looks for an interrupt.
  const bool one_panel = std::is_same<T, float>::value && end - begin <= kPanel;
  const int64_t rows_between_looks = kWorkBetweenLooks / (kPanel * (p.dim > 0 ? p.dim : 1));
  const int64_t block = one_panel && rows_between_looks > s.block_rows ? rows_between_looks : s.block_rows;
  for (int64_t row = 0; row < count; row += block) {
    const int64_t n = count - row < block ? count - row : block;
    if (given_up(0, s)) return;
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
        widened(at + r * p.d.row_stride, scales, first_row + row + r, p.dim, s.float32_rows + r * p.dim);
      }
      values = s.float32_rows;
      stride = p.dim;
    }
    for (int64_t lane = begin; lane < end; lane += kPanel) {
      const float* q = s.float32_queries + lane * p.dim;
      // The first panel streams the rows from memory; the others find them in the cache.
      const Ahead ahead = {reinterpret_cast<uintptr_t>(at) + kPrefetchBytes,
                           std::is_same<T, float>::value && lane == 0 ? 1 : 0};
      const Maxima<kArgmax> maxima = {best + lane, arg + lane, first_row + row};
      if (end - lane > Isa::kFloats) {
        panel<Float32Ops, Isa::kVecs, kPanel>(q, values, stride, p.dim, n, ahead, maxima);
      } else {
        panel<Float32Ops, 1, Isa::kFloats>(q, values, stride, p.dim, n, ahead, maxima);
      }
      if (given_up(n * kPanel * p.dim, s)) return;
    }
  }
}

inline void reset(int64_t first_row, int64_t lanes, float* best, int32_t* arg) {
  const int64_t padded = (lanes + kPanel - 1) / kPanel * kPanel;
  for (int64_t l = 0; l < padded; ++l) {
    best[l] = -std::numeric_limits<float>::infinity();
    arg[l] = static_cast<int32_t>(first_row);
  }
}

// The products that decide between documents of T, and the numbers in which these are screened.
template <typename T>
constexpr bool multiplies_bfloat16() {
  return std::is_same<T, BFloat16>::value && Narrow::kBFloat16;
}
template <typename T>
constexpr bool screens() {
  return !std::is_same<typename Narrow::template Screen<T>, void>::value;
}

// The maxima of the tier's chains, chunk after chunk, some screened: by_chains(row, count, begin, end)
// computes all that some rows have with some lanes.
template <typename T, bool kArgmax, typename ByChains>
void by_chunks(const Problem& p, const T* rows, const float* scales, int64_t first_row, int64_t count,
               int64_t lanes, float* best, int32_t* arg, Scratch& s, const ByChains& by_chains) {
  const int64_t chunk = chunk_rows(lanes);
  for (int64_t row = 0; row < count && !given_up(0, s); row += chunk) {
    const int64_t n = count - row < chunk ? count - row : chunk;
    const auto of_lanes = [&](int64_t begin, int64_t end) { by_chains(row, n, begin, end); };
    if (s.screens && s.chunks_to_rest > 0) {
      --s.chunks_to_rest;
    } else if (s.screens) {
      const T* at = rows + row * p.d.row_stride;
      if (screen<Narrow, T, kArgmax>(p, at, scales, first_row + row, n, lanes, best, arg, s, of_lanes))
        continue;
    }
    of_lanes(0, lanes);
  }
}

// The same as accumulate_float32() for all packed lanes, by whatever is fastest.
template <typename T, bool kArgmax>
void accumulate(const Problem& p, const T* rows, const float* scales, int64_t first_row, int64_t count,
                int64_t lanes, Scratch& s) {
  if constexpr (multiplies_bfloat16<T>()) {
    reset(first_row, lanes, s.bf16_best.value, s.bf16_best.token);
    const auto by_chains = [&](int64_t row, int64_t n, int64_t begin, int64_t end) {
      multiply<Narrow, kArgmax>(p, rows + row * p.d.row_stride, first_row + row, n, begin, end, s);
    };
    if constexpr (screens<T>()) {
      by_chunks<T, kArgmax>(p, rows, scales, first_row, count, lanes, s.bf16_best.value, s.bf16_best.token, s,
                            by_chains);
    } else {
      for (int64_t row = 0; row < count && !given_up(0, s); row += kChunkRows)
        by_chains(row, count - row < kChunkRows ? count - row : kChunkRows, 0, lanes);
    }
    bool again = false;
    for (int64_t l = 0; l < lanes; ++l) again |= !(std::fabs(s.bf16_best.value[l]) >= s.lane_floor[l]);
    if (again) {
      s.rescored = true;
      reset(first_row, lanes, s.float32_best.value, s.float32_best.token);
      accumulate_float32<T, kArgmax>(p, rows, scales, first_row, count, 0, lanes, s.float32_best.value,
                                     s.float32_best.token, s);
      for (int64_t l = 0; l < lanes; ++l) {
        if (std::fabs(s.bf16_best.value[l]) >= s.lane_floor[l]) continue;
        s.bf16_best.value[l] = s.float32_best.value[l];
        s.bf16_best.token[l] = s.float32_best.token[l];
      }
    }
    merge<kArgmax>(lanes, s.bf16_best.value, s.bf16_best.token, s.best.value, s.best.token);
  } else if constexpr (screens<T>()) {
    if (!s.screens)
      return accumulate_float32<T, kArgmax>(p, rows, scales, first_row, count, 0, lanes, s.best.value,
                                            s.best.token, s);
    by_chunks<T, kArgmax>(p, rows, scales, first_row, count, lanes, s.best.value, s.best.token, s,
                          [&](int64_t row, int64_t n, int64_t begin, int64_t end) {
                            accumulate_float32<T, kArgmax>(p, rows + row * p.d.row_stride, scales,
                                                           first_row + row, n, begin, end, s.best.value,
                                                           s.best.token, s);
                          });
  } else {
    accumulate_float32<T, kArgmax>(p, rows, scales, first_row, count, 0, lanes, s.best.value, s.best.token,
                                   s);
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

// The rows of queries [begin, end) as float32, leaving zero rows out where the problem says that they are
// padding.
template <typename T>
void widen_queries(const Problem& p, int64_t begin, int64_t end, Scratch& s) {
  int64_t lanes = 0;
  for (int64_t q = begin; q < end; ++q) {
    s.segment[q - begin] = lanes;
    for (int64_t t = 0; t < p.q.lengths[q]; ++t) {
      if (given_up(p.dim, s)) continue;
      const T* row = item_rows<T>(p.q, q) + t * p.q.row_stride;
      if (p.skip_zero_q && is_zero_row(row, p.dim)) continue;
      float* to = s.query_rows + lanes * p.dim;
      const float* values = widened(row, nullptr, 0, p.dim, to);
      if (values != to && p.dim > 0) std::memcpy(to, values, static_cast<size_t>(p.dim) * sizeof(float));
      s.token[lanes++] = static_cast<int32_t>(t);
    }
  }
  s.segment[end - begin] = lanes;
}

// Packs the first `lanes` of s.query_rows.
inline void pack(int64_t dim, int64_t lanes, Scratch& s) {
  constexpr int64_t kFloats = Isa::kFloats;
  // The unused lanes of the last panel: any finite number would do, for nobody reads their maxima.
  const int64_t last_panel = (lanes - 1) / kPanel * kPanel;
  const int64_t padded = lanes == 0 ? 0 : last_panel + (lanes - last_panel > kFloats ? kPanel : kFloats);
  for (int64_t i = lanes * dim; i < padded * dim; ++i) s.query_rows[i] = 0.0f;
  for (int64_t lane = 0; lane < padded; lane += kFloats) {
    const int64_t panel_start = lane / kPanel * kPanel;
    const int64_t width = lanes - panel_start > kFloats ? kPanel : kFloats;
    const float* rows = s.query_rows + lane * dim;
    float* to = s.float32_queries + panel_start * dim + (lane - panel_start);
    int64_t k = 0;
    for (; k + kFloats <= dim; k += kFloats) {
      typename Isa::Vec block[kFloats];
      CF_UNROLL
      for (int l = 0; l < kFloats; ++l) block[l] = Isa::load(rows + l * dim + k);
      Isa::transpose(block);
      CF_UNROLL
      for (int i = 0; i < kFloats; ++i) Isa::store(to + (k + i) * width, block[i]);
    }
    for (; k < dim; ++k) {
      for (int64_t l = 0; l < kFloats; ++l) to[k * width + l] = rows[l * dim + k];
    }
  }
}

template <typename T>
void pack_narrow(const Problem& p, int64_t lanes, Scratch& s) {
  if constexpr (multiplies_bfloat16<T>() || screens<T>()) prepare_lanes<Narrow, T>(p, lanes, s);
}

// Puts queries [begin, end) into lanes, in the numbers in which documents of p.d.dtype meet them.
inline void pack_queries(const Problem& p, int64_t begin, int64_t end, Scratch& s) {
  if (s.packed_begin == begin && s.packed_end == end) return;
  s.packed_begin = begin;
  s.packed_end = end;
  switch (p.q.dtype) {
    case DType::kFloat32:
      widen_queries<float>(p, begin, end, s);
      break;
    case DType::kBFloat16:
      widen_queries<BFloat16>(p, begin, end, s);
      break;
    case DType::kFloat16:
      widen_queries<Float16>(p, begin, end, s);
      break;
    case DType::kInt8:
      return;
  }
  const int64_t lanes = s.segment[end - begin];
  pack(p.dim, lanes, s);
  switch (p.d.dtype) {
    case DType::kFloat32:
      return pack_narrow<float>(p, lanes, s);
    case DType::kBFloat16:
      return pack_narrow<BFloat16>(p, lanes, s);
    case DType::kFloat16:
      return pack_narrow<Float16>(p, lanes, s);
    case DType::kInt8:
      return pack_narrow<int8_t>(p, lanes, s);
  }
}

// A zero row scores 0, or NaN against an infinite query: unless a maximum is one of these, zero rows changed
// nothing.
inline bool zero_rows_may_win(int64_t lanes, const Scratch& s) {
  for (int64_t l = 0; l < lanes; ++l) {
    if (s.best.value[l] == 0.0f || s.best.value[l] != s.best.value[l]) return true;
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
  reset(0, lanes, s.best.value, s.best.token);
  accumulate<T, kArgmax>(p, rows, scales, 0, length, lanes, s);
  if (!p.skip_zero_d || !zero_rows_may_win(lanes, s)) return true;

  const auto zero = [&](int64_t row) {
    return !given_up(p.dim, s) && is_zero_row(rows + row * p.d.row_stride, p.dim);
  };
  bool any = false;
  for (int64_t row = 0; row < length;) {
    while (row < length && zero(row)) ++row;
    const int64_t from = row;
    while (row < length && !s.given_up && !zero(row)) ++row;
    if (row == from) break;
    if (!any) reset(from, lanes, s.best.value, s.best.token);
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
  for (int64_t l = first; l < last; ++l) sum += static_cast<double>(s.best.value[l]);
  job.scores[pair] = has_tokens ? static_cast<float>(sum) : kEmptyDocumentScore;
  if (job.argmax == nullptr) return;
  int32_t* to = job.argmax + pair * job.problem->max_lq;
  for (int64_t t = 0; t < job.problem->max_lq; ++t) to[t] = -1;
  if (!has_tokens) return;
  for (int64_t l = first; l < last; ++l) to[s.token[l]] = s.best.token[l];
  if (job.maxima == nullptr) return;
  float* maxima = job.maxima + pair * job.problem->max_lq;
  for (int64_t l = first; l < last; ++l) maxima[s.token[l]] = s.best.value[l];
}

template <typename T, bool kArgmax>
void score_task(const ScoreJob& job, const Task& task, Scratch& s) {
  const Problem& p = *job.problem;
  // A document counts as work even without a token: 64 multiply-adds, and one for each number of its argmax.
  const int64_t least = 64 + (job.argmax != nullptr ? p.max_lq : 0);
  for (int64_t i = task.begin; i < task.end && !given_up(least, s); ++i) {
    const int64_t pair = job.order != nullptr ? job.order[i] : 0;
    const int64_t q_begin = job.order != nullptr ? p.pairs[2 * pair] : task.q_begin;
    const int64_t q_end = job.order != nullptr ? q_begin + 1 : task.q_end;
    const int64_t d = job.order != nullptr ? p.pairs[2 * pair + 1] : i;
    pack_queries(p, q_begin, q_end, s);
    const bool has_tokens = document<T, kArgmax>(p, d, s.segment[q_end - q_begin], s);
    if (!has_tokens) s.saw_empty_document = true;
    for (int64_t q = q_begin; q < q_end; ++q) {
      emit(job, job.order != nullptr ? pair : q * p.d.count + d, q - q_begin, has_tokens, s);
    }
  }
}

template <bool kArgmax>
void score_any(const ScoreJob& job, const Task& task, Scratch& s) {
  switch (job.problem->d.dtype) {
    case DType::kFloat32:
      return score_task<float, kArgmax>(job, task, s);
    case DType::kBFloat16:
      return score_task<BFloat16, kArgmax>(job, task, s);
    case DType::kFloat16:
      return score_task<Float16, kArgmax>(job, task, s);
    case DType::kInt8:
      return score_task<int8_t, kArgmax>(job, task, s);
  }
}

// T is the dtype of the other side. grad[owner's row] += grad_score * (the other side's row), pair after pair
// and token after token, so that the order of the additions to one element is fixed.
template <typename T>
void backward_task(const BackwardJob& job, const BackwardTask& task, Scratch& s) {
  const Problem& p = *job.problem;
  const Tokens& other = job.to_queries ? p.d : p.q;
  const int64_t columns = task.column_end - task.column_begin;
  for (int64_t i = task.begin; i < task.end; ++i) {
    const int64_t pair = job.order[i];
    const int64_t q = !p.all_pairs ? p.pairs[2 * pair] : pair / p.d.count;
    const int64_t d = !p.all_pairs ? p.pairs[2 * pair + 1] : pair % p.d.count;
    const float scale = job.grad_scores[pair];
    for (int64_t t = 0; t < p.q.lengths[q]; ++t) {
      // Read once, so that what is checked is what is used, whoever writes to it meanwhile.
      const int64_t j = *static_cast<const volatile int32_t*>(job.argmax + pair * p.max_lq + t);
      if (j < 0 || j >= p.d.lengths[d]) continue;
      const int64_t q_row = p.q.starts[q] + t;
      const int64_t d_row = p.d.starts[d] + j;
      float* to = job.grad + (job.to_queries ? q_row : d_row) * p.dim + task.column_begin;
      const T* from = static_cast<const T*>(other.data) +
                      (job.to_queries ? d_row : q_row) * other.row_stride + task.column_begin;
      const float* values = widened(from, other.scales, d_row, columns, s.float32_rows);
      for (int64_t k = 0; k < columns; ++k) to[k] += scale * values[k];
      if (given_up(columns, s)) return;
    }
  }
}

inline void backward_any(const BackwardJob& job, const BackwardTask& task, Scratch& s) {
  switch (job.to_queries ? job.problem->d.dtype : job.problem->q.dtype) {
    case DType::kFloat32:
      return backward_task<float>(job, task, s);
    case DType::kBFloat16:
      return backward_task<BFloat16>(job, task, s);
    case DType::kFloat16:
      return backward_task<Float16>(job, task, s);
    case DType::kInt8:
      return backward_task<int8_t>(job, task, s);
  }
}

constexpr Tier tier_of(const char* name, const char* (*unsupported)(), const Product* products) {
  return {name,          unsupported, kPanel, Isa::kRows, Narrow::kBytes, &score_any<false>, &score_any<true>,
          &backward_any, products,    &read,  nullptr,    Narrow::kWide};
}

}  // namespace
}  // namespace colbert_fast
