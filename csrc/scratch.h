// One thread's working memory, and how many rows and candidates it has room for. workspace.cpp allocates it,
// and the tiers write to it.
#pragma once

#include <cstdint>

namespace colbert_fast {

// The maxima of lanes so far, and the document token that each of them belongs to.
struct Best {
  float* value;
  int32_t* token;
};

// Rows of one document, as Rows of per_tier/rows.h, which says what each is, but of any dtype.
struct AnyRows {
  const void* data;
  int64_t stride, dim, count, token;
  const float* scales;
  const void* next;
  int64_t next_count;
};

// A document row that may win a lane.
struct Candidate {
  int32_t row;   // within its chunk
  int32_t lane;  // within its panel
};

// The comment of an array says how many entries the array has. [lanes] has one entry for each packed query
// token. per_tier/tile.h says how lanes lie in panels.
struct Scratch {
  float* query_rows;       // [lanes * dim] queries as float32, followed by zeros to the end of a panel
  float* float32_queries;  // [lanes * dim] the same numbers, packed in panels
  Best best;               // [lanes] the maxima of the document at hand
  int32_t* token;          // [lanes] the number of the lane's token within its query
  int64_t* segment;        // [queries in a block + 1] first lane of each query
  float* float32_rows;     // [block_rows * dim] document rows widened to float32
  int64_t block_rows;
  int64_t packed_begin, packed_end;  // the queries that are packed now; begin == end: none
  bool saw_empty_document;
  // Whether a lane of bfloat16 was scored again in float32. Which lanes are scored again depends on the whole
  // document, so a document that was cut must then be scored once more, uncut.
  bool rescored;

  // A call can be interrupted. A tier asks now and then: given_up() in per_tier/rows.h. If the call was
  // interrupted, the tier returns at once, and nothing that it has written is of use.
  bool (*interrupted)(void* call);
  void* call;
  int64_t work;   // multiply-adds since the tier asked
  bool given_up;  // the last answer

  // What per_tier/upper.h needs, besides arrays above and below.
  float* row_slacks;  // [block_rows]
  float* lane_ratio;  // [lanes]

  // The rest exists only for a tier with narrow_bytes, or where upper bounds need it. First, what
  // per_tier/bfloat16.h needs:
  unsigned char* bf16_queries;  // [lanes * bytes of a narrow row] packed in panels
  unsigned char* bf16_rows;     // [kMostChunkRows * bytes of a narrow row] padded document rows
  float* lane_floor;            // [lanes] what the magnitude of a maximum must reach: 2^30 A
  Best bf16_best;               // [lanes] maxima of products of bfloat16
  Best float32_best;            // [lanes] maxima of products of float32, for lanes below their floor

  // Second, what per_tier/screen.h needs. Its proof defines the names D, e and z.
  bool screens;            // documents may be screened for the queries that are packed now
  bool narrowed;           // screened_queries and the arrays of lanes below are filled in
  int64_t rows_met;        // document rows that these queries have met
  int64_t chunks_to_rest;  // the number of chunks not to screen, after a chunk that was not worth it
  int64_t candidates_met;  // in the chunk at hand, by all lanes
  int64_t chunks_apart;    // the number of chunks whose rows need scales of their own
  int64_t chunks_screened;
  unsigned char* screened_queries;  // [lanes * bytes of a narrow row] packed in panels
  float* lane_error;                // [lanes] e / D, divided by the lane's scale
  float* lane_slack;                // [lanes] z / D
  float* lane_scale;                // [lanes] what a product of narrow numbers must be multiplied by
  float* lane_spread;               // [lanes] as in Bounds of per_tier/tile.h
  int32_t* lane_offset;             // [lanes] as in Bounds
  unsigned char* narrow_rows;       // [kMostChunkRows * bytes of a narrow row + kNarrowSlack] document rows
  float top;                        // the number that became 127 in the last chunk (per_tier/narrow.h)
  float* row_scales;                // [kMostChunkRows] what the products of a row must be multiplied by
  int32_t* row_offset;              // [kMostChunkRows] as in Bounds
  float* uppers;                    // [kMostChunkRows * panel_lanes] upper bounds of the products
  int32_t* picked;                  // [kMostChunkRows] rows that are candidates of a lane
  uint32_t* picked_lanes;           // [kMostChunkRows + 1] the lanes of each, a bit for each lane; 0 ends it
  Candidate* candidates;            // [kMostCandidates]
  unsigned char* chosen_rows;       // [panel_lanes * bytes of a row of float32] one row for each lane
};

// Document rows that are screened together. The number is so large that a passage is one chunk, because every
// lane computes the chain of its guess in every chunk, whether the guess is right or wrong. At dim 128 the
// rows of a chunk are 40 KiB in int8, and their products with a panel of 32 lanes are as much again: both
// come from L2 where L1 has 48 KiB, and the tile hides that. With kManyLanes a page is one chunk too: fewer
// guesses save more there than the larger chunk costs (`colbert-fast bench pages-float32`).
constexpr int64_t kChunkRows = 320;
constexpr int64_t kMostChunkRows = 1024;
constexpr int64_t kManyLanes = 512;
constexpr int64_t chunk_rows(int64_t lanes) { return lanes >= kManyLanes ? kMostChunkRows : kChunkRows; }
// Rows of more numbers are not screened.
constexpr int64_t kMostScreenedDim = 1 << 15;
// Narrowing writes less than this many bytes past a row.
constexpr int64_t kNarrowSlack = 128;
// The most candidates of one panel in one chunk. If there are more, the chains of all rows are computed.
constexpr int64_t kMostCandidates = 4 * kMostChunkRows;

}  // namespace colbert_fast
