#include "host/masks.h"

#include <cstring>

namespace colbert_fast {
namespace {

// The number of bytes at the beginning that are 0, or that are not 0. Looks at eight bytes at a time.
template <bool kZero>
int64_t run_length(const unsigned char* bytes, int64_t n) {
  constexpr uint64_t kOnes = 0x0101010101010101;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes + i, sizeof word);
    // `end` is not 0 if the run ends in this word. The second formula is not 0 if and only if a byte is 0. A
    // subtraction gives a byte below 0x80 its highest bit only if the byte is 0, or if it is 1 and the byte
    // below it borrowed. The lowest byte that borrows is 0.
    const uint64_t end = kZero ? word : (word - kOnes) & ~word & (kOnes << 7);
    if (end != 0) break;
  }
  while (i < n && (bytes[i] == 0) == kZero) ++i;
  return i;
}

}  // namespace

bool runs_of_mask(const unsigned char* mask, int64_t n, int64_t length, int64_t* starts, int64_t* lengths) {
  for (int64_t i = 0; i < n; ++i) {
    const unsigned char* row = mask + i * length;
    const int64_t before = run_length<true>(row, length);
    const int64_t kept = run_length<false>(row + before, length - before);
    const int64_t end = before + kept;
    if (end + run_length<true>(row + end, length - end) != length) return false;
    starts[i] = i * length + (kept == 0 ? 0 : before);
    lengths[i] = kept;
  }
  return true;
}

}  // namespace colbert_fast
