// Checks every tier against the definition of MaxSim in double. It works without Python, for the sanitizers.
//
// Every input and output lies in memory of exactly its size. With AddressSanitizer this memory is on the
// heap, and a single number that is read or written outside of it is found. Without AddressSanitizer it ends
// before a page that must not be touched. The page catches accesses past the end under an emulator too, and
// the masked loads of AVX-512, which AddressSanitizer does not see. From the root of the repository:
//
//   FILES="tests/cpp/{kernels,encode_checks,upper_checks,checks}.cpp $(ls csrc/*/*.cpp | grep -v -e bindings
//   -e tensors)" FLAGS="-std=c++17 -O1 -g1 -pthread -Icsrc -fno-sanitize-recover=all" c++ $FLAGS
//   -fsanitize=address,undefined $FILES -o kernels c++ $FLAGS -fsanitize=thread $FILES -o kernels
//
// `./kernels` prints the reason why a tier cannot run. It exits with 0 after a line with the tiers that ran,
// or with 1 after the first difference. `./kernels threads` leaves out problems that are too small for more
// than one thread: ThreadSanitizer is slow, and needs no others. `./kernels best` runs only the first tier
// that can run, and `./kernels avx2` runs only that tier.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "checks.h"
#include "encode_checks.h"
#include "host/backward.h"
#include "host/dispatch.h"
#include "host/threads.h"
#include "host/tiers.h"
#include "maxsim.h"
#include "target.h"
#include "upper_checks.h"

namespace {

using colbert_fast::bytes_of;
using colbert_fast::DType;
using colbert_fast::Interrupt;
using colbert_fast::Problem;
using colbert_fast::Tier;
using colbert_fast::Tokens;

// As TOLERANCE in tests/cases.py.
constexpr double kTolerance = 1e-5;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr float kUnwrittenScore = std::numeric_limits<float>::quiet_NaN();
constexpr int32_t kUnwrittenToken = -77;

// Of the bits of all results so far. bfloat16 is left out, because some tiers multiply it in another way.
uint64_t g_digest = 0;

// Writes `value`, which 16 bits round towards zero. The tests decode what was written, so no test needs good
// rounding.
void encode(double value, DType dtype, unsigned char* to) {
  if (dtype == DType::kFloat16) {
    if (!std::isfinite(value)) {
      const uint16_t special = std::isnan(value) ? 0x7e00 : value > 0.0 ? 0x7c00 : 0xfc00;
      std::memcpy(to, &special, sizeof special);
      return;
    }
    int exponent;
    const double fraction = std::frexp(std::fabs(value), &exponent);  // [0.5, 1)
    uint16_t bits = 0;
    if (value != 0.0 && exponent > -14) {
      bits =
          static_cast<uint16_t>(((exponent + 14) << 10) + static_cast<int>((fraction * 2.0 - 1.0) * 1024.0));
    } else {
      bits = static_cast<uint16_t>(std::fabs(value) * 16777216.0);  // subnormal: a multiple of 2^-24
    }
    bits = static_cast<uint16_t>(bits | (std::signbit(value) ? 0x8000 : 0));
    std::memcpy(to, &bits, sizeof bits);
    return;
  }
  const float narrow = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &narrow, sizeof bits);
  const uint16_t upper = static_cast<uint16_t>(bits >> 16);
  std::memcpy(to, dtype == DType::kFloat32 ? static_cast<const void*>(&bits) : &upper,
              static_cast<size_t>(bytes_of(dtype)));
}

double decode(const unsigned char* from, DType dtype) {
  if (dtype == DType::kFloat32) {
    float value;
    std::memcpy(&value, from, sizeof value);
    return static_cast<double>(value);
  }
  uint16_t half;
  std::memcpy(&half, from, sizeof half);
  if (dtype == DType::kBFloat16) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return static_cast<double>(value);
  }
  const int exponent = (half >> 10) & 0x1f;
  const int fraction = half & 0x3ff;
  double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024, exponent - 25);
  if (exponent == 31) magnitude = fraction == 0 ? kInfinity : kNan;
  return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

enum class Layout { kPacked, kGaps, kShared, kScattered };

// One side of a problem: the rows as the kernels read them, and the same numbers in double.
struct Side {
  std::unique_ptr<Block<unsigned char>> bytes;
  std::vector<double> values;  // [rows][dim]
  int64_t rows = 0;
  int64_t stride = 0;
  std::unique_ptr<Block<int64_t>> starts, lengths;
  int64_t count = 0;
  DType dtype = DType::kFloat32;
  std::unique_ptr<Block<float>> scales;
  std::unique_ptr<Block<const void*>> items;

  Tokens tokens() const {
    return {bytes->get(),
            stride,
            rows,
            starts->get(),
            lengths->get(),
            count,
            dtype,
            scales == nullptr ? nullptr : scales->get(),
            items == nullptr ? nullptr : items->get()};
  }
};

