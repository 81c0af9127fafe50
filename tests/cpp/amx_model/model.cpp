// The instructions do what Intel SDM volume 2 says. This file also takes the place of
// csrc/host/amx_permission.cpp.
#include "model.h"

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "host/amx_permission.h"

namespace colbert_fast {
namespace amx_model {
namespace {

std::atomic<Kernel> g_kernel{Kernel::kGrants};
std::atomic<bool> g_granted{false};
std::atomic<int64_t> g_requests{0};

constexpr int kTiles = 8;

struct Registers {
  TileConfig config;
  unsigned char data[kTiles][16][64];
  Counts counts;
};
thread_local Registers t_registers;

[[noreturn]] void fault(const char* what) {
  std::fprintf(stderr, "amx_model: %s\n", what);
  std::abort();
}

void require(bool met, const char* what) {
  if (!met) fault(what);
}

Registers& registers() {
  require(g_granted.load(), "a tile instruction without permission");
  return t_registers;
}

Registers& configured() {
  Registers& r = registers();
  require(r.config.palette == 1, "a tile instruction without a configuration");
  return r;
}

int rows_of(const Registers& r, int tile) { return r.config.rows[tile]; }
int bytes_of(const Registers& r, int tile) { return r.config.row_bytes[tile]; }

void clear_from(Registers& r, int tile, int row) {
  for (; row < 16; ++row) std::memset(r.data[tile][row], 0, 64);
}

// Reads a bfloat16. Denormals become zeros.
float number(const unsigned char* from) {
  uint16_t half;
  std::memcpy(&half, from, sizeof half);
  if ((half & 0x7f80) == 0) half = static_cast<uint16_t>(half & 0x8000);
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float flushed(float value) {
  return std::fabs(value) < std::numeric_limits<float>::min() ? std::copysign(0.0f, value) : value;
}

// Every product needs these shapes in bytes: C [m][4 n], A [m][4 k], B [k][4 n].
void check_shapes(const Registers& r, int c, int a, int b) {
  require(c != a && c != b && a != b, "a product of a tile with itself");
  require(bytes_of(r, c) % 4 == 0 && bytes_of(r, a) % 4 == 0 && bytes_of(r, b) % 4 == 0, "odd row bytes");
  require(rows_of(r, a) == rows_of(r, c), "the rows of A and C");
  require(bytes_of(r, b) == bytes_of(r, c), "the columns of B and C");
  require(bytes_of(r, a) / 4 == rows_of(r, b), "the columns of A and the rows of B");
}

}  // namespace

void set_kernel(Kernel kernel) {
  g_kernel.store(kernel);
  g_granted.store(false);
}

int64_t requests() { return g_requests.load(); }

const Counts& counts() { return t_registers.counts; }

void load_config(const TileConfig& config) {
  Registers& r = registers();
  ++r.counts.config_loads;
  require(reinterpret_cast<uintptr_t>(&config) % alignof(TileConfig) == 0, "an unaligned configuration");
  std::memset(r.data, 0, sizeof r.data);
  if (config.palette == 0) {
    std::memset(&r.config, 0, sizeof r.config);
    return;
  }
  require(config.palette == 1, "an unknown palette");
  for (const uint8_t byte : config.reserved) require(byte == 0, "reserved bytes of a configuration");
  for (int tile = 0; tile < 16; ++tile) {
    const int rows = config.rows[tile];
    const int bytes = config.row_bytes[tile];
    require(tile < kTiles || (rows == 0 && bytes == 0), "more than eight tiles");
    require(rows <= 16 && bytes <= 64, "a tile that is too large");
    require((rows == 0) == (bytes == 0), "a tile of no size");
  }
  r.config = config;
}

void store_config(TileConfig& config) {
  Registers& r = registers();
  ++r.counts.config_stores;
  config = r.config;
}

void release() {
  Registers& r = registers();
  ++r.counts.releases;
  std::memset(&r.config, 0, sizeof r.config);
  std::memset(r.data, 0, sizeof r.data);
}

void zero(int tile) { clear_from(configured(), tile, 0); }

void load(int tile, const void* from, int64_t stride) {
  Registers& r = configured();
  ++r.counts.loads;
  require(rows_of(r, tile) > 0, "a tile that is not configured");
  const int bytes = bytes_of(r, tile);
  clear_from(r, tile, 0);
  for (int row = 0; row < rows_of(r, tile); ++row) {
    std::memcpy(r.data[tile][row], static_cast<const unsigned char*>(from) + row * stride,
                static_cast<size_t>(bytes));
  }
}

void store(int tile, void* to, int64_t stride) {
  Registers& r = configured();
  ++r.counts.stores;
  require(rows_of(r, tile) > 0, "a tile that is not configured");
  for (int row = 0; row < rows_of(r, tile); ++row) {
    std::memcpy(static_cast<unsigned char*>(to) + row * stride, r.data[tile][row],
                static_cast<size_t>(bytes_of(r, tile)));
  }
}

void multiply_bfloat16(int c, int a, int b) {
  Registers& r = configured();
  ++r.counts.products;
  check_shapes(r, c, a, b);
  for (int m = 0; m < rows_of(r, c); ++m) {
    for (int n = 0; n < bytes_of(r, c) / 4; ++n) {
      // There are two chains. Every step rounds to nearest and flushes denormals to zero.
      float sums[2] = {0.0f, 0.0f};
      for (int k = 0; k < bytes_of(r, a) / 4; ++k) {
        for (int half = 0; half < 2; ++half) {
          const float of_a = number(&r.data[a][m][4 * k + 2 * half]);
          const float of_b = number(&r.data[b][k][4 * n + 2 * half]);
          sums[half] = flushed(std::fma(of_a, of_b, sums[half]));
        }
      }
      float sum;
      std::memcpy(&sum, &r.data[c][m][4 * n], sizeof sum);
      sum = flushed(flushed(sum) + flushed(sums[0] + sums[1]));
      std::memcpy(&r.data[c][m][4 * n], &sum, sizeof sum);
    }
  }
  clear_from(r, c, rows_of(r, c));
}

void multiply_int8(int c, int a, int b) {
  Registers& r = configured();
  ++r.counts.products;
  check_shapes(r, c, a, b);
  for (int m = 0; m < rows_of(r, c); ++m) {
    for (int n = 0; n < bytes_of(r, c) / 4; ++n) {
      uint32_t sum;  // unsigned, because the sum wraps around
      std::memcpy(&sum, &r.data[c][m][4 * n], sizeof sum);
      for (int k = 0; k < bytes_of(r, a); ++k) {
        const int of_a = static_cast<int8_t>(r.data[a][m][k]);
        const int of_b = static_cast<int8_t>(r.data[b][k / 4][4 * n + k % 4]);
        sum += static_cast<uint32_t>(of_a * of_b);
      }
      std::memcpy(&r.data[c][m][4 * n], &sum, sizeof sum);
    }
  }
  clear_from(r, c, rows_of(r, c));
}

}  // namespace amx_model

const char* amx_unsupported() {
  return amx_model::g_kernel.load() == amx_model::Kernel::kHasNoAmx ? "the model has no AMX" : nullptr;
}

const char* amx_refused() {
  if (amx_model::g_granted.load()) return nullptr;
  amx_model::g_requests.fetch_add(1);
  if (amx_model::g_kernel.load() != amx_model::Kernel::kGrants) return "the model refuses AMX";
  amx_model::g_granted.store(true);
  return nullptr;
}

}  // namespace colbert_fast
