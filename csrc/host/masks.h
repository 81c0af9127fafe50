#pragma once

#include <cstdint>

namespace colbert_fast {

// The rows that a mask [n][length] keeps of a padded batch, as items: item i is the rows [starts[i],
// starts[i] + lengths[i]) of n * length. False if what it keeps of an item is not one run of rows; what was
// written is then of no use. A row is kept where its byte is not 0.
bool runs_of_mask(const unsigned char* mask, int64_t n, int64_t length, int64_t* starts, int64_t* lengths);

}  // namespace colbert_fast