struct Case {
  std::vector<int64_t> lq, ld;
  int64_t dim;
  DType dtype;  // if the documents are kInt8, the queries are float32
  Layout layout;
  int64_t pad;  // unused numbers between two rows
  bool skip_zero;
};

// `planted` has rows that are copied into every fifth row and into the last row, so that every tile has a
// winner. Null: nothing is copied.
Side make_side(const std::vector<int64_t>& lengths, const Case& c, const Side* planted, Random& random) {
  Side side;
  side.count = static_cast<int64_t>(lengths.size());
  side.stride = c.dim + c.pad;
  std::vector<int64_t> starts;
  for (int64_t length : lengths) {
    // Items are in order, except with kShared: there every other item begins inside the item before.
    if (c.layout == Layout::kGaps) side.rows += 1;
    const bool shares = c.layout == Layout::kShared && starts.size() % 2 == 1;
    starts.push_back(shares ? std::min(starts.back() + 1, side.rows) : side.rows);
    side.rows = std::max(side.rows, starts.back() + length);
  }
  side.values.resize(static_cast<size_t>(side.rows * c.dim));
  const bool quantised = c.dtype == DType::kInt8 && planted != nullptr;
  side.dtype = c.dtype == DType::kInt8 && !quantised ? DType::kFloat32 : c.dtype;
  if (quantised) side.scales = std::make_unique<Block<float>>(side.rows, 0.0f);
  const int64_t size = bytes_of(side.dtype);
  const int64_t elements = side.rows == 0 ? 0 : (side.rows - 1) * side.stride + c.dim;
  side.bytes = std::make_unique<Block<unsigned char>>(elements * size, static_cast<unsigned char>(0x7e));
  for (int64_t row = 0; row < side.rows; ++row) {
    const bool zero = c.skip_zero && random.below(4) == 0;
    const bool copied = planted != nullptr && planted->rows > 0 && (row % 5 == 0 || row == side.rows - 1);
    const int64_t source = copied ? random.below(planted->rows) : 0;
    for (int64_t k = 0; k < c.dim; ++k) {
      double value = random.unit();
      if (copied) value = planted->values[static_cast<size_t>(source * c.dim + k)];
      if (zero) value = k % 2 == 0 ? 0.0 : -0.0;
      unsigned char* at = side.bytes->get() + (row * side.stride + k) * size;
      double& stored = side.values[static_cast<size_t>(row * c.dim + k)];
      if (quantised) {
        // Rows have different scales. A scale that is applied after the maximum, or to another row, is found.
        const float scale = static_cast<float>(1 + row % 3) / 127.0f;
        (*side.scales)[row] = scale;
        const double level =
            std::max(-128.0, std::min(127.0, std::round(value / static_cast<double>(scale))));
        *at = static_cast<unsigned char>(static_cast<int8_t>(level));
        stored = level * static_cast<double>(scale);
      } else {
        encode(value, side.dtype, at);
        stored = decode(at, side.dtype);
      }
    }
  }
  side.starts = std::make_unique<Block<int64_t>>(starts);
  side.lengths = std::make_unique<Block<int64_t>>(lengths);
  if (c.layout == Layout::kScattered && planted != nullptr && !quantised) {
    side.items = std::make_unique<Block<const void*>>(side.count, nullptr);
    for (int64_t i = 0; i < side.count; ++i) {
      (*side.items)[i] = side.bytes->get() + starts[static_cast<size_t>(i)] * side.stride * size;
    }
  }
  return side;
}

const double* row_of(const Side& side, int64_t item, int64_t token, int64_t dim) {
  return side.values.data() + ((*side.starts)[item] + token) * dim;
}

bool is_padding(const double* row, const Case& c) {
  return c.skip_zero && std::all_of(row, row + c.dim, [](double value) { return value == 0.0; });
}

double dot(const double* a, const double* b, int64_t dim) {
  double sum = 0.0;
  for (int64_t k = 0; k < dim; ++k) sum += a[k] * b[k];
  return sum;
}

// The dot product of tiers that fuse multiplication and addition, to the last bit. It cuts the numbers into
// blocks of 128, each one chain, and adds the sums of equally many blocks in pairs. Sums that are left at the
// end are added from the last to the first.
float fused_dot(const double* a, const double* b, int64_t dim) {
  constexpr int64_t kBlock = 128;
  std::vector<std::pair<int64_t, float>> waiting;  // (blocks, their sum)
  for (int64_t begin = 0; begin == 0 || begin < dim; begin += kBlock) {
    float sum = 0.0f;
    for (int64_t k = begin; k < std::min(dim, begin + kBlock); ++k)
      sum = std::fma(static_cast<float>(a[k]), static_cast<float>(b[k]), sum);
    int64_t blocks = 1;
    const bool last = begin + kBlock >= dim;
    while (!waiting.empty() && (last || waiting.back().first == blocks)) {
      sum = waiting.back().second + sum;
      blocks += waiting.back().first;
      waiting.pop_back();
    }
    waiting.emplace_back(blocks, sum);
  }
  return waiting.back().second;
}

