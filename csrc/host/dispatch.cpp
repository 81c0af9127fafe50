#include "host/dispatch.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <new>
#include <numeric>
#include <vector>

#include "host/threads.h"
#include "scratch.h"

namespace colbert_fast {

const Tier* const kTiers[] = {&kAmx,      &kAvx512Bf16,  &kAvx512Vnni, &kAvx512,   &kAvxVnni, &kAvx2,
                              &kNeonI8mm, &kNeonDotprod, &kNeon,       &kPortable, nullptr};

namespace {

struct Counters {
  std::atomic<int64_t> calls, chunks_screened;
};

Counters g_counters[sizeof(kTiers) / sizeof(kTiers[0])];

Counters& counters(const Tier& tier) {
  int index = 0;
  while (kTiers[index] != nullptr && kTiers[index] != &tier) ++index;
  return g_counters[index];
}

// A block of queries is packed once and meets every document of a task: 256 KiB leaves most of an L2 cache of
// 1 MiB to the documents.
constexpr int64_t kPackedBytes = 256 * 1024;
// Document rows that meet all panels of a block before the next rows are read: with one panel of 16 KiB they
// fit an L1 cache of 48 KiB.
constexpr int64_t kRowBytes = 18 * 1024;
// Tasks per thread: one that the system holds up keeps an eighth of its share from the others.
constexpr int64_t kTasksPerThread = 8;
// Less work than this is not worth waking a thread for: about 20 us of one core at 100 GFLOP/s.
constexpr double kSerialFlops = 2e6;

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// The most rows of a document that are screened, or copied, together: by whole vectors, or tiles, of them.
int64_t most_rows_together(const Tokens& documents) {
  int64_t most = 1;
  for (int64_t i = 0; i < documents.count && most < kMostChunkRows; ++i)
    most = std::max(most, documents.lengths[i]);
  return round_up(std::min(most, kMostChunkRows), 64);
}

// The memory of all threads, allocated before any of them starts.
class Workspace {
 public:
  Workspace(const Problem& p, const Tier& tier, int64_t lanes, int64_t queries, int threads,
            Interrupt& interrupt)
      : scratch_(static_cast<size_t>(threads)) {
    lanes = round_up(std::max<int64_t>(lanes, 1), tier.panel_lanes);
    const int64_t by_cache = kRowBytes / std::max<int64_t>(1, p.dim * static_cast<int64_t>(sizeof(float)));
    const int64_t block_rows = std::max<int64_t>(1, by_cache / tier.panel_rows) * tier.panel_rows;
    const int64_t chunk = most_rows_together(p.d);
    // Twice: to count the bytes, and to hand them out.
    for (const bool counting : {true, false}) {
      used_ = 0;
      for (Scratch& s : scratch_) {
        s = Scratch();
        s.block_rows = block_rows;
        take(lanes * p.dim, s.query_rows);
        take(lanes * p.dim, s.packed);
        take(lanes, s.best);
        take(lanes, s.arg);
        take(lanes, s.token);
        take(queries + 1, s.segment);
        take(block_rows * std::max<int64_t>(p.dim, 1), s.rows);
        if (tier.narrow_bytes > 0) {
          const int64_t row_floats = std::max<int64_t>(p.dim, 1);
          const int64_t bytes = round_up(2 * row_floats, tier.narrow_bytes);
          for (float** array : {&s.lane_floor, &s.lane_error, &s.lane_slack, &s.lane_step, &s.lane_spread})
            take(lanes, *array);
          take(lanes, s.lane_offset);
          if (p.d.dtype == DType::kBFloat16) {
            take(lanes * bytes, s.direct_packed);
            take(chunk * bytes, s.direct_rows);
            for (float** array : {&s.other_best, &s.again_best}) take(lanes, *array);
            for (int32_t** array : {&s.other_arg, &s.again_arg}) take(lanes, *array);
          }
          if (p.dim <= kMostScreenedDim) {
            take(lanes * bytes, s.screen_packed);
            take(chunk * bytes + kNarrowSlack, s.narrow_rows);
            take(chunk, s.row_scales);
            take(kRowsAtOnce * round_up(row_floats, kMostPadding), s.padded_rows);
            take(chunk * tier.panel_lanes, s.uppers);
            take(chunk, s.picked);
            take(chunk + 1, s.picked_lanes);
            take(kMostCandidates, s.candidates);
            take(tier.panel_lanes * round_up(4 * row_floats, tier.narrow_bytes), s.winners);
          }
        }
      }
      if (counting) memory_.reset(new unsigned char[static_cast<size_t>(used_ + kAlignment)]);
    }
    for (Scratch& s : scratch_) {
      s.call = &interrupt;
      s.interrupted = [](void* call) { return static_cast<const Interrupt*>(call)->heard(); };
    }
    // The worker of this number is the calling thread.
    scratch_[0].interrupted = [](void* call) { return static_cast<Interrupt*>(call)->look(); };
  }

