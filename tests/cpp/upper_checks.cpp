#include "upper_checks.h"

#include <cmath>

#include "checks.h"
#include "codes.h"
#include "host/threads.h"
#include "host/upper.h"

namespace {

using colbert_fast::Codes;
using colbert_fast::Interrupt;
using colbert_fast::Tier;
using colbert_fast::Tokens;

uint64_t g_digest = 0;

uint16_t bfloat16_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}

double value_of(uint16_t bfloat16) {
  const uint32_t bits = static_cast<uint32_t>(bfloat16) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return static_cast<double>(value);
}

std::vector<int64_t> starts_of(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> starts;
  int64_t rows = 0;
  for (const int64_t length : lengths) {
    starts.push_back(rows);
    rows += length;
  }
  return starts;
}

int64_t sum_of(const std::vector<int64_t>& lengths) {
  int64_t sum = 0;
  for (const int64_t length : lengths) sum += length;
  return sum;
}

// Documents of random level numbers. What a plane holds beyond `dim` is random too.
struct Documents {
  int64_t dim, count, rows, row_bytes;
  int bits;
  Block<unsigned char> levels, low;
  Block<uint16_t> multipliers, slack;
  Block<int64_t> starts, lengths;
  Block<float> norms;
  std::vector<double> values;  // [rows][dim] m v
  bool planes;

  Documents(int bits_of, bool planes_of, int64_t dim_of, const std::vector<int64_t>& lengths_of,
            Random& random)
      : dim(dim_of),
        count(static_cast<int64_t>(lengths_of.size())),
        rows(sum_of(lengths_of)),
        row_bytes(planes_of ? (dim_of + 1) / 2 : (dim_of * bits_of + 7) / 8),
        bits(bits_of),
        levels(rows * row_bytes, 0),
        low(planes_of ? rows * row_bytes : 0, 0),
        multipliers(rows, 0),
        slack(rows, 0),
        starts(starts_of(lengths_of)),
        lengths(lengths_of),
        norms(count, 0.0f),
        planes(planes_of) {
    for (int64_t i = 0; i < rows * row_bytes; ++i) {
      levels[i] = static_cast<unsigned char>(random.below(256));
      if (planes) low[i] = static_cast<unsigned char>(random.below(256));
    }
    const double a = bits == 8 ? 1.0 : 2.0;
    const double b = bits == 8 ? 128.0 : static_cast<double>((1 << bits) - 1);
    for (int64_t r = 0; r < rows; ++r) {
      multipliers[r] = bfloat16_of(static_cast<float>(random.unit()));
      slack[r] = bfloat16_of(static_cast<float>(std::fabs(random.unit())));
      for (int64_t k = 0; k < dim; ++k)
        values.push_back(value_of(multipliers[r]) * (a * static_cast<double>(level(r, k)) - b));
    }
    for (size_t i = 0; i < lengths_of.size(); ++i) {
      double most = 0.0;
      for (int64_t r = starts[static_cast<int64_t>(i)]; r < starts[static_cast<int64_t>(i)] + lengths_of[i];
           ++r) {
        double squares = 0.0;
        for (int64_t k = 0; k < dim; ++k) {
          const double value = values[static_cast<size_t>(r * dim + k)];
          squares += value * value;
        }
        most = std::max(most, std::sqrt(squares));
      }
      norms[static_cast<int64_t>(i)] = static_cast<float>(most * (1.0 + 1e-7));
    }
  }

  // The number of dimension k of row r.
  int level(int64_t r, int64_t k) const {
    const int plane_bits = planes ? 4 : bits;
    const int64_t byte = r * row_bytes + k % row_bytes;
    const int shift = static_cast<int>(k / row_bytes) * plane_bits;
    const int mask = (1 << plane_bits) - 1;
    const int high = (levels[byte] >> shift) & mask;
    return planes ? 16 * high + ((low[byte] >> shift) & mask) : high;
  }

  Codes codes() const {
    return {bits,
            dim,
            row_bytes,
            levels.get(),
            planes ? low.get() : nullptr,
            multipliers.get(),
            slack.get(),
            norms.get(),
            starts.get(),
            lengths.get(),
            count};
  }
};

// The rotation as rotation.py has it.
std::vector<double> rotated(const float* row, int64_t dim, const float* signs) {
  std::vector<double> numbers(row, row + dim);
  int64_t p = 1;
  while (2 * p <= dim) p *= 2;
  for (int stage = 0; stage < 4; ++stage) {
    for (int64_t k = 0; k < dim; ++k)
      numbers[static_cast<size_t>(k)] *= static_cast<double>(signs[stage * dim + k]);
    double* const part = numbers.data() + (stage % 2 == 0 ? 0 : dim - p);
    for (int64_t half = 1; half < p; half *= 2) {
      for (int64_t k = 0; k < p; ++k) {
        if ((k & half) != 0) continue;
        const double a = part[k];
        part[k] = (a + part[k + half]) / std::sqrt(2.0);
        part[k + half] = (a - part[k + half]) / std::sqrt(2.0);
      }
    }
  }
  return numbers;
}