// The error that is allowed for the sum of `terms` dot products of numbers of at most 1.
double bound(int64_t dim, int64_t terms) {
  return kTolerance * (1.0 + static_cast<double>(dim) / 3.0) *
         static_cast<double>(std::max<int64_t>(terms, 1));
}

// Checks one pair of a result. It checks the last bit too if the dot products of the tier are `fused`, like
// fused_dot(). True if the document has no token.
bool check_pair(bool fused, const Case& c, const Side& q, const Side& d, int64_t query, int64_t document,
                float score, const int32_t* argmax, int64_t max_lq) {
  const int64_t ld = (*d.lengths)[document];
  const int64_t lq = (*q.lengths)[query];
  std::vector<int64_t> kept;
  for (int64_t j = 0; j < ld; ++j) {
    if (!is_padding(row_of(d, document, j, c.dim), c)) kept.push_back(j);
  }
  double sum = 0.0;
  double fused_sum = 0.0;
  int64_t terms = 0;
  for (int64_t t = 0; t < max_lq; ++t) {
    const bool scores = t < lq && !kept.empty() && !is_padding(row_of(q, query, t, c.dim), c);
    if (!scores) {
      if (argmax != nullptr) check(argmax[t] == -1, "the argmax of no token");
      continue;
    }
    const double* q_row = row_of(q, query, t, c.dim);
    double best = -kInfinity;
    for (int64_t j : kept) best = std::max(best, dot(q_row, row_of(d, document, j, c.dim), c.dim));
    sum += best;
    ++terms;
    if (argmax == nullptr) continue;
    const int64_t winner = argmax[t];
    check(std::binary_search(kept.begin(), kept.end(), winner), "the range of an argmax");
    const double* won = row_of(d, document, winner, c.dim);
    check(std::fabs(dot(q_row, won, c.dim) - best) <= bound(c.dim, 1), "an argmax");
    bool first = true;
    for (int64_t j = 0; j < winner; ++j)
      first &= !std::equal(won, won + c.dim, row_of(d, document, j, c.dim));
    check(first, "the first of equals");
    if (fused) fused_sum += static_cast<double>(fused_dot(q_row, won, c.dim));
  }
  if (kept.empty()) {
    check(score == colbert_fast::kEmptyDocumentScore, "the score of an empty document");
    return true;
  }
  check(std::fabs(static_cast<double>(score) - sum) <= bound(c.dim, terms), "a score");
  check(!fused || argmax == nullptr || score == static_cast<float>(fused_sum), "the last bit of a score");
  return false;
}

template <typename T>
void digest(const Block<T>& block, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    uint32_t bits;
    std::memcpy(&bits, block.get() + i, sizeof bits);
    g_digest = (g_digest ^ bits) * 0x100000001b3;  // FNV-1a, one word at a time
  }
}

struct Result {
  Block<float> scores;
  Block<int32_t> argmax;
  bool empty_document;
};

Result run(const Tier& tier, const Problem& p, int64_t pairs, int threads, bool argmax) {
  Result result = {{pairs, kUnwrittenScore}, {argmax ? pairs * p.max_lq : 0, kUnwrittenToken}, false};
  Interrupt nobody(nullptr, nullptr);
  result.empty_document = colbert_fast::score(tier, p, threads, result.scores.get(),
                                              argmax ? result.argmax.get() : nullptr, nobody);
  return result;
}

void check_backward(const Tier& tier, const Case& c, const Problem& p, const Side& q, const Side& d,
                    const std::vector<std::pair<int64_t, int64_t>>& pairs, const Block<int32_t>& argmax,
                    Random& random) {
  std::vector<float> weights;
  for (size_t i = 0; i < pairs.size(); ++i) weights.push_back(static_cast<float>(random.unit()));
  const Block<float> grad_scores(weights);
  for (const bool to_queries : {true, false}) {
    const Side& side = to_queries ? q : d;
    const Side& other = to_queries ? d : q;
    std::vector<double> expected(side.values.size(), 0.0);
    std::vector<int64_t> terms(static_cast<size_t>(side.rows), 0);
    for (size_t i = 0; i < pairs.size(); ++i) {
      for (int64_t t = 0; t < (*q.lengths)[pairs[i].first]; ++t) {
        const int64_t j = argmax[static_cast<int64_t>(i) * p.max_lq + t];
        if (j < 0) continue;
        const int64_t q_row = (*q.starts)[pairs[i].first] + t;
        const int64_t d_row = (*d.starts)[pairs[i].second] + j;
        const int64_t to = to_queries ? q_row : d_row;
        const int64_t from = to_queries ? d_row : q_row;
        ++terms[static_cast<size_t>(to)];
        for (int64_t k = 0; k < c.dim; ++k) {
          expected[static_cast<size_t>(to * c.dim + k)] +=
              static_cast<double>(weights[i]) * other.values[static_cast<size_t>(from * c.dim + k)];
        }
      }
    }
    Block<float> alone(side.rows * c.dim, 0.0f);
    Block<float> together(side.rows * c.dim, 0.0f);
    Interrupt nobody(nullptr, nullptr);
    colbert_fast::backward(tier, p, 1, to_queries, grad_scores.get(), argmax.get(), alone.get(), nobody);
    colbert_fast::backward(tier, p, 4, to_queries, grad_scores.get(), argmax.get(), together.get(), nobody);
    check(alone.same_bits(together), "a gradient on four threads");
    for (int64_t i = 0; i < side.rows * c.dim; ++i) {
      const double allowed = kTolerance * static_cast<double>(1 + terms[static_cast<size_t>(i / c.dim)]);
      check(std::fabs(static_cast<double>(alone[i]) - expected[static_cast<size_t>(i)]) <= allowed,
            "a gradient");
    }
  }
}

