// The masks of padded batches.
#pragma once

#include <cstdint>

namespace colbert_fast {

// Turns the mask [n][length] of a padded batch into items. The mask keeps a row where its byte is not 0. Item
// i becomes the rows [starts[i], starts[i] + lengths[i]) of the n * length rows. False if the rows that the
// mask keeps of an item are not one run; then starts and lengths are of no use.
bool runs_of_mask(const unsigned char* mask, int64_t n, int64_t length, int64_t* starts, int64_t* lengths);

}  // namespace colbert_fast
