#include "encode_checks.h"

#include <cmath>

#include "checks.h"
#include "host/encode.h"
#include "host/rotation.h"
#include "host/threads.h"

using colbert_fast::DType;
using colbert_fast::EncodeJob;
using colbert_fast::kRotatedTogether;

namespace {

float from_bfloat16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

struct Fit {
  explicit Fit(int64_t count) : multipliers(count, 0), slack(count, 0), norms(count, 0.0f) {}
  colbert_fast::Fit of(int bits) { return {bits, multipliers.get(), slack.get(), norms.get()}; }

  Block<uint16_t> multipliers, slack;
  Block<float> norms;
};

struct Codes {
  Codes(const Block<float>& tokens, const Block<float>& signs, int64_t count, int64_t dim, int bits,
        bool planes, int threads)
      : whole(count),
        high(count),
        width(colbert_fast::packed_bytes(dim, planes ? 4 : bits)),
        levels(count * width, 0),
        low(planes ? count * width : 0, 0) {
    EncodeJob job{};
    job.tokens = tokens.get();
    job.dtype = DType::kFloat32;
    job.row_stride = dim;
    job.count = count;
    job.dim = dim;
    job.signs = signs.get();
    job.fit = whole.of(bits);
    job.high = high.of(4);
    job.levels = levels.get();
    job.low = planes ? low.get() : nullptr;
    colbert_fast::Interrupt none(nullptr, nullptr);
    check(colbert_fast::encode(job, threads, none) == -1, "a token that was refused");
  }

  Fit whole, high;
  int64_t width;
  Block<uint8_t> levels, low;
};

int level_of(const uint8_t* row, int64_t width, int bits, int64_t i) {
  return row[i % width] >> (bits * static_cast<int>(i / width)) & ((1 << bits) - 1);
}

// Checks the codes of one token: `y` is the token after the rotation.
void check_token(const Codes& codes, bool planes, int bits, int64_t token, const std::vector<double>& y) {
  for (const bool high : {false, true}) {
    if (high && !planes) continue;
    const Fit& fit = high ? codes.high : codes.whole;
    const double multiplier = static_cast<double>(from_bfloat16(fit.multipliers[token]));
    double residual = 0, norm = 0, squares = 0;
    for (size_t i = 0; i < y.size(); ++i) {
      const auto at = static_cast<int64_t>(i);
      const int packed = planes ? 4 : bits;
      int level = level_of(codes.levels.get() + token * codes.width, codes.width, packed, at);
      if (planes && !high)
        level = 16 * level + level_of(codes.low.get() + token * codes.width, codes.width, 4, at);
      const int its_bits = high ? 4 : bits;
      const int integer = its_bits == 8 ? level - 128 : 2 * level - (1 << its_bits) + 1;
      const double value = multiplier * integer;
      residual += (y[i] - value) * (y[i] - value);
      norm += value * value;
      squares += y[i] * y[i];
    }
    const double slack = static_cast<double>(from_bfloat16(fit.slack[token]));
    check(std::sqrt(residual) <= slack + 1e-13 * std::sqrt(squares), "a slack");
    check(slack <= 1.01 * std::sqrt(squares) + 0x1p-119, "a slack that is longer than its token");
    check(std::sqrt(norm) <= static_cast<double>(fit.norms[token]), "a norm");
  }
}

}  // namespace

void check_encode(int threads) {
  Random random(20);
  for (const int64_t dim : {1, 2, 3, 8, 31, 96, 128, 130}) {
    for (const int64_t count : {0, 1, 8, 13, 1100}) {
      if (count == 1100 && dim > 31) continue;
      Block<float> tokens(count * dim, 0.0f), signs(4 * dim, 1.0f);
      for (int64_t i = 0; i < 4 * dim; ++i) signs[i] = random.below(2) == 0 ? 1.0f : -1.0f;
      const float scales[] = {1.0f, 1e-3f, 0.0f, 1e-25f, 1e30f, 1e-41f, 7.0f};
      for (int64_t i = 0; i < count * dim; ++i)
        tokens[i] = static_cast<float>(random.unit()) * scales[i / dim % 7];
      for (const int kind : {8, 4, 2, 1, 44}) {
        const bool planes = kind == 44;
        const int bits = planes ? 8 : kind;
        g_case = "encoding of dim " + std::to_string(dim) + ", " + std::to_string(count) + " tokens, kind " +
                 std::to_string(kind);
        const Codes codes(tokens, signs, count, dim, bits, planes, 1);
        const Codes same(tokens, signs, count, dim, bits, planes, threads);
        check(codes.levels.same_bits(same.levels) && codes.low.same_bits(same.low) &&
                  codes.whole.multipliers.same_bits(same.whole.multipliers) &&
                  codes.whole.slack.same_bits(same.whole.slack),
              "a code on several threads");
        std::vector<double> side_by_side(static_cast<size_t>(kRotatedTogether * dim));
        std::vector<double> y(static_cast<size_t>(dim));
        for (int64_t token = 0; token < count; ++token) {
          for (int64_t i = 0; i < dim; ++i)
            side_by_side[static_cast<size_t>(i * kRotatedTogether)] =
                static_cast<double>(tokens[token * dim + i]);
          colbert_fast::rotate(side_by_side.data(), dim, signs.get());
          for (size_t i = 0; i < y.size(); ++i) y[i] = side_by_side[i * kRotatedTogether];
          check_token(codes, planes, bits, token, y);
        }
      }
    }
  }
}
