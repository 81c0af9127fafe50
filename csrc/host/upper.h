// Upper bounds of the scores of queries with documents as codes.
#pragma once

#include <cstdint>

#include "codes.h"
#include "host/threads.h"
#include "maxsim.h"

namespace colbert_fast {

// bounds is [q.count][documents.count]. The queries are float32 and not rotated; signs are [4][dim], as in
// rotation.h. The bound of a document without tokens is kEmptyDocumentScore. No bound is NaN. May throw
// std::bad_alloc, before any bound is computed. After an interrupt the bounds are of no use.
void upper(const Tier& tier, const Tokens& q, const float* signs, const Codes& documents, int threads,
           float* bounds, Interrupt& interrupt);

}  // namespace colbert_fast
