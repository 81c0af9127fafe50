#include "host/encode.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "host/eight.h"
#include "host/rotation.h"
#include "target.h"

namespace colbert_fast {
namespace {

// A block is kTogether tokens side by side.
constexpr int kTogether = kRotatedTogether;
constexpr int64_t kTokensOfTask = 512;

// No rounding of float32 is off by more than the factor 1 +- kUnit, whatever the rounding mode is.
constexpr float kUnit = std::numeric_limits<float>::epsilon();
// t / sqrt(1 - t^2), where t is TANGENT of codes.py.
constexpr float kTangent = 0.57735027f;

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float to_float(float value) { return value; }
float to_float(BFloat16 value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }
float to_float(Float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t rest = value.bits & 0x7fffu;
  // The exponent of an infinity or of a NaN stays the largest. Denormal numbers are multiples of 2^-24.
  const uint32_t normal = (rest << 13) + (rest < 0x7c00u ? 112u << 23 : 224u << 23);
  const uint32_t denormal = bits_of(static_cast<float>(static_cast<int32_t>(rest)) * 0x1p-24f);
  return float_of(sign | (rest < 0x400u ? denormal : normal));
}

uint16_t nearest_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// For numbers that are 0 or more. The next number after the largest is infinity.
uint16_t bfloat16_above(float value) { return static_cast<uint16_t>((bits_of(value) + 0xffffu) >> 16); }

// How level numbers of so many bits are made, and the integers a l - b that they stand for.
template <int kBits>
struct Levels {
  static constexpr int32_t kTop = (1 << kBits) - 1;
  static constexpr float kMiddle = 1 << (kBits - 1);
  static constexpr float kA = kBits == 8 ? 1.0f : 2.0f;
  static constexpr float kB = kBits == 8 ? 128.0f : static_cast<float>(kTop);
  // As _STEPS of in_torch.py.
  static constexpr float kHalf = kBits == 8 ? 127.5f : kMiddle;
  static constexpr float kWidest = kBits == 4 ? 0.335f : kBits == 2 ? 0.996f : 0.0f;
  static constexpr float kOffset = kBits == 8 ? 128.5f : kMiddle;
};

// The tokens of a block. Number i of token r is at [i * kTogether + r]. Level numbers and integers are float
// as well, because compilers make better vectors of loops with one type.
struct Block {
  explicit Block(int64_t dim)
      : room(kTogether * dim),
        y(kTogether * dim),
        levels(kTogether * (dim + kMostLevelsInByte)),
        low(kTogether * (dim + kMostLevelsInByte)),
        v(kTogether * dim),
        bytes(kTogether * dim),
        unused(kTogether * dim) {}

  // There are zeros after the last level numbers, so that all bytes of a row are packed alike.
  static constexpr int64_t kMostLevelsInByte = 8;

