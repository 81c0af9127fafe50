#include "host/plan.h"

#include <algorithm>
#include <cstddef>

#include "host/grouped.h"

namespace colbert_fast {
namespace {

// A block of queries is packed once and meets every document of a task. 256 KiB of packed queries leave most
// of an L2 cache of 1 MiB to the documents.
constexpr int64_t kPackedBytes = 256 * 1024;
// Tasks for each thread. If the system holds one thread up in the middle of a task, the other threads do the
// rest of its tasks. With 8 tasks a caller waits longer for the last one, and it gains nothing by so few.
constexpr int64_t kTasksPerThread = 32;
// Less work than this is not worth waking a thread for. It takes one core about 20 us at 100 GFLOP/s.
constexpr double kSerialFlops = 2e6;

double total_length(const Tokens& tokens) {
  double total = 0.0;
  for (int64_t i = 0; i < tokens.count; ++i) total += static_cast<double>(tokens.lengths[i]);
  return total;
}

}  // namespace

// The tasks of one block follow one another, so that a thread keeps the queries that it has packed.
Plan plan_all_pairs(const Problem& p, int64_t wanted_tasks) {
  Plan plan;
  const int64_t lane_bytes = std::max<int64_t>(1, p.dim * static_cast<int64_t>(sizeof(float)));
  const int64_t lane_budget = std::max<int64_t>(1, kPackedBytes / lane_bytes);
  std::vector<int64_t> cuts = {0};
  int64_t lanes = 0;
  for (int64_t q = 0; q < p.q.count; ++q) {
    if (lanes > 0 && lanes + p.q.lengths[q] > lane_budget) {
      cuts.push_back(q);
      lanes = 0;
    }
    lanes += p.q.lengths[q];
    plan.lanes = std::max(plan.lanes, lanes);
    plan.queries = std::max(plan.queries, q + 1 - cuts.back());
  }
  cuts.push_back(p.q.count);
  const int64_t blocks = static_cast<int64_t>(cuts.size()) - 1;
  const int64_t ranges = std::min(p.d.count, std::max<int64_t>(1, wanted_tasks / blocks));
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t r = 0; r < ranges; ++r) {
      plan.tasks.push_back({cuts[static_cast<size_t>(b)], cuts[static_cast<size_t>(b + 1)],
                            p.d.count * r / ranges, p.d.count * (r + 1) / ranges});
    }
  }
  return plan;
}

Plan plan_pair_list(const Problem& p, int64_t wanted_tasks) {
  Plan plan;
  plan.order = group_by(p.num_pairs, p.q.count, [&](int64_t i) { return p.pairs[2 * i]; }).order;
  for (int64_t q = 0; q < p.q.count; ++q) plan.lanes = std::max(plan.lanes, p.q.lengths[q]);
  plan.queries = 1;
  const int64_t tasks = std::min(p.num_pairs, wanted_tasks);
  for (int64_t t = 0; t < tasks; ++t) {
    plan.tasks.push_back({0, 0, p.num_pairs * t / tasks, p.num_pairs * (t + 1) / tasks});
  }
  return plan;
}

int64_t num_pairs(const Problem& p) { return p.all_pairs ? p.q.count * p.d.count : p.num_pairs; }

double flops(const Problem& p) {
  double products = 0.0;
  if (p.all_pairs) {
    products = total_length(p.q) * total_length(p.d);
  } else {
    for (int64_t i = 0; i < p.num_pairs; ++i) {
      products += static_cast<double>(p.q.lengths[p.pairs[2 * i]]) *
                  static_cast<double>(p.d.lengths[p.pairs[2 * i + 1]]);
    }
  }
  return 2.0 * products * static_cast<double>(p.dim);
}

int threads_worth(double flops, int threads) { return flops < kSerialFlops ? 1 : threads; }

int64_t wanted_tasks(int threads) { return threads == 1 ? 1 : threads * kTasksPerThread; }

}  // namespace colbert_fast