// No score exceeds its ceiling, and no ceiling is NaN.
void check_ceilings(const Tier& tier, const Problem& p, const Block<float>& scores, int64_t count) {
  if (!colbert_fast::has_ceilings(tier, p)) return;
  for (const int threads : {1, 4}) {
    Block<float> most(count, kUnwrittenScore);
    Interrupt nobody(nullptr, nullptr);
    colbert_fast::ceilings(tier, p, threads, most.get(), nobody);
    for (int64_t i = 0; i < count; ++i) {
      const bool infinite = static_cast<double>(most[i]) == kInfinity;
      check(std::isnan(scores[i]) ? infinite : scores[i] <= most[i], "a ceiling");
    }
  }
}

void check_problem(const Tier& tier, const Case& c, const Side& q, const Side& d,
                   const std::vector<int64_t>* pair_list, Random& random) {
  std::vector<std::pair<int64_t, int64_t>> pairs;
  Problem p = {};
  p.q = q.tokens();
  p.d = d.tokens();
  p.dim = c.dim;
  p.max_lq = c.lq.empty() ? 0 : *std::max_element(c.lq.begin(), c.lq.end());
  p.skip_zero_q = p.skip_zero_d = c.skip_zero;
  p.all_pairs = pair_list == nullptr;
  const Block<int64_t> listed(pair_list == nullptr ? std::vector<int64_t>() : *pair_list);
  if (pair_list != nullptr) {
    p.pairs = listed.get();
    p.num_pairs = static_cast<int64_t>(pair_list->size()) / 2;
    for (int64_t i = 0; i < p.num_pairs; ++i) pairs.emplace_back(listed[2 * i], listed[2 * i + 1]);
  } else {
    for (int64_t i = 0; i < q.count; ++i) {
      for (int64_t j = 0; j < d.count; ++j) pairs.emplace_back(i, j);
    }
  }
  const int64_t count = static_cast<int64_t>(pairs.size());
  const Result result = run(tier, p, count, 1, true);
  // Some tiers multiply bfloat16 in another way, and the portable tier need not fuse its multiply-adds.
  const bool fused = c.dtype != DType::kBFloat16 && &tier != &colbert_fast::kPortable;
  bool empty_document = false;
  for (int64_t i = 0; i < count; ++i) {
    const auto& pair = pairs[static_cast<size_t>(i)];
    empty_document |= check_pair(fused, c, q, d, pair.first, pair.second, result.scores[i],
                                 result.argmax.get() + i * p.max_lq, p.max_lq);
  }
  check(result.empty_document == empty_document, "the report of an empty document");
  if (c.dtype != DType::kBFloat16) {
    digest(result.scores, count);
    digest(result.argmax, count * p.max_lq);
  }
  for (const int threads : {1, 4}) {
    const Result again = run(tier, p, count, threads, threads == 4);
    check(again.scores.same_bits(result.scores),
          threads == 1 ? "scores without argmax" : "scores on four threads");
    check(threads == 1 || again.argmax.same_bits(result.argmax), "argmax on four threads");
    check(again.empty_document == empty_document, "the report of an empty document");
  }
  check_ceilings(tier, p, result.scores, count);
  check_backward(tier, c, p, q, d, pairs, result.argmax, random);
}

void check_case(const Tier& tier, const Case& c, Random& random) {
  g_case = std::string(tier.name) + ", dtype " + std::to_string(static_cast<int>(c.dtype)) + ", dim " +
           std::to_string(c.dim) + ", layout " + std::to_string(static_cast<int>(c.layout)) + ", pad " +
           std::to_string(c.pad) + ", skip_zero " + std::to_string(c.skip_zero) + ", lq[0] " +
           std::to_string(c.lq[0]) + ", ld[0] " + std::to_string(c.ld[0]);
  const Side q = make_side(c.lq, c, nullptr, random);
  const Side d = make_side(c.ld, c, &q, random);
  check_problem(tier, c, q, d, nullptr, random);
  std::vector<int64_t> pairs;
  for (int64_t i = 0; i < 6 * d.count; ++i) {
    pairs.push_back(random.below(q.count));
    pairs.push_back(random.below(d.count));
  }
  check_problem(tier, c, q, d, &pairs, random);
}

