#include "host/best.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "host/dispatch.h"
#include "host/plan.h"
#include "host/tiers.h"

namespace colbert_fast {
namespace {

// Of fewer documents all are scored: to leave some out would take longer than it saves. _topk.py has this
// number too.
constexpr int64_t kLeastDocuments = 256;
// So many queries, and so many documents or one of kPart, from everywhere in the batches, are tried first.
constexpr int64_t kSample = 8;
constexpr int64_t kPart = 64;

struct Scored {
  float score;
  int64_t number;
};

// The order of torch.sort: NaN first, and of equal scores the lower number.
bool better(const Scored& a, const Scored& b) {
  const bool a_nan = a.score != a.score;
  const bool b_nan = b.score != b.score;
  if (a_nan != b_nan) return a_nan;
  if (a_nan || a.score == b.score) return a.number < b.number;
  return a.score > b.score;
}

// About `count` items of one side.
struct Few {
  Few(const Tokens& all, int64_t count) : tokens(all) {
    for (int64_t i = 0; i < all.count; i += (all.count + count - 1) / count) {
      lengths.push_back(all.lengths[i]);
      if (all.items != nullptr) {
        items.push_back(all.items[i]);
      } else {
        starts.push_back(all.starts[i]);
      }
    }
    tokens.count = static_cast<int64_t>(lengths.size());
    tokens.starts = starts.data();
    tokens.lengths = lengths.data();
    if (all.items != nullptr) tokens.items = items.data();
  }
  Few(const Few&) = delete;
  Few& operator=(const Few&) = delete;

  std::vector<int64_t> starts, lengths;
  std::vector<const void*> items;
  Tokens tokens;
};

// A list of pairs that is scored in one call, and which of the pairs belong to which query.
struct Listed {
  std::vector<int64_t> pairs;  // [pairs][2]
  std::vector<float> scores;
  std::vector<size_t> first;  // query q has the pairs first[q] .. first[q + 1]

