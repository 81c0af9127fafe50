// READ FIRST: the types every part of the CPU extension shares.
//
// MaxSim(q, d) = sum over query tokens i of max over document tokens j of <q_i, d_j>.
//
// One call walks bindings.cpp -> tensors.cpp (reads tensors, and checks them) -> dispatch.cpp (cuts the
// work into tasks, plan.cpp, and runs them, threads.cpp) -> a tier: one file for each instruction set (the
// constants at the end of this one), and written once for all of them loop.h (what is done with a document),
// tile.h (the register tile) and screen.h (products of fewer bits). A tier never allocates, starts no thread,
// throws nothing and reads no environment.
#pragma once

#include <cstdint>

namespace colbert_fast {

// The numbers are what colbert_fast/_backends/cpu.py passes.
enum class DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kInt8 = 3 };

// Storage only. BFloat16 is the upper half of a float32; Float16 is IEEE binary16.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// A ragged batch: item i is the rows [starts[i], starts[i] + lengths[i]) of a row-major matrix of tokens; or,
// if items is not null, the lengths[i] rows that begin at items[i].
struct Tokens {
  const void* data;
  int64_t row_stride;  // in elements; the elements of one row are adjacent
  int64_t rows;
  const int64_t* starts;
  const int64_t* lengths;
  int64_t count;
  DType dtype;
  const float* scales;  // [rows] what each int8 row is multiplied by; null for the other dtypes
  const void* const* items;
};

// What is scored: the pairs that are listed; or every query against every document, and then pair number =
// query * d.count + document. Queries have the dtype of the documents, or float32. Beside int8 documents
// they may have any dtype.
struct Problem {
  Tokens q;
  Tokens d;
  int64_t dim;
  bool all_pairs;
  const int64_t* pairs;  // [num_pairs][2] of (query, document), unless all_pairs
  int64_t num_pairs;
  int64_t max_lq;  // no query is longer; the row length of argmax
  // A row of zeros is padding, as in a padded tensor that came without a mask.
  bool skip_zero_q;
  bool skip_zero_d;
};

// The score of a document without a token: sentence-transformers' sentinel, below every real score.
constexpr float kEmptyDocumentScore = -1e9f;

struct Scratch;  // one thread's working memory: scratch.h

// A piece of work for one thread: queries [q_begin, q_end) against documents [begin, end); or, when pairs are
// listed, the pairs order[begin .. end).
struct Task {
  int64_t q_begin, q_end;
  int64_t begin, end;
};

struct ScoreJob {
  const Problem* problem;
  const int64_t* order;  // pair numbers sorted by query, or null for all pairs
  float* scores;         // [pairs]
  int32_t* argmax;       // [pairs][max_lq], or null
  float* maxima;         // [pairs][max_lq], or null; written where argmax is not -1
};

// Gradients of sum(grad_scores * scores). Each side is done alone: the side's items are the owners of the
// rows that are written, so that no two tasks write the same element.
struct BackwardJob {
  const Problem* problem;
  bool to_queries;
  const float* grad_scores;  // [pairs]
  const int32_t* argmax;     // [pairs][max_lq]
  const int64_t* order;      // pair numbers sorted by owner
  float* grad;               // [rows of the side][dim], zeroed
};

// The pairs order[begin .. end) into the columns [column_begin, column_end) of the gradient.
struct BackwardTask {
  int64_t begin, end;
  int64_t column_begin, column_end;
};

// What a tier multiplies, for benchmarks to compare with: the steps of a full tile, from registers.
struct Product {
  const char* dtype;
  int64_t flops_per_step;
  float (*multiply_add)(int64_t steps);
};

// One instruction set. per_tier/loop.h makes it, by tier_of().
struct Tier {
  const char* name;
  const char* (*unsupported)();  // returns null, or the reason why this machine cannot run the tier
  int64_t panel_lanes;           // query tokens are padded to a multiple of this
  int64_t panel_rows;    // document rows that are handled together are a multiple of this: a full tile
  int64_t narrow_bytes;  // narrow rows are padded to a multiple of this; 0: the tier has no narrow numbers
  void (*score)(const ScoreJob&, const Task&, Scratch&);
  void (*score_argmax)(const ScoreJob&, const Task&, Scratch&);
  void (*backward)(const BackwardJob&, const BackwardTask&, Scratch&);
  const Product* products;  // float32 first, ended by dtype null
  float (*read)(const float* data, int64_t count);
  // Null, or asks the operating system for what the tier needs. It returns null, or the reason why the system
  // refused. Nobody runs the tier before the system has granted it.
  const char* (*refused)();
  // Null, or the tier that scores bfloat16 documents for float32 queries in place of this one. A tier that
  // multiplies bfloat16 as it is has one, because float32 queries must not be rounded. It is supported
  // wherever this tier is.
  const Tier* for_float32_queries;
};

// A tier that was not built, because the processor is another one or the compiler lacks its instructions.
constexpr Tier absent(const char* name, const char* (*unsupported)()) {
  Tier tier{};
  tier.name = name;
  tier.unsupported = unsupported;
  tier.panel_lanes = 1;
  tier.panel_rows = 1;
  return tier;
}

extern const Tier kAmx;
extern const Tier kAvx512Bf16;
extern const Tier kAvx512Vnni;
extern const Tier kAvx512;
extern const Tier kAvxVnni;
extern const Tier kAvx2;
extern const Tier kNeonI8mm;
extern const Tier kNeonDotprod;
extern const Tier kNeon;
extern const Tier kPortable;

}  // namespace colbert_fast