  Scratch& operator[](int thread) { return scratch_[static_cast<size_t>(thread)]; }
  int64_t chunks_screened() const {
    int64_t sum = 0;
    for (const Scratch& s : scratch_) sum += s.chunks_screened;
    return sum;
  }
  bool redone() const {
    return std::any_of(scratch_.begin(), scratch_.end(), [](const Scratch& s) { return s.redone; });
  }
  bool saw_empty_document() const {
    return std::any_of(scratch_.begin(), scratch_.end(),
                       [](const Scratch& s) { return s.saw_empty_document; });
  }

 private:
  // Arrays begin at a cache line of their own, and a line after the one before: no two threads share a line,
  // and arrays of a power of two do not fall on the same addresses modulo 4 KiB.
  static constexpr int64_t kAlignment = 64;

  template <typename T>
  void take(int64_t count, T*& array) {
    // More than any machine has; what is below must not overflow.
    constexpr int64_t kMost = int64_t{1} << 48;
    if (count > kMost / static_cast<int64_t>(sizeof(T)) || used_ > kMost) throw std::bad_alloc();
    if (memory_ != nullptr) {
      const int64_t past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(memory_.get()) % kAlignment);
      array = reinterpret_cast<T*>(memory_.get() + (kAlignment - past) + used_);
    }
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), kAlignment) + kAlignment;
  }

  std::vector<Scratch> scratch_;
  std::unique_ptr<unsigned char[]> memory_;
  int64_t used_ = 0;
};

// The numbers 0 .. count-1 sorted by key, those of one key in ascending order.
struct Grouped {
  std::vector<int64_t> order;
  std::vector<int64_t> first;  // group g is order[first[g] .. first[g + 1])
};

template <typename Key>
Grouped group_by(int64_t count, int64_t groups, Key key) {
  Grouped result;
  result.order.resize(static_cast<size_t>(count));
  result.first.assign(static_cast<size_t>(groups + 1), 0);
  for (int64_t i = 0; i < count; ++i) ++result.first[static_cast<size_t>(key(i) + 1)];
  std::partial_sum(result.first.begin(), result.first.end(), result.first.begin());
  std::vector<int64_t> next(result.first.begin(), result.first.end() - 1);
  for (int64_t i = 0; i < count; ++i) {
    result.order[static_cast<size_t>(next[static_cast<size_t>(key(i))]++)] = i;
  }
  return result;
}

double total_length(const Tokens& tokens) {
  double total = 0.0;
  for (int64_t i = 0; i < tokens.count; ++i) total += static_cast<double>(tokens.lengths[i]);
  return total;
}

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

struct Plan {
  std::vector<Task> tasks;
  std::vector<int64_t> order;
  int64_t lanes = 0;    // the most query tokens packed together
  int64_t queries = 0;  // and of how many queries
};

// Blocks of whole queries, and ranges of documents. Tasks of one block follow one another, so that a thread
// keeps what it has packed. How it is cut does not change any score.
void plan_all_pairs(const Problem& p, int64_t wanted_tasks, Plan& plan) {
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
}