  void add(int64_t q, int64_t d) { pairs.insert(pairs.end(), {q, d}); }
  void end_query() { first.push_back(pairs.size() / 2); }
  bool score_all(const Tier& tier, const Problem& whole, int threads, Interrupt& interrupt) {
    Problem p = whole;
    p.all_pairs = false;
    p.pairs = pairs.data();
    p.num_pairs = static_cast<int64_t>(pairs.size() / 2);
    scores.resize(pairs.size() / 2);
    return score(tier, p, threads, scores.data(), nullptr, interrupt);
  }
  void take(int64_t q, std::vector<Scored>& into) const {
    for (size_t i = first[static_cast<size_t>(q)]; i < first[static_cast<size_t>(q + 1)]; ++i)
      into.push_back({scores[i], pairs[2 * i + 1]});
  }
};

// Lists the k documents of every query with the highest ceilings. Infinite ones come last, because they say
// nothing: a bad score would make a low bar.
Listed highest(const Problem& p, const float* most, int64_t k) {
  Listed listed;
  listed.end_query();
  std::vector<int64_t> order(static_cast<size_t>(p.d.count));
  for (int64_t q = 0; q < p.q.count; ++q) {
    const float* row = most + q * p.d.count;
    const auto finite = [&](int64_t d) {
      const float none = std::numeric_limits<float>::infinity();
      return row[d] == none ? -none : row[d];
    };
    std::iota(order.begin(), order.end(), int64_t{0});
    std::nth_element(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(k), order.end(),
                     [&](int64_t a, int64_t b) { return finite(a) > finite(b); });
    for (int64_t i = 0; i < k; ++i) listed.add(q, order[static_cast<size_t>(i)]);
    listed.end_query();
  }
  return listed;
}

// Lists all other documents whose ceilings are not below the bar of their query.
Listed not_below_the_bar(const Problem& p, const float* most, const Listed& scored) {
  Listed listed;
  listed.end_query();
  std::vector<Scored> of_query;
  std::vector<bool> is_scored(static_cast<size_t>(p.d.count));
  for (int64_t q = 0; q < p.q.count; ++q) {
    const float* row = most + q * p.d.count;
    of_query.clear();
    scored.take(q, of_query);
    const float bar = std::max_element(of_query.begin(), of_query.end(), better)->score;  // the worst
    for (const Scored& s : of_query) is_scored[static_cast<size_t>(s.number)] = true;
    for (int64_t d = 0; d < p.d.count; ++d) {
      // A bar of NaN is the best of all scores, and leaves nothing out.
      if (!(row[d] < bar) && !is_scored[static_cast<size_t>(d)]) listed.add(q, d);
    }
    for (const Scored& s : of_query) is_scored[static_cast<size_t>(s.number)] = false;
    listed.end_query();
  }
  return listed;
}

// Whether ceilings are likely to leave out most documents. A few documents are tried: at most half of their
// ceilings may be above their best score.
bool leaves_out(const Tier& tier, const Problem& p, int threads, Interrupt& interrupt) {
  const Few q(p.q, kSample);
  const Few d(p.d, std::max(kSample, p.d.count / kPart));
  Problem few = p;
  few.q = q.tokens;
  few.d = d.tokens;
  const size_t pairs = q.lengths.size() * d.lengths.size();
  std::vector<float> most(pairs);
  ceilings(tier, few, threads, most.data(), interrupt);
  // The document with the best score nearly always has a high ceiling.
  Listed listed = highest(few, most.data(), std::min(kSample, few.d.count));
  listed.score_all(tier, few, threads, interrupt);
  size_t above = 0;
  std::vector<Scored> of_query;
  for (int64_t i = 0; i < few.q.count; ++i) {
    of_query.clear();
    listed.take(i, of_query);
    const float top = std::min_element(of_query.begin(), of_query.end(), better)->score;
    const float* row = most.data() + i * few.d.count;
    above += static_cast<size_t>(std::count_if(row, row + few.d.count, [top](float m) { return m >= top; }));
  }
  return 2 * above <= pairs;
}

}  // namespace

bool best(const Tier& tier, const Problem& p, int threads, const BestJob& job, Interrupt& interrupt) {
  const std::unique_ptr<float[]> numbers(new float[static_cast<size_t>(num_pairs(p))]);
  const bool by_ceilings = p.q.count > 0 && p.d.count >= kLeastDocuments && has_ceilings(tier, p) &&
                           leaves_out(tier, p, threads, interrupt);
  if (interrupt.heard()) return false;
  bool empty_document = by_ceilings ? ceilings(tier, p, threads, numbers.get(), interrupt)
                                    : score(tier, p, threads, numbers.get(), nullptr, interrupt);
  if (interrupt.heard()) return false;
  Listed first;
  Listed rest;
  if (by_ceilings) {
    first = highest(p, numbers.get(), job.k);
    empty_document |= first.score_all(tier, p, threads, interrupt);
    if (interrupt.heard()) return false;
    rest = not_below_the_bar(p, numbers.get(), first);
    empty_document |= rest.score_all(tier, p, threads, interrupt);
    counters(tier).left_out.fetch_add(num_pairs(p) -
                                      static_cast<int64_t>(first.scores.size() + rest.scores.size()));
  }
  std::vector<Scored> of_query;
  for (int64_t q = 0; q < p.q.count; ++q) {
    of_query.clear();
    if (by_ceilings) {
      first.take(q, of_query);
      rest.take(q, of_query);
    } else {
      for (int64_t d = 0; d < p.d.count; ++d)
        of_query.push_back({numbers[static_cast<size_t>(q * p.d.count + d)], d});
    }
    std::partial_sort(of_query.begin(), of_query.begin() + static_cast<std::ptrdiff_t>(job.k), of_query.end(),
                      better);
    for (int64_t i = 0; i < job.k; ++i) {
      job.scores[q * job.k + i] = of_query[static_cast<size_t>(i)].score;
      job.numbers[q * job.k + i] = of_query[static_cast<size_t>(i)].number;
    }
  }
  return empty_document;
}

}  // namespace colbert_fast
