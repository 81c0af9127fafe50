#include "host/dispatch.h"

#include <algorithm>

#include "host/parts.h"
#include "host/plan.h"
#include "host/run_tasks.h"
#include "host/tiers.h"
#include "host/workspace.h"
#include "scratch.h"

namespace colbert_fast {
namespace {

// What the threads have seen in a run.
struct Seen {
  bool empty_document;
  bool rescored;
};

using Kernel = void (*)(const ScoreJob&, const Task&, Scratch&);

Seen run(const Tier& tier, Kernel kernel, const Problem& p, const Plan& plan, int threads, float* scores,
         int32_t* argmax, float* maxima, Interrupt& interrupt) {
  threads = static_cast<int>(std::min<int64_t>(threads, static_cast<int64_t>(plan.tasks.size())));
  Workspace workspace(p, tier, plan.lanes, plan.queries, threads, interrupt);
  const ScoreJob job = {&p, p.all_pairs ? nullptr : plan.order.data(), scores, argmax, maxima};
  run_tasks(job, plan.tasks, kernel, workspace, interrupt);
  counters(tier).chunks_screened.fetch_add(workspace.chunks_screened());
  return {workspace.saw_empty_document(), workspace.rescored()};
}

// Which lanes of bfloat16 are computed again in float32 depends on the whole document. So a document whose
// parts had such lanes is scored again uncut.
bool score_in_parts(const Tier& tier, const Problem& p, const Plan& uncut, int64_t wanted_tasks, int threads,
                    float* scores, int32_t* argmax, Interrupt& interrupt) {
  const int64_t pairs = num_pairs(p);
  const Parts cut = cut_documents(p, (wanted_tasks + pairs - 1) / pairs);
  const Problem parts = cut.problem(p);
  PartScores of_parts(parts.num_pairs, p.max_lq);
  const Plan plan = plan_pair_list(parts, parts.num_pairs);
  const Seen seen = run(tier, tier.score_argmax, parts, plan, threads, of_parts.scores.data(),
                        of_parts.argmax.data(), of_parts.maxima.data(), interrupt);
  if (interrupt.heard()) return false;
  if (seen.rescored) {
    const Kernel kernel = argmax != nullptr ? tier.score_argmax : tier.score;
    return run(tier, kernel, p, uncut, threads, scores, argmax, nullptr, interrupt).empty_document;
  }
  return join_parts(p, cut, of_parts, scores, argmax);
}

}  // namespace

bool score(const Tier& tier, const Problem& p, int threads, float* scores, int32_t* argmax,
           Interrupt& interrupt) {
  if (num_pairs(p) == 0) return false;
  if (tier.for_float32_queries != nullptr && p.d.dtype == DType::kBFloat16 && p.q.dtype != DType::kBFloat16)
    return score(*tier.for_float32_queries, p, threads, scores, argmax, interrupt);
  counters(tier).calls.fetch_add(1);
  threads = threads_worth(flops(p), threads);
  const int64_t wanted = wanted_tasks(threads);
  const Plan plan = p.all_pairs ? plan_all_pairs(p, wanted) : plan_pair_list(p, wanted);
  if (static_cast<int64_t>(plan.tasks.size()) < threads)
    return score_in_parts(tier, p, plan, wanted, threads, scores, argmax, interrupt);
  const Kernel kernel = argmax != nullptr ? tier.score_argmax : tier.score;
  return run(tier, kernel, p, plan, threads, scores, argmax, nullptr, interrupt).empty_document;
}

bool has_ceilings(const Tier& tier, const Problem& p) {
  return tier.ceilings != nullptr && p.all_pairs && p.dim > 0 && p.dim <= kMostScreenedDim;
}

bool ceilings(const Tier& tier, const Problem& p, int threads, float* most, Interrupt& interrupt) {
  if (num_pairs(p) == 0) return false;
  threads = threads_worth(flops(p), threads);
  const Plan plan = plan_all_pairs(p, wanted_tasks(threads));
  return run(tier, tier.ceilings, p, plan, threads, most, nullptr, nullptr, interrupt).empty_document;
}

}  // namespace colbert_fast