// Pairs sorted by query: a query is packed once for all of its documents in a task.
void plan_pair_list(const Problem& p, int64_t wanted_tasks, Plan& plan) {
  plan.order = group_by(p.num_pairs, p.q.count, [&](int64_t i) { return p.pairs[2 * i]; }).order;
  for (int64_t q = 0; q < p.q.count; ++q) plan.lanes = std::max(plan.lanes, p.q.lengths[q]);
  plan.queries = 1;
  const int64_t tasks = std::min(p.num_pairs, wanted_tasks);
  for (int64_t u = 0; u < tasks; ++u) {
    plan.tasks.push_back({0, 0, p.num_pairs * u / tasks, p.num_pairs * (u + 1) / tasks});
  }
}

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

int64_t pairs_of(const Problem& p) { return p.all_pairs ? p.q.count * p.d.count : p.num_pairs; }

// What a run met.
struct Met {
  bool empty_document;
  bool redone;
};

Met run(const Tier& tier, const Problem& p, const Plan& plan, int threads, float* scores, int32_t* argmax,
        float* maxima, Interrupt& interrupt) {
  threads = static_cast<int>(std::min<int64_t>(threads, static_cast<int64_t>(plan.tasks.size())));
  Workspace workspace(p, tier, plan.lanes, plan.queries, threads, interrupt);

  struct Context {
    ScoreJob job;
    const Plan* plan;
    Workspace* workspace;
    void (*run)(const ScoreJob&, const Task&, Scratch&);
  } context = {{&p, p.all_pairs ? nullptr : plan.order.data(), scores, argmax, maxima},
               &plan,
               &workspace,
               argmax != nullptr ? tier.score_argmax : tier.score};
  const auto task = [](void* opaque, int64_t number, int worker) {
    const Context& c = *static_cast<Context*>(opaque);
    c.run(c.job, c.plan->tasks[static_cast<size_t>(number)], (*c.workspace)[worker]);
  };
  parallel_for(static_cast<int64_t>(plan.tasks.size()), threads, task, &context, interrupt);
  counters(tier).chunks_screened.fetch_add(workspace.chunks_screened());
  return {workspace.saw_empty_document(), workspace.redone()};
}

// Documents cut into parts that are scored like documents, for calls with fewer documents than threads.
struct Parts {
  std::vector<int64_t> starts, lengths;
  std::vector<const void*> items;
  std::vector<int64_t> first_row;  // [parts] number of the part's first row within its document
  std::vector<int64_t> pairs;      // [part pairs][2] of (query, part)
  std::vector<int64_t>
      first_pair;  // pair i of the problem is the part pairs first_pair[i] .. first_pair[i + 1]
};

Parts cut_documents(const Problem& p, int64_t parts_wanted) {
  constexpr int64_t kLeastRows = 256;
  const int64_t element = p.d.dtype == DType::kFloat32 ? 4 : p.d.dtype == DType::kInt8 ? 1 : 2;
  Parts cut;
  std::vector<int64_t> first_part;
  for (int64_t d = 0; d < p.d.count; ++d) {
    first_part.push_back(static_cast<int64_t>(cut.lengths.size()));
    const int64_t length = p.d.lengths[d];
    const int64_t parts = std::max<int64_t>(1, std::min(parts_wanted, length / kLeastRows));
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t begin = length * part / parts;
      cut.first_row.push_back(begin);
      cut.lengths.push_back(length * (part + 1) / parts - begin);
      cut.starts.push_back(p.d.items != nullptr ? 0 : p.d.starts[d] + begin);
      if (p.d.items != nullptr) {
        cut.items.push_back(static_cast<const char*>(p.d.items[d]) + begin * p.d.row_stride * element);
      }
    }
  }
  first_part.push_back(static_cast<int64_t>(cut.lengths.size()));
  const auto pairs_so_far = [&] { return static_cast<int64_t>(cut.pairs.size()) / 2; };
  for (int64_t pair = 0; pair < pairs_of(p); ++pair) {
    cut.first_pair.push_back(pairs_so_far());
    const int64_t q = p.all_pairs ? pair / p.d.count : p.pairs[2 * pair];
    const size_t d = static_cast<size_t>(p.all_pairs ? pair % p.d.count : p.pairs[2 * pair + 1]);
    for (int64_t part = first_part[d]; part < first_part[d + 1]; ++part) {
      cut.pairs.push_back(q);
      cut.pairs.push_back(part);
    }
  }
  cut.first_pair.push_back(pairs_so_far());
  return cut;
}