  std::vector<float> room;  // for rows as float, one after the other
  std::vector<float> y;     // the tokens after the rotation
  std::vector<float> levels, low;
  std::vector<float> v;  // the integers that level numbers stand for
  std::vector<uint8_t> bytes;
  std::vector<uint8_t> unused;  // packed rows of tokens that are not there
  float largest[kTogether] = {};
  float squares[kTogether] = {};  // the sum of the squares of y
  bool bounded[kTogether] = {};   // whether the arithmetic has a bound
};

// Lays eight rows of n numbers side by side. Compilers make vectors of eight stores in one loop, but not of a
// loop over rows.
void lay_side_by_side(const float* const (&rows)[kTogether], int64_t n, float* __restrict to) {
  static_assert(kTogether == 8);
  const float* __restrict a = rows[0];
  const float* __restrict b = rows[1];
  const float* __restrict c = rows[2];
  const float* __restrict d = rows[3];
  const float* __restrict e = rows[4];
  const float* __restrict f = rows[5];
  const float* __restrict g = rows[6];
  const float* __restrict h = rows[7];
  for (int64_t i = 0; i < n; ++i, to += kTogether) {
    to[0] = a[i];
    to[1] = b[i];
    to[2] = c[i];
    to[3] = d[i];
    to[4] = e[i];
    to[5] = f[i];
    to[6] = g[i];
    to[7] = h[i];
  }
}

// Undoes it, for bytes.
void lay_apart(const uint8_t* __restrict from, int64_t n, uint8_t* const (&rows)[kTogether]) {
  uint8_t* __restrict a = rows[0];
  uint8_t* __restrict b = rows[1];
  uint8_t* __restrict c = rows[2];
  uint8_t* __restrict d = rows[3];
  uint8_t* __restrict e = rows[4];
  uint8_t* __restrict f = rows[5];
  uint8_t* __restrict g = rows[6];
  uint8_t* __restrict h = rows[7];
  for (int64_t i = 0; i < n; ++i, from += kTogether) {
    a[i] = from[0];
    b[i] = from[1];
    c[i] = from[2];
    d[i] = from[3];
    e[i] = from[4];
    f[i] = from[5];
    g[i] = from[6];
    h[i] = from[7];
  }
}

template <typename T>
const T* row_of(const EncodeJob& job, int64_t token) {
  return static_cast<const T*>(job.tokens) + token * job.row_stride;
}

// Loads `count` tokens, and zeros in place of the others.
template <typename T>
void load(const EncodeJob& job, int64_t first, int count, Block& block) {
  const int64_t dim = job.dim;
  const float* rows[kTogether];
  for (int r = 0; r < kTogether; ++r) {
    float* const room = block.room.data() + r * dim;
    rows[r] = room;
    if (r >= count) {
      std::fill(room, room + dim, 0.0f);
    } else if constexpr (std::is_same_v<T, float>) {
      rows[r] = row_of<float>(job, first + r);
    } else {
      const T* const from = row_of<T>(job, first + r);
      for (int64_t i = 0; i < dim; ++i) room[i] = to_float(from[i]);
    }
  }
  lay_side_by_side(rows, dim, block.y.data());
}

// Finds the largest magnitudes and the sums of squares. A token whose arithmetic has no bound becomes zeros.
void measure(int64_t dim, Block& block) {
  Eight largest, squares;
  for (int64_t i = 0; i < dim; ++i) {
    const Eight y(block.y.data() + i * kTogether);
    largest = larger(magnitude(y), largest);
    squares = squares + y * y;
  }
  largest.store(block.largest);
  squares.store(block.squares);
  for (int r = 0; r < kTogether; ++r) {
    block.bounded[r] = block.squares[r] >= 0x1p-60f && block.squares[r] <= 0x1p120f;
    if (block.bounded[r]) continue;
    for (int64_t i = 0; i < dim; ++i) block.y[i * kTogether + r] = 0.0f;
  }
}

template <int kBits>
void round_to_levels(int64_t dim, bool clip, Block& block) {
  using L = Levels<kBits>;
  float inverse[kTogether];  // of the step
  for (int r = 0; r < kTogether; ++r) {
    inverse[r] = L::kHalf / block.largest[r];
    if (clip && L::kWidest > 0) {
      const float deviation = std::sqrt(block.squares[r] / static_cast<float>(dim));
      inverse[r] = std::max(inverse[r], 1.0f / (L::kWidest * deviation));
    }
    if (!block.bounded[r]) inverse[r] = 0.0f;
  }
  for (int64_t i = 0; i < dim; ++i) {
    const float* const y = block.y.data() + i * kTogether;
    float* const levels = block.levels.data() + i * kTogether;
    float* const v = block.v.data() + i * kTogether;
    CF_UNROLL
    for (int r = 0; r < kTogether; ++r) {
      // No magnitude is more than 200: |y| / deviation is at most sqrt(dim) <= 64.
      int32_t level = static_cast<int32_t>(y[r] * inverse[r] + L::kOffset);
      level = level < L::kTop ? level : L::kTop;
      level = level > 0 ? level : 0;
      levels[r] = static_cast<float>(level);
      v[r] = L::kA * static_cast<float>(level) - L::kB;
    }
  }
}

// Computes multiplier, slack and norm of each token, for the integers in block.v.
void fit(int64_t dim, const Block& block, const Fit& to, int64_t first, int count) {
  const float factor = 1.0f + static_cast<float>(dim + 16) * kUnit;
  const float rotation = static_cast<float>(rotation_error<float>(dim)) + kUnit;
  Eight products, squares;  // <y, v> and <v, v>
  for (int64_t i = 0; i < dim; ++i) {
    const Eight v(block.v.data() + i * kTogether);
    products = products + Eight(block.y.data() + i * kTogether) * v;
    squares = squares + v * v;
  }
  float product[kTogether], integers[kTogether];
  products.store(product);
  squares.store(integers);
  float multiplier[kTogether];
  uint16_t multiplier_bits[kTogether];
  for (int r = 0; r < kTogether; ++r) {
    const float v_squares = std::max(integers[r], 1.0f);
    const float best = product[r] / v_squares;
    const float rho = std::sqrt(std::max(block.squares[r] - product[r] * best, 0.0f));
    const uint16_t bits = nearest_bfloat16(best - rho * kTangent / std::sqrt(v_squares));
    multiplier[r] = to_float(BFloat16{bits});
    if (!block.bounded[r] || std::fabs(multiplier[r]) < 0x1p-100f) multiplier[r] = 0.0f;
    multiplier_bits[r] = multiplier[r] == 0.0f ? uint16_t{0} : bits;
  }
  const Eight factors(multiplier);
  Eight residuals;
  for (int64_t i = 0; i < dim; ++i) {
    const Eight difference =
        Eight(block.y.data() + i * kTogether) - factors * Eight(block.v.data() + i * kTogether);
    residuals = residuals + difference * difference;
  }
  float residual[kTogether];
  residuals.store(residual);
  for (int r = 0; r < count; ++r) {
    const float slack = (std::sqrt(residual[r]) + rotation * std::sqrt(block.squares[r])) * factor;
    to.multipliers[first + r] = multiplier_bits[r];
    to.slack[first + r] = bfloat16_above(slack);
    to.norms[first + r] = std::fabs(multiplier[r]) * std::sqrt(integers[r]) * factor;
  }
}

// Returns the slack of a token without codes, or -1 if it has a NaN or an infinity.
template <typename T>
float norm_above(const T* row, int64_t dim) {
  double squares = 0.0;
  uint32_t magnitudes = 0;
  for (int64_t i = 0; i < dim; ++i) {
    const float number = to_float(row[i]);
    const uint32_t magnitude = bits_of(number) & 0x7fffffffu;
    if (magnitude >= 0x7f800000u) return -1.0f;
    magnitudes |= magnitude;
    squares += static_cast<double>(number) * static_cast<double>(number);
  }
  if (magnitudes == 0) return 0.0f;
  const double norm = std::sqrt(squares) * (1.0 + 0x1p-20) + 0x1p-120;
  constexpr float kMost = std::numeric_limits<float>::max();
  return norm > static_cast<double>(kMost) ? std::numeric_limits<float>::infinity()
                                           : static_cast<float>(norm * (1.0 + 0x1p-22));
}

// Packs level numbers of a block into rows.
template <int kBits>
void pack(int64_t dim, const float* levels, Block& block, uint8_t* rows, int64_t first, int count) {
  const int64_t width = packed_bytes(dim, kBits);
  for (int64_t i = 0; i < width * kTogether; ++i) {
    float byte = 0.0f;
    CF_UNROLL
    for (int piece = 0; piece < 8 / kBits; ++piece)
      byte += static_cast<float>(1 << (kBits * piece)) * levels[piece * width * kTogether + i];
    block.bytes[i] = static_cast<uint8_t>(static_cast<int32_t>(byte));
  }
  uint8_t* each[kTogether];
  for (int r = 0; r < kTogether; ++r)
    each[r] = r < count ? rows + (first + r) * width : block.unused.data() + r * width;
  lay_apart(block.bytes.data(), width, each);
}

template <int kBits>
void encode_block(const EncodeJob& job, int64_t first, int count, Block& block) {
  round_to_levels<kBits>(job.dim, job.low == nullptr, block);
  fit(job.dim, block, job.fit, first, count);
  float* const levels = block.levels.data();
  if (job.low == nullptr) return pack<kBits>(job.dim, levels, block, job.levels, first, count);
  float* const low = block.low.data();
  float* const v = block.v.data();
  for (int64_t i = 0; i < job.dim * kTogether; ++i) {
    const float high = static_cast<float>(static_cast<int32_t>(levels[i] * 0.0625f));
    low[i] = levels[i] - 16.0f * high;
    levels[i] = high;
    v[i] = Levels<4>::kA * high - Levels<4>::kB;
  }
  fit(job.dim, block, job.high, first, count);
  pack<4>(job.dim, levels, block, job.levels, first, count);
  pack<4>(job.dim, low, block, job.low, first, count);
}

class Encoder {
 public:
  Encoder(const EncodeJob& job, int threads)
      : job_(job), blocks_(static_cast<size_t>(threads), Block(job.dim)), refused_(job.count) {}

