// One thread's working memory, and how many rows and candidates it has room for.
#pragma once

#include <cstdint>

namespace colbert_fast {

// A document row that may win a lane.
struct Candidate {
  int32_t row;   // within its chunk
  int32_t lane;  // within its panel
};

// One thread's working memory. Arrays over lanes have one entry for each, a lane being one query token;
// tile.h says how they lie.
struct Scratch {
  float* query_rows;  // [lanes * dim] queries as float32, zeros to the end of a panel
  float* packed;      // [lanes * dim] the same, transposed
  float* best;        // [lanes] running maximum
  int32_t* arg;       // [lanes] document token of that maximum
  int32_t* token;     // [lanes] the lane's token number within its query
  int64_t* segment;   // [queries in a block + 1] first lane of each query
  float* rows;        // [block_rows * dim] document rows widened to float32
  int64_t block_rows;
  int64_t packed_begin, packed_end;  // the queries now in `packed`; begin == end: none
  bool saw_empty_document;
  bool redone;  // lanes of bfloat16 were done again in float32: which, depends on all rows that they met

  // A call can be interrupted. A tier asks now and then (given_up() in tile.h). If the call was interrupted,
  // the tier returns at once, and nothing that it has written is of use.
  bool (*interrupted)(void* call);
  void* call;
  int64_t work;   // multiply-adds since the tier asked
  bool given_up;  // the last answer

  // Only of a tier with narrow_bytes; screen.h has the names of its proof. Of bfloat16 that is multiplied as
  // it is:
  unsigned char* direct_packed;  // [lanes * bytes of a narrow row] queries
  unsigned char* direct_rows;    // [kMostChunkRows * bytes of a narrow row] document rows, padded
  float* lane_floor;             // [lanes] what a maximum has to reach: 2^30 A
  float* other_best;             // [lanes] maxima of its products
  int32_t* other_arg;            // [lanes]
  float* again_best;             // [lanes] the same maxima in float32, for lanes below their floor
  int32_t* again_arg;            // [lanes]
  // Of documents that are screened:
  bool screens;            // these queries may be
  bool narrowed;           // and are there as screen_packed
  int64_t rows_met;        // by these queries
  int64_t chunks_to_rest;  // so many are not, after one that was not worth it
  int64_t chunks_screened;
  unsigned char* screen_packed;  // [lanes * bytes of a narrow row] queries, as they are multiplied
  float* lane_error;             // [lanes] e / D, in units of the lane's step
  float* lane_slack;             // [lanes] z / D
  float* lane_step;              // [lanes] what products are in units of
  float* lane_spread;            // [lanes] as in Bounds of tile.h
  int32_t* lane_offset;          // [lanes]
  unsigned char* narrow_rows;    // [kMostChunkRows * bytes of a narrow row + kNarrowSlack] document rows
  float* row_scales;             // [kMostChunkRows] what their products are multiplied by
  float* padded_rows;            // [kRowsAtOnce * padded dim] rows that are not of whole vectors, copied
  float* uppers;                 // [kMostChunkRows * panel_lanes] bounds of these products
  int32_t* picked;               // [kMostChunkRows] rows with candidates
  uint32_t* picked_lanes;  // [kMostChunkRows + 1] and a bit for each lane of a panel they are of, ended by 0
  Candidate* candidates;   // [kMostCandidates]
  unsigned char* winners;  // [panel_lanes * bytes of a row of float32] a row for each lane
};

// Document rows that are screened together: so many that a passage is one chunk, for there is a guess for
// each lane in each chunk, right or wrong. At dim 128 they are 40 KiB in int8, and their products with a
// panel of 32 lanes as much again: both come from L2 where L1 has 48 KiB, which the tile hides. With many
// lanes a page is one chunk too: 1024 query tokens against pages of 1024 took 395 -> 367 ns a token of
// float32 on Zen 5, but 256 took 5 % more.
constexpr int64_t kChunkRows = 320;
constexpr int64_t kMostChunkRows = 1024;
constexpr int64_t kManyLanes = 512;
constexpr int64_t chunk_rows(int64_t lanes) { return lanes >= kManyLanes ? kMostChunkRows : kChunkRows; }
// Rows of more numbers are not screened.
constexpr int64_t kMostScreenedDim = 1 << 15;
// What narrowing may write past a row, in bytes, and how its rows may be padded, in numbers: less than this.
constexpr int64_t kNarrowSlack = 128;
constexpr int64_t kMostPadding = 64;
// Rows that are narrowed together, so that their chains overlap.
constexpr int64_t kRowsAtOnce = 16;
// Of one panel and one chunk: with more, all rows are computed.
constexpr int64_t kMostCandidates = 4 * kMostChunkRows;

}  // namespace colbert_fast