// The scores of the parts, [part pairs], and of each query token in each, [part pairs][max_lq].
struct PartScores {
  std::vector<float> scores, maxima;
  std::vector<int32_t> argmax;
};

// A token's maximum is that of its maxima in the parts. The sums are those of emit() in loop.h, to the last
// bit. True if a document has no token.
bool join_parts(const Problem& p, const Parts& cut, const PartScores& in, float* scores, int32_t* argmax) {
  bool saw_empty_document = false;
  for (int64_t pair = 0; pair < pairs_of(p); ++pair) {
    const int64_t begin = cut.first_pair[static_cast<size_t>(pair)];
    const int64_t end = cut.first_pair[static_cast<size_t>(pair + 1)];
    // A query without tokens has no winners, but a score.
    bool has_tokens = false;
    for (int64_t i = begin; i < end; ++i) {
      has_tokens |= in.scores[static_cast<size_t>(i)] != kEmptyDocumentScore;
    }
    double sum = 0.0;
    for (int64_t t = 0; t < p.max_lq; ++t) {
      float best = 0.0f;
      int64_t winner = -1;
      for (int64_t i = begin; i < end; ++i) {
        const size_t at = static_cast<size_t>(i * p.max_lq + t);
        if (in.argmax[at] < 0) continue;
        // The first part that has the token, a larger number, or the first NaN.
        if (winner >= 0 && (in.maxima[at] <= best || best != best)) continue;
        const int64_t part = cut.pairs[static_cast<size_t>(2 * i + 1)];
        best = in.maxima[at];
        winner = cut.first_row[static_cast<size_t>(part)] + in.argmax[at];
      }
      sum += static_cast<double>(best);
      has_tokens |= winner >= 0;
      if (argmax != nullptr) argmax[pair * p.max_lq + t] = static_cast<int32_t>(winner);
    }
    scores[pair] = has_tokens ? static_cast<float>(sum) : kEmptyDocumentScore;
    saw_empty_document |= !has_tokens;
  }
  return saw_empty_document;
}

// Which lanes of bfloat16 are done again in float32 is up to the whole document: if any is, it is not cut.
bool score_in_parts(const Tier& tier, const Problem& p, const Plan& uncut, int64_t wanted_tasks, int threads,
                    float* scores, int32_t* argmax, Interrupt& interrupt) {
  const int64_t pairs = pairs_of(p);
  const Parts cut = cut_documents(p, (wanted_tasks + pairs - 1) / pairs);
  Problem parts = p;
  parts.d.starts = cut.starts.data();
  parts.d.lengths = cut.lengths.data();
  parts.d.count = static_cast<int64_t>(cut.lengths.size());
  parts.d.items = cut.items.empty() ? nullptr : cut.items.data();
  parts.all_pairs = false;
  parts.pairs = cut.pairs.data();
  parts.num_pairs = cut.first_pair.back();

  const size_t tokens = static_cast<size_t>(parts.num_pairs * p.max_lq);
  PartScores of_parts = {std::vector<float>(static_cast<size_t>(parts.num_pairs)), std::vector<float>(tokens),
                         std::vector<int32_t>(tokens)};
  Plan plan;
  plan_pair_list(parts, parts.num_pairs, plan);
  const Met met = run(tier, parts, plan, threads, of_parts.scores.data(), of_parts.argmax.data(),
                      of_parts.maxima.data(), interrupt);
  if (interrupt.heard()) return false;
  if (met.redone) return run(tier, p, uncut, threads, scores, argmax, nullptr, interrupt).empty_document;
  return join_parts(p, cut, of_parts, scores, argmax);
}

}  // namespace

const char* refused(const Tier& tier) {
  if (const char* reason = tier.unsupported()) return reason;
  return tier.refused == nullptr ? nullptr : tier.refused();
}

int64_t calls(const Tier& tier) { return counters(tier).calls.load(); }

int64_t chunks_screened(const Tier& tier) { return counters(tier).chunks_screened.load(); }

