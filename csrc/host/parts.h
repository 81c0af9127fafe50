// Documents cut into parts, for calls with fewer documents than threads. A part is scored like a document,
// and the scores of a document's parts are joined afterwards.
#pragma once

#include <cstdint>
#include <vector>

#include "maxsim.h"

namespace colbert_fast {

// The parts of all documents, and the pairs of (query, part) that are scored: the part pairs.
struct Parts {
  std::vector<int64_t> starts, lengths;  // as in Tokens
  std::vector<const void*> items;        // as in Tokens, or empty
  std::vector<int64_t> first_row;        // [parts] the number of the part's first row within its document
  std::vector<int64_t> pairs;            // [part pairs][2] of (query, part)
  // Pair i of the problem is made of the part pairs first_pair[i] .. first_pair[i + 1].
  std::vector<int64_t> first_pair;

  // The problem that these parts of the documents of `whole` make. It points into this object.
  Problem problem(const Problem& whole) const;
};

// The scores of the part pairs, [part pairs], and of each query token in each of them, [part pairs][max_lq].
struct PartScores {
  PartScores(int64_t part_pairs, int64_t max_lq);

  std::vector<float> scores, maxima;
  std::vector<int32_t> argmax;
};

// Cuts every document into up to `parts_wanted` parts. A short document stays whole.
Parts cut_documents(const Problem& problem, int64_t parts_wanted);

// Writes the scores, and the argmax unless it is null, of the whole documents. True if a document has no
// token.
bool join_parts(const Problem& problem, const Parts& cut, const PartScores& in, float* scores,
                int32_t* argmax);

}  // namespace colbert_fast