// Query and document lengths near the sizes of tiles (12, 6 and 4 rows), of panels (32, 16 and 8 lanes) and
// of vectors (16, 8 and 4 floats). A last panel is only as wide as one vector if that is enough.
const std::vector<std::pair<std::vector<int64_t>, std::vector<int64_t>>> kLengths = {
    {{1}, {1}},
    {{8, 7, 9, 4, 0, 3}, {4, 0, 3, 5, 2, 1, 8}},
    {{15, 16, 17}, {11, 12, 13, 6, 7}},
    {{5, 20, 19, 21, 36, 37}, {5, 6, 7, 12, 18, 19}},
    {{31, 32, 33}, {23, 24, 25, 0, 61}},
    {{65}, {0}},
    {{0, 0}, {5, 2}},
    {{64, 33}, {170, 40, 41, 32}},  // enough rows to be screened
};
const std::vector<int64_t> kDims = {1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 130};
// Scoring these, and their gradients, is more work than kSerialFlops of plan.cpp, so that four threads share
// it.
const std::pair<std::vector<int64_t>, std::vector<int64_t>> kParallel = {
    {20, 33, 0, 40, 8}, {13, 0, 5, 12, 1, 9, 24, 7, 10, 6, 18, 2, 14, 3, 11, 7, 4, 8, 22, 9}};
constexpr int64_t kParallelDim = 264;

void check_tier(const Tier& tier, bool only_shared_work) {
  Random random(20240229);
  for (int i = 0; i < 4; ++i) {
    const DType dtype = static_cast<DType>(i);
    check_case(tier,
               {kParallel.first, kParallel.second, kParallelDim, dtype, static_cast<Layout>(i), 0, false},
               random);
    if (only_shared_work) continue;
    for (const auto& lengths : kLengths) {
      for (const int64_t dim : kDims) {
        const Layout layout = static_cast<Layout>(random.below(4));
        const int64_t pad = random.below(2) * 3;
        check_case(tier, {lengths.first, lengths.second, dim, dtype, layout, pad, false}, random);
        check_case(tier, {lengths.first, lengths.second, dim, dtype, layout, pad, true}, random);
      }
    }
  }
}

// Items of these lengths. `bytes` holds all of their rows, without gaps.
Side side_of(const std::vector<int64_t>& lengths, int64_t dim, DType dtype,
             const std::vector<unsigned char>& bytes) {
  Side side;
  side.dtype = dtype;
  side.stride = dim;
  side.count = static_cast<int64_t>(lengths.size());
  std::vector<int64_t> starts;
  for (const int64_t length : lengths) {
    starts.push_back(side.rows);
    side.rows += length;
  }
  side.bytes = std::make_unique<Block<unsigned char>>(bytes);
  side.starts = std::make_unique<Block<int64_t>>(starts);
  side.lengths = std::make_unique<Block<int64_t>>(lengths);
  return side;
}

Problem all_pairs(const Side& q, const Side& d, int64_t dim, int64_t max_lq) {
  Problem p = {};
  p.q = q.tokens();
  p.d = d.tokens();
  p.dim = dim;
  p.all_pairs = true;
  p.max_lq = max_lq;
  return p;
}

std::vector<unsigned char> encoded(const std::vector<double>& values, DType dtype) {
  const size_t size = static_cast<size_t>(bytes_of(dtype));
  std::vector<unsigned char> bytes(values.size() * size);
  for (size_t i = 0; i < values.size(); ++i) encode(values[i], dtype, bytes.data() + i * size);
  return bytes;
}

// The score of a number with a 1 must be the number itself. This shows that every number of a dtype is
// widened exactly, also subnormals, infinities and NaNs, and in every position of a vector and of a tail.
void check_every_number(const Tier& tier, DType dtype) {
  g_case = std::string(tier.name) + ", every number of dtype " + std::to_string(static_cast<int>(dtype));
  constexpr int64_t kDim = 19;
  const int64_t size = bytes_of(dtype);
  const int64_t numbers = int64_t{1} << (8 * size);
  std::vector<unsigned char> bytes(static_cast<size_t>(numbers * kDim * size));
  for (int64_t i = 0; i < numbers; ++i) {
    const uint16_t bits = static_cast<uint16_t>(i);
    std::memcpy(bytes.data() + (i * kDim + i % kDim) * size, &bits, static_cast<size_t>(size));
  }
  const DType q_dtype = dtype == DType::kInt8 ? DType::kFloat32 : dtype;
  const Side q = side_of({1}, kDim, q_dtype, encoded(std::vector<double>(kDim, 1.0), q_dtype));
  Side d = side_of(std::vector<int64_t>(static_cast<size_t>(numbers), 1), kDim, dtype, bytes);
  if (dtype == DType::kInt8) d.scales = std::make_unique<Block<float>>(numbers, 0.3f);
  const Result result = run(tier, all_pairs(q, d, kDim, 1), numbers, 1, false);
  for (int64_t i = 0; i < numbers; ++i) {
    const double expected = dtype == DType::kInt8
                                ? static_cast<double>(0.3f * static_cast<float>(static_cast<int8_t>(i)))
                                : decode(bytes.data() + (i * kDim + i % kDim) * size, dtype);
    const double score = static_cast<double>(result.scores[i]);
    check(score == expected || (std::isnan(score) && std::isnan(expected)), "a widened number");
  }
}