bool score(const Tier& tier, const Problem& p, int threads, float* scores, int32_t* argmax,
           Interrupt& interrupt) {
  const int64_t pairs = pairs_of(p);
  if (pairs == 0) return false;
  if (tier.wide != nullptr && p.d.dtype == DType::kBFloat16 && p.q.dtype != DType::kBFloat16)
    return score(*tier.wide, p, threads, scores, argmax, interrupt);
  counters(tier).calls.fetch_add(1);
  if (flops(p) < kSerialFlops) threads = 1;
  const int64_t wanted_tasks = threads == 1 ? 1 : threads * kTasksPerThread;
  Plan plan;
  if (p.all_pairs) {
    plan_all_pairs(p, wanted_tasks, plan);
  } else {
    plan_pair_list(p, wanted_tasks, plan);
  }
  if (static_cast<int64_t>(plan.tasks.size()) < threads)
    return score_in_parts(tier, p, plan, wanted_tasks, threads, scores, argmax, interrupt);
  return run(tier, p, plan, threads, scores, argmax, nullptr, interrupt).empty_document;
}

void backward(const Tier& tier, const Problem& p, int threads, bool to_queries, const float* grad_scores,
              const int32_t* argmax, float* grad, Interrupt& interrupt) {
  const int64_t pairs = pairs_of(p);
  if (pairs == 0 || p.dim == 0) return;
  counters(tier).calls.fetch_add(1);
  const Tokens& side = to_queries ? p.q : p.d;
  const int64_t nd = p.d.count;
  const int column = to_queries ? 0 : 1;
  const auto owner = [&](int64_t pair) {
    if (!p.all_pairs) return p.pairs[2 * pair + column];
    return to_queries ? pair / nd : pair % nd;
  };
  // Rows shared by two items have no single owner: then all pairs are one group, and only the columns are
  // divided.
  Grouped groups = overlapping(side) ? group_by(pairs, 1, [](int64_t) { return int64_t{0}; })
                                     : group_by(pairs, side.count, owner);
  const int64_t count = static_cast<int64_t>(groups.first.size()) - 1;

  const double axpy_flops = 2.0 * static_cast<double>(pairs) * static_cast<double>(p.max_lq * p.dim);
  if (axpy_flops < kSerialFlops) threads = 1;
  const int64_t wanted_tasks = threads == 1 ? 1 : threads * kTasksPerThread;
  constexpr int64_t kLine = 16;  // floats
  const int64_t column_blocks =
      std::max<int64_t>(1, std::min((p.dim + kLine - 1) / kLine, wanted_tasks / std::max<int64_t>(count, 1)));
  const int64_t columns = round_up((p.dim + column_blocks - 1) / column_blocks, kLine);
  const int64_t groups_per_task = std::max<int64_t>(1, count / wanted_tasks);
  std::vector<BackwardTask> tasks;
  for (int64_t g = 0; g < count; g += groups_per_task) {
    const int64_t begin = groups.first[static_cast<size_t>(g)];
    const int64_t end = groups.first[static_cast<size_t>(std::min(count, g + groups_per_task))];
    for (int64_t c = 0; c < p.dim && begin < end; c += columns) {
      tasks.push_back({begin, end, c, std::min(p.dim, c + columns)});
    }
  }
  if (tasks.empty()) return;
  threads = static_cast<int>(std::min<int64_t>(threads, static_cast<int64_t>(tasks.size())));
  Workspace workspace(p, tier, 1, 1, threads, interrupt);

  struct Context {
    BackwardJob job;
    const BackwardTask* tasks;
    Workspace* workspace;
    void (*run)(const BackwardJob&, const BackwardTask&, Scratch&);
  } context = {{&p, to_queries, grad_scores, argmax, groups.order.data(), grad},
               tasks.data(),
               &workspace,
               tier.backward};
  const auto run = [](void* opaque, int64_t task, int worker) {
    const Context& c = *static_cast<Context*>(opaque);
    c.run(c.job, c.tasks[task], (*c.workspace)[worker]);
  };
  parallel_for(static_cast<int64_t>(tasks.size()), threads, run, &context, interrupt);
}

}  // namespace colbert_fast