struct Queries {
  int64_t rows;
  Block<int64_t> starts, lengths;
  Block<float> tokens, signs;
  std::vector<std::vector<double>> rotated_rows;
  std::vector<double> norms;

  Queries(const std::vector<int64_t>& lengths_of, int64_t dim, Random& random)
      : rows(sum_of(lengths_of)),
        starts(starts_of(lengths_of)),
        lengths(lengths_of),
        tokens(rows * dim, 0.0f),
        signs(4 * dim, 1.0f) {
    for (int64_t i = 0; i < 4 * dim; ++i) signs[i] = random.below(2) == 0 ? 1.0f : -1.0f;
    for (int64_t r = 0; r < rows; ++r) {
      double squares = 0.0;
      for (int64_t k = 0; k < dim; ++k) {
        const double value = r % 11 == 5 ? 0.0 : random.unit();
        tokens[r * dim + k] = static_cast<float>(value);
        squares += static_cast<double>(tokens[r * dim + k]) * static_cast<double>(tokens[r * dim + k]);
      }
      norms.push_back(std::sqrt(squares));
      rotated_rows.push_back(rotated(tokens.get() + r * dim, dim, signs.get()));
    }
  }
};

void check_bounds(const Tier& tier, const Documents& d, const Queries& q, int64_t count) {
  const int64_t items = d.count;
  const Tokens tokens = {
      q.tokens.get(), d.dim,  q.rows, q.starts.get(), q.lengths.get(), count, colbert_fast::DType::kFloat32,
      nullptr,        nullptr};
  Block<float> alone(count * items, std::nanf(""));
  Block<float> together(count * items, std::nanf(""));
  Interrupt nobody(nullptr, nullptr);
  colbert_fast::upper(tier, tokens, q.signs.get(), d.codes(), 1, alone.get(), nobody);
  colbert_fast::upper(tier, tokens, q.signs.get(), d.codes(), 4, together.get(), nobody);
  check(alone.same_bits(together), "bounds on four threads");
  for (int64_t i = 0; i < count * items; ++i) {
    uint32_t bits;
    std::memcpy(&bits, alone.get() + i, sizeof bits);
    g_digest = (g_digest ^ bits) * 0x100000001b3;
  }
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < items; ++j) {
      const double bound = static_cast<double>(alone[i * items + j]);
      if (d.lengths[j] == 0) {
        check(alone[i * items + j] == colbert_fast::kEmptyDocumentScore, "the bound of an empty document");
        continue;
      }
      double expected = 0.0;
      double allowed = 0.0;
      for (int64_t t = q.starts[i]; t < q.starts[i] + q.lengths[i]; ++t) {
        const std::vector<double>& row = q.rotated_rows[static_cast<size_t>(t)];
        const double norm = q.norms[static_cast<size_t>(t)];
        double best = -1e300;
        double largest = 0.0;
        for (const double number : row) largest = std::max(largest, std::fabs(number));
        for (int64_t r = d.starts[j]; r < d.starts[j] + d.lengths[j]; ++r) {
          double sum = value_of(d.slack[r]) * norm;
          for (int64_t k = 0; k < d.dim; ++k)
            sum += row[static_cast<size_t>(k)] * d.values[static_cast<size_t>(r * d.dim + k)];
          best = std::max(best, sum);
        }
        expected += best;
        // A number is off by half a step, and one number by a whole step: once in the product, and once in
        // its bound. No slack is above 1.
        const double off = largest / 127.0 * std::sqrt(static_cast<double>(d.dim) / 4.0 + 1.0) + 2e-6 * norm;
        allowed += 2.0 * off * static_cast<double>(d.norms[j]) + 1e-6 * norm;
      }
      check(bound >= expected - 1e-12 * std::fabs(expected), "a bound that is too small");
      check(bound <= expected + allowed + 1e-6 * std::fabs(expected), "a bound that is too large");
    }
  }
}

void check_codes(const Tier& tier, int bits, bool planes, int64_t dim, const std::vector<int64_t>& lq,
                 const std::vector<int64_t>& ld, Random& random) {
  g_case = std::string(tier.name) + ", bounds, bits " + std::to_string(bits) + (planes ? " in planes" : "") +
           ", dim " + std::to_string(dim);
  const Documents d(bits, planes, dim, ld, random);
  const Queries q(lq, dim, random);
  check_bounds(tier, d, q, static_cast<int64_t>(lq.size()));
}

}  // namespace

uint64_t check_upper(const Tier& tier, bool only_shared_work) {
  Random random(20240229);
  g_digest = 0;
  const std::vector<int64_t> lq = {1, 0, 15, 17, 33};
  // Around tiles; and more rows than a chunk has.
  const std::vector<int64_t> ld = {1, 5, 0, 13, 33, 40, 300};
  for (const int kind : {8, 4, 2, 1, 0}) {
    const int bits = kind == 0 ? 8 : kind;
    check_codes(tier, bits, kind == 0, 128, lq, ld, random);
    if (only_shared_work) continue;
    for (const int64_t dim : {1, 7, 31, 64, 100, 257})
      check_codes(tier, bits, kind == 0, dim, lq, ld, random);
    check_codes(tier, bits, kind == 0, 1024, {3, 18}, {70, 2}, random);
  }
  return g_digest;
}
