#include "host/backward.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "host/grouped.h"
#include "host/plan.h"
#include "host/run_tasks.h"
#include "host/tiers.h"
#include "host/workspace.h"

namespace colbert_fast {
namespace {

// True if two items of a side share a row, as they may in a PackedTokens made by hand.
bool overlapping(const Tokens& tokens) {
  bool sorted = true;
  for (int64_t i = 1; i < tokens.count && sorted; ++i) {
    sorted = tokens.starts[i] >= tokens.starts[i - 1] + tokens.lengths[i - 1];
  }
  if (sorted) return false;
  std::vector<int64_t> by_start;
  for (int64_t i = 0; i < tokens.count; ++i) {
    if (tokens.lengths[i] > 0) by_start.push_back(i);
  }
  std::sort(by_start.begin(), by_start.end(),
            [&](int64_t a, int64_t b) { return tokens.starts[a] < tokens.starts[b]; });
  for (size_t i = 1; i < by_start.size(); ++i) {
    const int64_t before = by_start[i - 1];
    if (tokens.starts[before] + tokens.lengths[before] > tokens.starts[by_start[i]]) return true;
  }
  return false;
}

// The pairs grouped by the item that owns the rows to be written. Rows that two items share have no single
// owner: then all pairs are one group, and only the columns are divided among the tasks.
Grouped group_by_owner(const Problem& p, bool to_queries) {
  const Tokens& side = to_queries ? p.q : p.d;
  if (overlapping(side)) return group_by(num_pairs(p), 1, [](int64_t) { return int64_t{0}; });
  const int64_t nd = p.d.count;
  const int column = to_queries ? 0 : 1;
  return group_by(num_pairs(p), side.count, [&](int64_t pair) {
    if (!p.all_pairs) return p.pairs[2 * pair + column];
    return to_queries ? pair / nd : pair % nd;
  });
}

// Whole groups, or blocks of columns where there are few groups: no two tasks write the same number.
std::vector<BackwardTask> plan_backward(const Grouped& groups, int64_t dim, int64_t wanted_tasks) {
  constexpr int64_t kLine = 16;  // floats of a cache line
  const int64_t count = static_cast<int64_t>(groups.first.size()) - 1;
  const int64_t column_blocks =
      std::max<int64_t>(1, std::min((dim + kLine - 1) / kLine, wanted_tasks / std::max<int64_t>(count, 1)));
  const int64_t columns = round_up((dim + column_blocks - 1) / column_blocks, kLine);
  const int64_t groups_per_task = std::max<int64_t>(1, count / wanted_tasks);
  std::vector<BackwardTask> tasks;
  for (int64_t g = 0; g < count; g += groups_per_task) {
    const int64_t begin = groups.first[static_cast<size_t>(g)];
    const int64_t end = groups.first[static_cast<size_t>(std::min(count, g + groups_per_task))];
    for (int64_t c = 0; c < dim && begin < end; c += columns) {
      tasks.push_back({begin, end, c, std::min(dim, c + columns)});
    }
  }
  return tasks;
}

}  // namespace

void backward(const Tier& tier, const Problem& p, int threads, bool to_queries, const float* grad_scores,
              const int32_t* argmax, float* grad, Interrupt& interrupt) {
  const int64_t pairs = num_pairs(p);
  if (pairs == 0 || p.dim == 0) return;
  counters(tier).calls.fetch_add(1);
  // Each query token of each pair adds one row, times a number, to another row.
  threads = threads_worth(2.0 * static_cast<double>(pairs) * static_cast<double>(p.max_lq * p.dim), threads);
  const Grouped groups = group_by_owner(p, to_queries);
  const std::vector<BackwardTask> tasks = plan_backward(groups, p.dim, wanted_tasks(threads));
  if (tasks.empty()) return;
  threads = static_cast<int>(std::min<int64_t>(threads, static_cast<int64_t>(tasks.size())));
  Workspace workspace(p, tier, 1, 1, threads, interrupt);
  const BackwardJob job = {&p, to_queries, grad_scores, argmax, groups.order.data(), grad};
  run_tasks(job, tasks, tier.backward, workspace, interrupt);
}

}  // namespace colbert_fast
