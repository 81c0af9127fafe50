// READ FIRST: the words, the folders and the types that the whole CPU extension shares.
//
// MaxSim(q, d) = sum over query tokens i of max over document tokens j of <q_i, d_j>.
//
// WORDS. Each has one meaning in all files.
//   token      one embedding: `dim` numbers. A row is a token of a document, or of any matrix, in memory.
//   item       a query or a document: a run of tokens. A side is all items of one kind in a call.
//   pair       a query and a document that are scored with each other.
//   lane       one query token. The lanes of a block of queries are packed one after the other.
//   panel      `panel_lanes` lanes, stored transposed: dimension after dimension, lanes side by side.
//   element    the numbers of a row that an instruction multiplies together: one float32, two bfloat16 or
//              four int8.
//   step       one pass of an inner loop: it multiplies one element of each row of a tile by its lanes.
//   chain      multiply-adds of a row with a lane, each onto the sum of the one before.
//   tile       the rows and lanes whose sums stay in registers together; on AMX also a tile register.
//   block      what is handled together: a block of queries is packed at once, a block of rows meets all
//              panels while it is in the cache, a block of numbers of a dot product is one chain.
//   narrow     of fewer bits than float32. A scale is the number that int8 numbers are multiplied by.
//   ceiling    a number that a score cannot exceed, from the documents as they are.
//   screening  multiplying narrow numbers first, to find the few rows that may have the maximum of a lane.
//   chunk      the rows of one document that are screened together. A candidate is a row that may win a lane.
//   level      the integer that a number of a row is rounded to, where rows become int8.
//   code       what is kept of a token in 8, 4, 2 or 1 bits a number (codes.h): a level number from 0 to
//              2^bits - 1 for each number of the token, a multiplier, and a slack, which bounds what is lost.
//   plane      a part of the bits of all level numbers: the high four of eight, or the low four.
//   upper bound  what no score of a pair exceeds, computed from codes (upper.h).
//   part       a piece of a document that was cut, so that several threads can score it.
//   task       a piece of work for one thread.
//   tier       the kernels for one instruction set, and what they need: a Tier at the end of this file.
//
// FOLDERS
//   per_tier/  headers that are compiled again for each tier, inside its target region (target.h). They
//              include no system header and nothing of host/, and everything in them is in an anonymous
//              namespace. loop.h walks a task and sums the score of a document, tile.h is the register tile,
//              screen.h proves and does the screening, and ceilings.h uses its proof.
//   tiers/     one .cpp file for each instruction set. Headers in tiers/ are shared by a few tiers, and obey
//              the same rules as headers in per_tier/, except for amx_config.h.
//   host/      files that are compiled once, for any CPU: the bindings, the table of tiers (tiers.cpp), the
//              planning, the memory and the threads of a call. They include nothing of the other two folders.
// tests/test_layers_cpp.py checks these rules.
//
// ONE CALL goes from host/bindings.cpp to host/tensors.cpp, which reads and checks the tensors, and to
// host/dispatch.cpp. That cuts the work into tasks (host/plan.cpp), allocates a Scratch for each thread
// (host/workspace.cpp), and lets the threads (host/threads.cpp) call the tier for each task. A tier never
// allocates, starts no thread, throws nothing and reads no environment.
#pragma once

#include <cstdint>

namespace colbert_fast {

// colbert_fast/_backends/cpu.py passes these numbers.
enum class DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kInt8 = 3 };

// The size of one number in bytes.
constexpr int64_t bytes_of(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : dtype == DType::kInt8 ? 1 : 2;
}

// For storage only. BFloat16 is the upper half of a float32; Float16 is IEEE binary16.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The items of one side. Item i is the rows [starts[i], starts[i] + lengths[i]) of a row-major matrix. If
// `items` is not null, item i is instead the lengths[i] rows that begin at items[i].
struct Tokens {
  const void* data;
  int64_t row_stride;  // in numbers; the numbers of one row are adjacent
  int64_t rows;
  const int64_t* starts;
  const int64_t* lengths;
  int64_t count;
  DType dtype;
  const float* scales;  // [rows] the scale of each int8 row; null for the other dtypes
  const void* const* items;
};

// What is scored: the pairs in a list; or every query with every document, where the number of a pair is
// query * d.count + document. Queries have the dtype of the documents, or float32. If the documents are int8,
// queries may have any dtype but int8.
struct Problem {
  Tokens q;
  Tokens d;
  int64_t dim;
  bool all_pairs;
  const int64_t* pairs;  // [num_pairs][2] of (query, document), unless all_pairs
  int64_t num_pairs;
  int64_t max_lq;  // no query is longer; a row of the argmax has this length
  // A row of zeros is padding, as in a padded tensor that came without a mask.
  bool skip_zero_q;
  bool skip_zero_d;
};

// The score of a document without tokens. It is the number that sentence-transformers uses, and below every
// real score.
constexpr float kEmptyDocumentScore = -1e9f;

struct Scratch;   // the working memory of one thread: scratch.h
struct Best;      // the maxima of lanes, which are in it
struct AnyRows;   // rows of one document: scratch.h
struct UpperJob;  // upper bounds of scores: codes.h

// Work for one thread: queries [q_begin, q_end) with documents [begin, end); or, if pairs are listed, the
// pairs order[begin .. end).
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

// The gradients of sum(grad_scores * scores), of one side at a time. The owner of a row is the item of that
// side which the row belongs to. Pairs are divided among tasks by owner, so that no two tasks write the same
// number.
struct BackwardJob {
  const Problem* problem;
  bool to_queries;           // the side: queries, or documents
  const float* grad_scores;  // [pairs]
  const int32_t* argmax;     // [pairs][max_lq]
  const int64_t* order;      // pair numbers sorted by owner
  float* grad;               // [rows of the side][dim], zeros at first
};

// Work for one thread: the pairs order[begin .. end), and columns [column_begin, column_end) of the gradient.
struct BackwardTask {
  int64_t begin, end;
  int64_t column_begin, column_end;
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
  // Null, or writes to scores what each score is at most, up to infinity. Only for all pairs, and for a dim
  // of 1 to kMostScreenedDim.
  void (*ceilings)(const ScoreJob&, const Task&, Scratch&);
  void (*backward)(const BackwardJob&, const BackwardTask&, Scratch&);
  // Takes rows of a dtype into the maxima of lanes, by products of float32. A tier that has the registers of
  // another one and more instructions calls that one here, and has no copy of its code (per_tier/float32.h).
  void (*float32_maxima)(DType, bool argmax, const AnyRows&, int64_t begin, int64_t end, const Best&,
                         Scratch&);
  void (*upper)(const UpperJob&, const Task&, Scratch&);
  // Null, or asks the operating system for what the tier needs. It returns null, or the reason why the system
  // refused. Nobody runs the tier before the system has granted it.
  const char* (*refused)();
  // Null, or the tier that scores bfloat16 documents for float32 queries in place of this one. A tier that
  // multiplies bfloat16 as it is names one, because float32 queries must not be rounded to bfloat16. That
  // tier can run wherever this tier can.
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