// One query token, a document, its score and the token that wins, as in test_ieee_arithmetic.
struct Special {
  std::vector<double> q, d;
  double score;
  int32_t winner;
};
const std::vector<Special> kSpecial = {
    {{kInfinity, 0.0}, {1.0, 1.0, 2.0, 1.0}, kInfinity, 0},
    {{1.0, 1.0}, {-kInfinity, 1.0, 5.0, 1.0}, 6.0, 1},
    {{1.0, 1.0}, {-kInfinity, 1.0, -kInfinity, 2.0}, -kInfinity, 0},
    {{1.0, 1.0}, {3.0, 1.0, kInfinity, 1.0}, kInfinity, 1},
    {{1.0, 1.0}, {3.0, 1.0, kInfinity, -kInfinity}, kNan, 1},
    {{kInfinity, 1.0}, {3.0, 1.0, 0.0, 1.0}, kNan, 1},
    {{1.0, 1.0}, {3.0, 1.0, kNan, 1.0, 9.0, 1.0}, kNan, 1},
    {{1.0, 1.0}, {3.0, 1.0, 2.0, kNan, kNan, 1.0}, kNan, 1},
    {{1.0, kNan}, {3.0, 1.0, 4.0, 1.0}, kNan, 0},
    {{1e38, 1e38}, {1.0, 0.0, 10.0, 10.0}, kInfinity, 1},
    {{1e38, 1e38}, {-10.0, -10.0, -10.0, -1.0}, -kInfinity, 0},
    {{1e-30, 0.0}, {-1e-12, 0.0, 1e-12, 0.0}, 1e-42, 1},
    {{1e-30, 0.0}, {-1e-30, 0.0, 0.0, 1.0}, 0.0, 0},
    {{1.0, 0.0}, {-0.0, 1.0, 0.0, 1.0}, 0.0, 0},
    {{-0.0, -0.0}, {1.0, 1.0, 2.0, 2.0}, 0.0, 0},
    {{0x1p-126, 0.0}, {0.25, 0.0, 0.5, 0.0}, 0x1p-127, 1},
};

bool holds(DType dtype, const std::vector<double>& values) {
  return std::all_of(values.begin(), values.end(), [dtype](double value) {
    const double stored = decode(encoded({value}, dtype).data(), dtype);
    return stored == static_cast<double>(static_cast<float>(value)) || std::isnan(value);
  });
}

// `before` copies of the first row come before the rows of the document, and `others` queries after the
// query.
void check_special(const Tier& tier, const Special& special, DType dtype, int64_t before, int64_t others) {
  g_case = std::string(tier.name) + ", special case " + std::to_string(&special - kSpecial.data()) +
           ", dtype " + std::to_string(static_cast<int>(dtype)) + ", rows before " + std::to_string(before) +
           ", other queries " + std::to_string(others);
  std::vector<double> rows;
  for (int64_t i = 0; i < before; ++i) rows.insert(rows.end(), special.d.begin(), special.d.begin() + 2);
  rows.insert(rows.end(), special.d.begin(), special.d.end());
  std::vector<double> tokens = special.q;
  tokens.resize(static_cast<size_t>(2 + 2 * others), 0.5);
  const Side q =
      side_of(std::vector<int64_t>(static_cast<size_t>(1 + others), 1), 2, dtype, encoded(tokens, dtype));
  const Side d = side_of({static_cast<int64_t>(rows.size() / 2)}, 2, dtype, encoded(rows, dtype));
  const Problem p = all_pairs(q, d, 2, 1);
  const Result result = run(tier, p, 1 + others, 1, true);
  const double score = static_cast<double>(result.scores[0]);
  // A subnormal number has few bits, so its error is compared with an absolute bound.
  const bool close = std::fabs(score - special.score) <= kTolerance * std::fabs(special.score) + 1e-44;
  check(score == special.score || (std::isnan(score) && std::isnan(special.score)) || close, "a score");
  check(result.argmax[0] == special.winner + (special.winner == 0 ? 0 : before), "an argmax");
  check(run(tier, p, 1 + others, 1, false).scores.same_bits(result.scores), "scores without argmax");
  check_ceilings(tier, p, result.scores, 1 + others);
}

void check_special_values(const Tier& tier) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kInt8}) check_every_number(tier, dtype);
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (const Special& special : kSpecial) {
      if (!holds(dtype, special.q) || !holds(dtype, special.d)) continue;
      for (const int64_t before : {0, 11}) {
        for (const int64_t others : {0, 4, 40}) check_special(tier, special, dtype, before, others);
      }
    }
  }
}

