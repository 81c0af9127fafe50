// What a tier does with a task. This file is compiled once for each tier, inside the tier's target region,
// and includes no system header. A tier includes it last, after its Isa (tile.h says what that is) and its
// Narrow (screen.h; a tier that multiplies nothing but float32 includes no_narrow.h). tier_of() then makes
// the Tier.
//
// The way of a score, from the outside in:
//   score_any()          chooses the dtype of the documents
//   score_task()         for each document of a task and each query of a block:
//   pack_queries()         packs the query tokens as lanes, once for all documents of a task
//   document_maxima()      finds the maximum of each lane over the rows of the document, by accumulate()
//   write_pair()           writes the score, which sum_of_maxima() adds up
// The gradient is in backward.h, and upper bounds of scores are in upper.h.

#pragma once

#include "per_tier/backward.h"
#include "per_tier/bfloat16.h"
#include "per_tier/ceilings.h"
#include "per_tier/float32.h"
#include "per_tier/screen.h"
#include "per_tier/upper.h"

namespace colbert_fast {
namespace {

template <typename T>
const T* item_rows(const Tokens& tokens, int64_t item) {
  if (tokens.items != nullptr) return static_cast<const T*>(tokens.items[item]);
  return static_cast<const T*>(tokens.data) + tokens.starts[item] * tokens.row_stride;
}

// All rows of a document. The document `next` is the one that the task needs after it, or -1.
template <typename T>
Rows<T> document_rows(const Problem& p, int64_t d, int64_t next) {
  const float* scales = p.d.scales == nullptr ? nullptr : p.d.scales + p.d.starts[d];
  Rows<T> rows = {item_rows<T>(p.d, d), p.d.row_stride, p.dim, p.d.lengths[d], 0, scales, nullptr, 0};
  if (next >= 0) {
    rows.next = item_rows<T>(p.d, next);
    rows.next_count = p.d.lengths[next];
  }
  return rows;
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

// Writes the rows of queries [begin, end) to s.query_rows, as float32. If the problem says that rows of zeros
// are padding, they are left out.
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
      const float* values = widened(row, 1.0f, p.dim, to);
      if (values != to && p.dim > 0) std::memcpy(to, values, static_cast<size_t>(p.dim) * sizeof(float));
      s.token[lanes++] = static_cast<int32_t>(t);
    }
  }
  s.segment[end - begin] = lanes;
}

// Packs the lanes also as the narrow numbers that meet documents of T.
template <typename T>
void pack_narrow([[maybe_unused]] int64_t dim, [[maybe_unused]] int64_t lanes, Scratch& s) {
  if constexpr (multiplies_bfloat16<Narrow, T>() || screens<Narrow, T>())
    prepare_lanes<Narrow, T>(dim, lanes, s);
}

// Puts queries [begin, end) into lanes, unless they are there already.
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
      return pack_narrow<float>(p.dim, lanes, s);
    case DType::kBFloat16:
      return pack_narrow<BFloat16>(p.dim, lanes, s);
    case DType::kFloat16:
      return pack_narrow<Float16>(p.dim, lanes, s);
    case DType::kInt8:
      return pack_narrow<int8_t>(p.dim, lanes, s);
  }
}

// Takes rows into s.best, for all packed lanes, in the fastest way that the tier has for them.
template <typename T, bool kArgmax>
void accumulate(const Rows<T>& rows, int64_t lanes, Scratch& s) {
  if constexpr (multiplies_bfloat16<Narrow, T>()) {
    accumulate_bfloat16<Narrow, kArgmax>(rows, lanes, s);
  } else if constexpr (screens<Narrow, T>()) {
    if (!s.screens) return accumulate_float32<Narrow, T, kArgmax>(rows, 0, lanes, s.best, s);
    by_chunks<Narrow, T>(rows, lanes, s.best, s, [&](const Rows<T>& part, int64_t begin, int64_t end) {
      accumulate_float32<Narrow, T, kArgmax>(part, begin, end, s.best, s);
    });
  } else {
    accumulate_float32<Narrow, T, kArgmax>(rows, 0, lanes, s.best, s);
  }
}

// The product of a row of zeros with a lane is 0, or NaN if the lane holds an infinite number. If no maximum
// is 0 or NaN, rows of zeros have changed nothing.
inline bool zero_rows_may_win(int64_t lanes, const Scratch& s) {
  for (int64_t l = 0; l < lanes; ++l) {
    if (s.best.value[l] == 0.0f || s.best.value[l] != s.best.value[l]) return true;
  }
  return lanes == 0;
}

// Finds the maxima of one document, for all packed lanes, in s.best. Returns false if the document has no
// token. Rows of zeros that are padding count as no tokens.
template <typename T, bool kArgmax>
bool document_maxima(const Problem& p, int64_t d, int64_t next, int64_t lanes, Scratch& s) {
  const Rows<T> rows = document_rows<T>(p, d, next);
  if (rows.count == 0) return false;
  reset(0, lanes, s.best);
  accumulate<T, kArgmax>(rows, lanes, s);
  if (!p.skip_zero_d || !zero_rows_may_win(lanes, s)) return true;

  // Once more, without the rows of zeros.
  const auto zero = [&](int64_t row) { return !given_up(p.dim, s) && is_zero_row(rows.row(row), p.dim); };
  bool any = false;
  for (int64_t row = 0; row < rows.count;) {
    while (row < rows.count && zero(row)) ++row;
    const int64_t from = row;
    while (row < rows.count && !s.given_up && !zero(row)) ++row;
    if (row == from) break;
    if (!any) reset(from, lanes, s.best);
    any = true;
    accumulate<T, kArgmax>(rows.part(from, row - from), lanes, s);
  }
  return any;
}

