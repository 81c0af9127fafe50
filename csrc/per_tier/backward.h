// The gradient of scores. This file is compiled once for each tier, inside the tier's target region, and
// includes no system header. loop.h includes it.

#pragma once

#include "per_tier/rows.h"

namespace colbert_fast {
namespace {

// Adds grad_score * (a row of the other side) to the gradient of a row, for every pair and every token of its
// query. T is the dtype of the other side. Pairs and tokens are taken in order, so the order of the additions
// to one number is fixed.
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
      // Read once: another thread may write to argmax meanwhile, and the number that is checked must be the
      // number that is used.
      const int64_t j = *static_cast<const volatile int32_t*>(job.argmax + pair * p.max_lq + t);
      if (j < 0 || j >= p.d.lengths[d]) continue;
      const int64_t q_row = p.q.starts[q] + t;
      const int64_t d_row = p.d.starts[d] + j;
      float* to = job.grad + (job.to_queries ? q_row : d_row) * p.dim + task.column_begin;
      const T* from = static_cast<const T*>(other.data) +
                      (job.to_queries ? d_row : q_row) * other.row_stride + task.column_begin;
      const float row_scale = std::is_same<T, int8_t>::value ? other.scales[d_row] : 1.0f;
      const float* values = widened(from, row_scale, columns, s.float32_rows);
      for (int64_t k = 0; k < columns; ++k) to[k] += scale * values[k];
      if (given_up(columns, s)) return;
    }
  }
}

template <typename N>
void backward_any(const BackwardJob& job, const BackwardTask& task, Scratch& s) {
  if constexpr (N::kLeavesFloat32) return N::kFloat32->backward(job, task, s);
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

}  // namespace
}  // namespace colbert_fast
