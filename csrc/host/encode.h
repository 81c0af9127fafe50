// Encodes tokens. colbert_fast/_codecs/encoding.py says what the codes are and proves their bound. This is
// its arithmetic in float32.
#pragma once

#include <cstdint>

#include "host/threads.h"
#include "maxsim.h"

namespace colbert_fast {

// What belongs to level numbers of so many bits, for each token. `multipliers` and `slack` are bfloat16;
// `norms` is an upper bound of the norm of the multiplier times the integers.
struct Fit {
  int bits;
  uint16_t* multipliers;
  uint16_t* slack;
  float* norms;
};

struct EncodeJob {
  const void* tokens;  // float32, bfloat16 or float16
  DType dtype;
  int64_t row_stride;  // in numbers
  int64_t count, dim;  // dim is 1 to kMostRotatedDim
  const float* signs;  // of the rotation
  Fit fit;             // for all bits of a level number
  Fit high;            // for the high four of eight bits, if there is `low`
  uint8_t* levels;     // packed as in packing.py
  uint8_t* low;        // null, or the plane of the low four bits; then `levels` is that of the high four
};

// The bytes of a packed row.
constexpr int64_t packed_bytes(int64_t dim, int bits) { return (dim + 8 / bits - 1) / (8 / bits); }

// Returns -1, or the number of the first token with a NaN or an infinity. Then the codes are of no use, and
// so they are if `interrupt` has heard of a reason to stop.
int64_t encode(const EncodeJob& job, int threads, Interrupt& interrupt);

}  // namespace colbert_fast