// Sums whose error would grow with the number of dimensions in a plain loop: sums of equal products, and sums
// of one large product before many that are smaller than its last bit. The error is compared with the sum of
// |products|.
void check_large_dims(const Tier& tier) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kInt8}) {
    const bool fused = dtype != DType::kBFloat16 && &tier != &colbert_fast::kPortable;
    for (const int64_t dim : {128, 129, 255, 256, 257, 384, 769, 2048, 2049, 6200, 33000}) {
      g_case = std::string(tier.name) + ", dtype " + std::to_string(static_cast<int>(dtype)) +
               ", large dim " + std::to_string(dim);
      const DType q_dtype = dtype == DType::kInt8 ? DType::kFloat32 : dtype;
      const int64_t lq = dim < 1000 ? 20 : 2;
      const int64_t ld = dim < 1000 ? 50 : 2;  // 50 rows are enough for a tier that screens
      // The square of 2.4e-4 is less than 2^-24.
      std::vector<double> tokens(static_cast<size_t>(lq * dim), 0.7);
      std::vector<double> rows(static_cast<size_t>(ld * dim));
      for (int64_t k = 0; k < dim; ++k) {
        for (int64_t t = 1; t < lq; t += 2) tokens[static_cast<size_t>(t * dim + k)] = k == 0 ? 1.0 : 2.4e-4;
        for (int64_t j = 0; j < ld; ++j)
          rows[static_cast<size_t>(j * dim + k)] = j % 2 == 0 ? 0.1 + 0.02 * static_cast<double>(j)
                                                   : k == 0   ? 1.0
                                                              : 2.4e-4;
      }
      std::vector<unsigned char> bytes;
      if (dtype == DType::kInt8) {
        for (double& value : rows) {
          const double level = std::max(1.0, std::round(value * 64.0));
          bytes.push_back(static_cast<unsigned char>(level));
          value = level * 0.25;
        }
      } else {
        bytes = encoded(rows, dtype);
        for (size_t i = 0; i < rows.size(); ++i)
          rows[i] = decode(bytes.data() + static_cast<int64_t>(i) * bytes_of(dtype), dtype);
      }
      const std::vector<unsigned char> q_bytes = encoded(tokens, q_dtype);
      for (size_t i = 0; i < tokens.size(); ++i)
        tokens[i] = decode(q_bytes.data() + static_cast<int64_t>(i) * bytes_of(q_dtype), q_dtype);
      // Each row is a document, and all rows together are another one.
      std::vector<int64_t> lengths(static_cast<size_t>(ld), 1);
      lengths.push_back(ld);
      bytes.resize(2 * bytes.size());
      std::copy(bytes.begin(), bytes.begin() + static_cast<int64_t>(bytes.size()) / 2,
                bytes.begin() + static_cast<int64_t>(bytes.size()) / 2);
      const Side q = side_of(std::vector<int64_t>(static_cast<size_t>(lq), 1), dim, q_dtype, q_bytes);
      Side d = side_of(lengths, dim, dtype, bytes);
      if (dtype == DType::kInt8) d.scales = std::make_unique<Block<float>>(2 * ld, 0.25f);
      const Result result = run(tier, all_pairs(q, d, dim, 1), lq * (ld + 1), 1, false);
      for (int64_t t = 0; t < lq; ++t) {
        const double* token = tokens.data() + t * dim;
        const float* scores = result.scores.get() + t * (ld + 1);
        for (int64_t j = 0; j < ld; ++j) {
          const double exact = dot(token, rows.data() + j * dim, dim);  // of positive products
          check(std::fabs(static_cast<double>(scores[j]) - exact) <= kTolerance * exact,
                "a score of many dimensions");
          check(!fused || scores[j] == fused_dot(token, rows.data() + j * dim, dim),
                "the last bit of a score of many dimensions");
        }
        check(scores[ld] == *std::max_element(scores, scores + ld), "the maximum of many dimensions");
      }
    }
  }
}

