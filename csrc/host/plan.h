// How a problem is cut into tasks. How it is cut does not change any score.
#pragma once

#include <cstdint>
#include <vector>

#include "maxsim.h"

namespace colbert_fast {

struct Plan {
  std::vector<Task> tasks;
  std::vector<int64_t> order;  // the pair numbers sorted by query; empty for all pairs
  int64_t lanes = 0;           // the most query tokens that are packed together
  int64_t queries = 0;         // the most queries that are packed together
};

// Cuts the queries into blocks and the documents into ranges: every block against every range is a task.
Plan plan_all_pairs(const Problem& problem, int64_t wanted_tasks);

// Sorts the listed pairs by query, and cuts the sorted list. A task packs each of its queries once.
Plan plan_pair_list(const Problem& problem, int64_t wanted_tasks);

// The number of pairs that are scored.
int64_t num_pairs(const Problem& problem);

// The floating-point operations of all products of query tokens and document tokens.
double flops(const Problem& problem);

// The number of threads that so much work is worth, at most `threads`.
int threads_worth(double flops, int threads);

// The number of tasks to cut work into for so many threads.
int64_t wanted_tasks(int threads);

}  // namespace colbert_fast
