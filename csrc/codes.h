// Upper bounds of scores: what they are computed from. per_tier/upper.h has the formula and its proof.
#pragma once

#include <cstdint>

namespace colbert_fast {

// Documents as codes. Row j has a level number l for each dimension, and stands for about m v, where m is its
// multiplier and v = a l - b. Rows are rotated, and so must queries be.
//
// A row of a plane has a number of `bits` bits for each dimension, and 8 / bits numbers in a byte. The bits
// [bits * i, bits * (i + 1)) of byte j are the number of dimension i * row_bytes + j. They may be anything
// where there is no such dimension.
struct Codes {
  int bits;                     // 8, 4, 2 or 1
  int64_t dim;                  // at most kMostCodedDim
  int64_t row_bytes;            // of a row of a plane
  const unsigned char* levels;  // [rows][row_bytes] the level numbers; or, beside `low`, their high four bits
  const unsigned char* low;     // null, or [rows][row_bytes] the low four bits; `bits` is then 8
  const uint16_t* multipliers;  // [rows] bfloat16
  const uint16_t* slack;        // [rows] bfloat16, at least |y - m v| for the rotated token y
  const float* norms;           // [count] at least |m v| for every row of the item
  const int64_t* starts;        // as in Tokens
  const int64_t* lengths;
  int64_t count;

  // The numbers that a row becomes: dim, or a few more.
  constexpr int64_t numbers() const { return low != nullptr ? 2 * row_bytes : row_bytes * (8 / bits); }
};

// A sum of products of level numbers with int8 numbers is less than 2^31, with a margin, up to this dim.
constexpr int64_t kMostCodedDim = 4096;

// Query tokens as lanes: the rotated token is about `scales` times its int8 numbers.
struct CodedQueries {
  const int8_t* numbers;   // [lanes][dim]
  const int32_t* sums;     // [lanes] of the numbers; even
  const float* ratios;     // [lanes] |q| / scale, rounded up; above 0
  const double* scales;    // [lanes] 0 for a token of zeros
  const int64_t* segment;  // [count + 1] the first lane of each query
  const double* errors;    // [count] what a bound grows by for each 1 of the norm of an item
  const double* leasts;    // [count] what a bound grows by besides
  int64_t count;
};

// The bounds of queries with items: task.begin to task.end are items.
struct UpperJob {
  const CodedQueries* q;
  const Codes* d;
  float* bounds;  // [q->count][d->count]
};

}  // namespace colbert_fast
