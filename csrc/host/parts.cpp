#include "host/parts.h"

#include <algorithm>
#include <cstddef>

#include "host/plan.h"

namespace colbert_fast {
namespace {

// No part has fewer rows, unless its document has fewer.
constexpr int64_t kLeastRows = 256;

// Fills everything but the pairs. Returns the number of the first part of each document, and the number of
// parts at the end.
std::vector<int64_t> cut_rows(const Problem& p, int64_t parts_wanted, Parts& cut) {
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
        const int64_t row_bytes = p.d.row_stride * bytes_of(p.d.dtype);
        cut.items.push_back(static_cast<const char*>(p.d.items[d]) + begin * row_bytes);
      }
    }
  }
  first_part.push_back(static_cast<int64_t>(cut.lengths.size()));
  return first_part;
}

}  // namespace

Problem Parts::problem(const Problem& whole) const {
  Problem parts = whole;
  parts.d.starts = starts.data();
  parts.d.lengths = lengths.data();
  parts.d.count = static_cast<int64_t>(lengths.size());
  parts.d.items = items.empty() ? nullptr : items.data();
  parts.all_pairs = false;
  parts.pairs = pairs.data();
  parts.num_pairs = first_pair.back();
  return parts;
}

PartScores::PartScores(int64_t part_pairs, int64_t max_lq)
    : scores(static_cast<size_t>(part_pairs)),
      maxima(static_cast<size_t>(part_pairs * max_lq)),
      argmax(static_cast<size_t>(part_pairs * max_lq)) {}

Parts cut_documents(const Problem& p, int64_t parts_wanted) {
  Parts cut;
  const std::vector<int64_t> first_part = cut_rows(p, parts_wanted, cut);
  const auto pairs_so_far = [&] { return static_cast<int64_t>(cut.pairs.size()) / 2; };
  const int64_t pairs = num_pairs(p);
  for (int64_t pair = 0; pair < pairs; ++pair) {
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

// The maximum of a query token is the largest of its maxima in the parts. The sum is the same as the sum of
// sum_of_maxima() in per_tier/loop.h, to the last bit.
bool join_parts(const Problem& p, const Parts& cut, const PartScores& in, float* scores, int32_t* argmax) {
  bool saw_empty_document = false;
  const int64_t pairs = num_pairs(p);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const int64_t begin = cut.first_pair[static_cast<size_t>(pair)];
    const int64_t end = cut.first_pair[static_cast<size_t>(pair + 1)];
    // A query without tokens has no winners, but it has a score.
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
        // A part wins if it is the first part with a maximum, or has a larger number, or the first NaN.
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

}  // namespace colbert_fast