// The score of a query and a document: the sum of the maxima of the query's lanes [first, last). The
// sum is in double, so its rounding errors are negligible and do not grow with the length of the query.
inline float sum_of_maxima(int64_t first, int64_t last, const Scratch& s) {
  double sum = 0.0;
  for (int64_t l = first; l < last; ++l) sum += static_cast<double>(s.best.value[l]);
  return static_cast<float>(sum);
}

// Writes the score of pair number `pair`, whose query is number `index` of the packed ones, and the winner of
// each query token.
inline void write_pair(const ScoreJob& job, int64_t pair, int64_t index, bool has_tokens, const Scratch& s) {
  const int64_t first = s.segment[index];
  const int64_t last = s.segment[index + 1];
  job.scores[pair] = has_tokens ? sum_of_maxima(first, last, s) : kEmptyDocumentScore;
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
  // A document counts as work even if it has no token: as 64 multiply-adds, and one for each number of its
  // argmax.
  const int64_t least = 64 + (job.argmax != nullptr ? p.max_lq : 0);
  const auto document = [&](int64_t i) { return job.order != nullptr ? p.pairs[2 * job.order[i] + 1] : i; };
  for (int64_t i = task.begin; i < task.end && !given_up(least, s); ++i) {
    const int64_t pair = job.order != nullptr ? job.order[i] : 0;
    const int64_t q_begin = job.order != nullptr ? p.pairs[2 * pair] : task.q_begin;
    const int64_t q_end = job.order != nullptr ? q_begin + 1 : task.q_end;
    const int64_t d = document(i);
    const int64_t next = i + 1 < task.end ? document(i + 1) : -1;
    pack_queries(p, q_begin, q_end, s);
    const bool has_tokens = document_maxima<T, kArgmax>(p, d, next, s.segment[q_end - q_begin], s);
    if (!has_tokens) s.saw_empty_document = true;
    for (int64_t q = q_begin; q < q_end; ++q) {
      write_pair(job, job.order != nullptr ? pair : q * p.d.count + d, q - q_begin, has_tokens, s);
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

// accumulate_float32() for another tier, whose kFloat32 this one is.
template <typename T>
void float32_maxima_of(bool argmax, const AnyRows& any, int64_t begin, int64_t end, const Best& best,
                       Scratch& s) {
  const Rows<T> rows = Rows<T>::of(any);
  if (argmax) return accumulate_float32<Narrow, T, true>(rows, begin, end, best, s);
  accumulate_float32<Narrow, T, false>(rows, begin, end, best, s);
}

inline void float32_maxima_any(DType dtype, bool argmax, const AnyRows& rows, int64_t begin, int64_t end,
                               const Best& best, Scratch& s) {
  switch (dtype) {
    case DType::kFloat32:
      return float32_maxima_of<float>(argmax, rows, begin, end, best, s);
    case DType::kBFloat16:
      return float32_maxima_of<BFloat16>(argmax, rows, begin, end, best, s);
    case DType::kFloat16:
      return float32_maxima_of<Float16>(argmax, rows, begin, end, best, s);
    case DType::kInt8:
      return float32_maxima_of<int8_t>(argmax, rows, begin, end, best, s);
  }
}

// Writes the ceilings of the scores of a task, for all pairs.
template <typename N, typename T>
void ceilings_task(const ScoreJob& job, const Task& task, Scratch& s) {
  const Problem& p = *job.problem;
  pack_queries(p, task.q_begin, task.q_end, s);
  const int64_t lanes = s.segment[task.q_end - task.q_begin];
  if (!s.narrowed) narrow_lanes<N, int8_t, T>(p.dim, lanes, s.screened_queries, s);
  s.narrowed = true;
  for (int64_t d = task.begin; d < task.end && !given_up(64, s); ++d) {
    const Rows<T> rows = document_rows<T>(p, d, d + 1 < task.end ? d + 1 : -1);
    s.saw_empty_document |= rows.count == 0;
    reset(0, lanes, s.best);
    const float norm = raise_document<N>(rows, lanes, s);
    for (int64_t q = task.q_begin; q < task.q_end; ++q) {
      const int64_t i = q - task.q_begin;
      job.scores[q * p.d.count + d] =
          rows.count == 0 ? kEmptyDocumentScore : ceiling(s.segment[i], s.segment[i + 1], norm, s);
    }
  }
}

template <typename N>
void ceilings_any(const ScoreJob& job, const Task& task, Scratch& s) {
  switch (job.problem->d.dtype) {
    case DType::kFloat32:
      return ceilings_task<N, float>(job, task, s);
    case DType::kBFloat16:
      return ceilings_task<N, BFloat16>(job, task, s);
    case DType::kFloat16:
      return ceilings_task<N, Float16>(job, task, s);
    case DType::kInt8:
      return ceilings_task<N, int8_t>(job, task, s);
  }
}

constexpr Tier tier_of(const char* name, const char* (*unsupported)()) {
  Tier tier{};
  tier.name = name;
  tier.unsupported = unsupported;
  tier.panel_lanes = kPanel;
  tier.panel_rows = Isa::kRows;
  tier.narrow_bytes = Narrow::kBytes;
  tier.score = &score_any<false>;
  tier.score_argmax = &score_any<true>;
  if constexpr (Narrow::kCeilings) tier.ceilings = &ceilings_any<Narrow>;
  tier.backward = &backward_any<Narrow>;
  tier.float32_maxima = &float32_maxima_any;
  tier.upper = &upper_task<Narrow>;
  tier.for_float32_queries = Narrow::kForFloat32Queries;
  return tier;
}

}  // namespace
}  // namespace colbert_fast
