// The best documents of every query, without the scores of documents that cannot be among them.
//
// Ceilings (per_tier/ceilings.h) are computed for all documents. The k documents of a query with the highest
// ceilings are scored, and the least of these scores is the bar. A document whose ceiling is below the bar is
// worse than k others. All others are scored. How many are left out changes no result. If the tier has no
// ceilings, or if there are few documents, or if few are likely to be left out, all documents are scored.
#pragma once

#include <cstdint>

#include "host/threads.h"
#include "maxsim.h"

namespace colbert_fast {

struct BestJob {
  int64_t k;
  float* scores;     // [queries][k], the best first; NaN before all others
  int64_t* numbers;  // [queries][k], of the documents; of equal scores the lower number comes first
};

// The problem must be of all pairs, of k documents or more. Otherwise as score().
bool best(const Tier& tier, const Problem& problem, int threads, const BestJob& job, Interrupt& interrupt);

}  // namespace colbert_fast
