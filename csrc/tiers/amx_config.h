// What ldtilecfg loads and sttilecfg stores (Intel SDM volume 1, section 18.2).
#pragma once

#include <cstdint>

namespace colbert_fast {

struct alignas(64) TileConfig {
  uint8_t palette;  // 1, or 0 if no configuration is loaded
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];  // for each tile; only eight tiles exist
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "the instructions define this layout");

}  // namespace colbert_fast