// Several callers at the same time: one has the pool, the others work alone, and all get the same bits.
void check_concurrent_callers(const Tier& tier) {
  Random random(7);
  const Case c = {
      kParallel.first, kParallel.second, kParallelDim, DType::kBFloat16, Layout::kPacked, 0, false};
  g_case = std::string(tier.name) + ", concurrent callers";
  const Side q = make_side(c.lq, c, nullptr, random);
  const Side d = make_side(c.ld, c, &q, random);
  const Problem p = all_pairs(q, d, c.dim, 40);
  const int64_t pairs = q.count * d.count;
  const Result expected = run(tier, p, pairs, 1, true);
  std::vector<int> same(4, 0);
  std::vector<std::thread> callers;
  for (int& mine : same) {
    callers.emplace_back([&, out = &mine] {
      for (int i = 0; i < 4; ++i) {
        const Result result = run(tier, p, pairs, 1 + i % 4, true);
        *out += result.scores.same_bits(expected.scores) && result.argmax.same_bits(expected.argmax);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const int mine : same) check(mine == 4, "a result of concurrent callers");
}

// These tasks end only when the call is given up. The caller must hear of the interrupt both while it works
// and while it waits for others.
void check_interrupts() {
  g_case = "interrupts";
  for (const int threads : {1, 4}) {
    std::atomic<int64_t> begun{0};
    struct Call {
      std::atomic<int64_t>* begun;
      Interrupt* interrupt;
    };
    const auto asked = [](void* context) { return static_cast<std::atomic<int64_t>*>(context)->load() > 0; };
    Interrupt interrupt(asked, &begun);
    Call call = {&begun, &interrupt};
    const auto run = [](void* context, int64_t, int worker) {
      Call& c = *static_cast<Call*>(context);
      c.begun->fetch_add(1);
      while (worker == 0 ? !c.interrupt->look() : !c.interrupt->heard()) std::this_thread::yield();
    };
    colbert_fast::parallel_for(1000, threads, run, &call, interrupt);
    check(interrupt.heard() && begun.load() <= threads, "that all threads give up");
  }
}

// Results below 2^-126 become zero on this thread, or stay.
void flush_denormals(bool flush) {
#if CF_X86_64
  _MM_SET_FLUSH_ZERO_MODE(flush ? _MM_FLUSH_ZERO_ON : _MM_FLUSH_ZERO_OFF);
#elif CF_AARCH64 && defined(__GNUC__)
  constexpr uint64_t kFlush = uint64_t{1} << 24;
  uint64_t control;
  __asm__ volatile("mrs %0, fpcr" : "=r"(control));
  control = flush ? control | kFlush : control & ~kFlush;
  __asm__ volatile("msr fpcr, %0" : : "r"(control));
#else
  static_cast<void>(flush);
#endif
}

float product(float a, float b) {
  const volatile float factor = a;
  return factor * b;
}

// Every thread treats denormals as the caller does. A task ends when each thread has one.
void check_denormals() {
  g_case = "denormals";
  constexpr int kThreads = 4;
  struct Call {
    std::atomic<int> begun{0};
    float products[kThreads] = {};
  };
  const auto run = [](void* context, int64_t task, int) {
    Call& c = *static_cast<Call*>(context);
    c.begun.fetch_add(1);
    while (c.begun.load() < kThreads) std::this_thread::yield();
    c.products[task] = product(1e-20f, 1e-20f);
  };
  for (const bool flush : {true, false}) {
    flush_denormals(flush);
    Call call;
    Interrupt interrupt(nullptr, nullptr);
    colbert_fast::parallel_for(kThreads, kThreads, run, &call, interrupt);
    const float expected = product(1e-20f, 1e-20f);
    for (const float mine : call.products) check(mine == expected, "a product of a thread");
  }
}

}  // namespace

int main(int argc, char** argv) {
  const bool only_shared_work = argc > 1 && std::strcmp(argv[1], "threads") == 0;
  const bool only_the_best = argc > 1 && std::strcmp(argv[1], "best") == 0;
  const char* only = argc > 1 && !only_shared_work && !only_the_best ? argv[1] : nullptr;
  std::string tiers;
  uint64_t expected_digest = 0;
  uint64_t expected_upper_digest = 0;
  for (const Tier* const* t = colbert_fast::kTiers; *t != nullptr; ++t) {
    if (only != nullptr && std::strcmp(only, (*t)->name) != 0) continue;
    if (const char* reason = colbert_fast::refused(**t)) {
      std::printf("kernels: no %s: %s\n", (*t)->name, reason);
      continue;
    }
    if (only_the_best && !tiers.empty()) continue;
    g_digest = 0;
    check_tier(**t, only_shared_work);
    const uint64_t upper_digest = check_upper(**t, only_shared_work);
    // All tiers compute the same chains of fused multiply-adds, with screening or without it, so their bits
    // are the same. The portable tier need not fuse its multiply-adds.
    const bool is_portable = *t == &colbert_fast::kPortable;
    g_case = (*t)->name;
    check(is_portable || expected_digest == 0 || g_digest == expected_digest, "a bit of the other tiers'");
    check(is_portable || expected_upper_digest == 0 || upper_digest == expected_upper_digest,
          "a bit of the other tiers' bounds");
    if (!is_portable) expected_digest = g_digest;
    if (!is_portable) expected_upper_digest = upper_digest;
    if (!only_shared_work) {
      check((*t)->narrow_bytes == 0 || colbert_fast::counters(**t).chunks_screened > 0,
            "the count of screened chunks");
      check_special_values(**t);
      check_large_dims(**t);
    }
    check_concurrent_callers(**t);
    check(colbert_fast::counters(**t).calls > 0, "the call counter");
    tiers += std::string(" ") + (*t)->name;
  }
  check_encode(3);
  check_interrupts();
  check_denormals();
  check(colbert_fast::pool_size() == 3, "the size of the pool");
  std::printf("kernels: %lld checks passed:%s\n", static_cast<long long>(g_checks), tiers.c_str());
  return 0;
}