  void run(int64_t task, int worker) {
    const int64_t begin = task * kTokensOfTask;
    const int64_t end = std::min(begin + kTokensOfTask, job_.count);
    Block& block = blocks_[static_cast<size_t>(worker)];
    for (int64_t first = begin; first < end; first += kTogether) {
      const int count = static_cast<int>(std::min<int64_t>(kTogether, end - first));
      if (job_.dtype == DType::kFloat32) encode_tokens<float>(first, count, block);
      if (job_.dtype == DType::kBFloat16) encode_tokens<BFloat16>(first, count, block);
      if (job_.dtype == DType::kFloat16) encode_tokens<Float16>(first, count, block);
    }
  }

  // -1 if no token was refused.
  int64_t first_refused() const { return refused_ == job_.count ? -1 : refused_.load(); }

 private:
  template <typename T>
  void encode_tokens(int64_t first, int count, Block& block) {
    load<T>(job_, first, count, block);
    rotate(block.y.data(), job_.dim, job_.signs);
    measure(job_.dim, block);
    encode_levels(first, count, block);
    for (int r = 0; r < count; ++r)
      if (!block.bounded[r]) take_norm(first + r, norm_above(row_of<T>(job_, first + r), job_.dim));
  }

  void encode_levels(int64_t first, int count, Block& block) const {
    if (job_.fit.bits == 8) return encode_block<8>(job_, first, count, block);
    if (job_.fit.bits == 4) return encode_block<4>(job_, first, count, block);
    if (job_.fit.bits == 2) return encode_block<2>(job_, first, count, block);
    encode_block<1>(job_, first, count, block);
  }

  // Sets the slack of a token without codes, or notes that it is refused.
  void take_norm(int64_t token, float slack) {
    job_.fit.slack[token] = bfloat16_above(slack);
    if (job_.low != nullptr) job_.high.slack[token] = bfloat16_above(slack);
    if (slack >= 0.0f) return;
    int64_t so_far = refused_.load();
    while (token < so_far && !refused_.compare_exchange_weak(so_far, token)) {
    }
  }

  const EncodeJob& job_;
  std::vector<Block> blocks_;
  std::atomic<int64_t> refused_;  // the first token that was refused, or the number of tokens
};

}  // namespace

int64_t encode(const EncodeJob& job, int threads, Interrupt& interrupt) {
  const int64_t tasks = (job.count + kTokensOfTask - 1) / kTokensOfTask;
  threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, tasks)));
  Encoder encoder(job, threads);
  const auto run = [](void* context, int64_t task, int worker) {
    static_cast<Encoder*>(context)->run(task, worker);
  };
  parallel_for(tasks, threads, run, &encoder, interrupt);
  return encoder.first_refused();
}

}  // namespace colbert_fast
