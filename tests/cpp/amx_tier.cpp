// Checks the amx tier over the model of AMX: it asks for the tiles when it is first called, it leaves them as
// it found them, and its results equal another tier's. tests/test_sanitizers.py builds this program, and
// kernels.cpp, with amx_model.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "amx_model/model.h"
#include "host/dispatch.h"
#include "host/tiers.h"
#include "maxsim.h"

namespace {

using namespace colbert_fast;

int64_t g_checks = 0;

void check(bool passed, const std::string& what) {
  ++g_checks;
  if (passed) return;
  std::fprintf(stderr, "amx: %s\n", what.c_str());
  std::exit(1);
}

// A matrix of numbers of up to `size`, in memory of exactly the right size. Every seventh row repeats the row
// before, so that there are ties.
std::unique_ptr<unsigned char[]> numbers(DType dtype, int64_t rows, int64_t dim, int64_t stride, float size,
                                         std::mt19937& engine) {
  const int64_t width = bytes_of(dtype);
  const int64_t elements = (rows - 1) * stride + dim;
  std::unique_ptr<unsigned char[]> data(new unsigned char[static_cast<size_t>(elements * width)]);
  for (int64_t i = 0; i < elements; ++i) {
    const float unit = static_cast<float>(engine()) / 2147483648.0f - 1.0f;
    const float value = unit * size;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    // For float16: any bits that do not make an infinity, a NaN or a subnormal number.
    const uint16_t half = static_cast<uint16_t>(
        dtype == DType::kFloat16 ? 0x2000 + engine() % 0x1c00 + (engine() & 0x8000) : bits >> 16);
    const int8_t level = static_cast<int8_t>(unit * 128.0f);
    const void* from = dtype == DType::kFloat32 ? static_cast<const void*>(&bits)
                       : dtype == DType::kInt8  ? static_cast<const void*>(&level)
                                                : &half;
    std::memcpy(data.get() + i * width, from, static_cast<size_t>(width));
  }
  constexpr int64_t kPeriod = 7;
  for (int64_t row = kPeriod; row < rows; row += kPeriod) {
    std::memcpy(data.get() + row * stride * width, data.get() + (row - 1) * stride * width,
                static_cast<size_t>(dim * width));
  }
  return data;
}

// One query against some documents.
struct Batch {
  std::vector<int64_t> q_length, q_start = {0}, lengths, starts;
  std::unique_ptr<unsigned char[]> q, d;
  std::vector<float> scales;
  Problem problem = {};

  Batch(DType dtype, int64_t lq, const std::vector<int64_t>& lengths_of, int64_t dim, int64_t pad, float size)
      : q_length{lq}, lengths(lengths_of) {
    std::mt19937 engine(static_cast<uint32_t>(1000 * lq + dim));
    int64_t rows = 0;
    for (const int64_t length : lengths) {
      starts.push_back(rows);
      rows += length;
    }
    const DType q_dtype = dtype == DType::kInt8 ? DType::kFloat32 : dtype;
    const int64_t stride = dim + pad;
    q = numbers(q_dtype, lq, dim, dim, 1.0f, engine);
    d = numbers(dtype, rows, dim, stride, size, engine);
    for (int64_t row = 0; row < rows; ++row) scales.push_back(static_cast<float>(1 + row % 3) / 127.0f);
    problem.q = {q.get(), dim, lq, q_start.data(), q_length.data(), 1, q_dtype, nullptr, nullptr};
    problem.d = {d.get(),        stride,
                 rows,           starts.data(),
                 lengths.data(), static_cast<int64_t>(lengths.size()),
                 dtype,          dtype == DType::kInt8 ? scales.data() : nullptr,
                 nullptr};
    problem.dim = dim;
    problem.all_pairs = true;
    problem.max_lq = lq;
  }
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;
};

struct Result {
  std::vector<float> scores;
  std::vector<int32_t> argmax;

  // Compares bits, so that a NaN is equal to itself.
  bool operator==(const Result& other) const {
    return argmax == other.argmax &&
           std::memcmp(scores.data(), other.scores.data(), scores.size() * sizeof(float)) == 0;
  }
};

Result run(const Tier& tier, const Batch& b, int threads) {
  const size_t pairs = b.lengths.size();
  Result result = {std::vector<float>(pairs),
                   std::vector<int32_t>(pairs * static_cast<size_t>(b.q_length[0]))};
  Interrupt nobody(nullptr, nullptr);
  score(tier, b.problem, threads, result.scores.data(), result.argmax.data(), nobody);
  std::vector<float> alone(pairs);
  score(tier, b.problem, threads, alone.data(), nullptr, nobody);
  check(std::memcmp(alone.data(), result.scores.data(), pairs * sizeof(float)) == 0, "scores without argmax");
  return result;
}

// Lengths near the size of a tile, of two tiles and of a chunk. Queries become narrow after the first
// document.
const std::vector<int64_t> kLengths = {700, 1,  5,  15, 16,  17,  31,  32,  33,  39, 40,
                                       41,  49, 64, 65, 127, 161, 319, 320, 321, 335};
const std::vector<int64_t> kDims = {1, 31, 32, 33, 64, 100, 128, 200};

std::string name_of(DType dtype, int64_t lq, int64_t dim) {
  return "dtype " + std::to_string(static_cast<int>(dtype)) + ", lq " + std::to_string(lq) + ", dim " +
         std::to_string(dim);
}

// The chains of float32 decide after screening, so every bit must be the same as without it.
void check_screening_changes_no_bit() {
  const int64_t before = counters(kAmx).chunks_screened;
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kInt8}) {
    for (const int64_t lq : {4, 8, 16, 17, 33, 64}) {
      for (const int64_t dim : kDims) {
        for (const float size : {1.0f, 1e-30f, 3e38f}) {
          if (size != 1.0f && dtype != DType::kFloat32) continue;
          const Batch b(dtype, lq, kLengths, dim, dim % 3, size);
          check(run(kAmx, b, 1) == run(kAvx512, b, 1), "not the bits of avx512: " + name_of(dtype, lq, dim));
        }
      }
    }
  }
  check(counters(kAmx).chunks_screened > before + 1000, "hardly a chunk was screened");
}

// Sums of up to 200 products of numbers of up to 1, in float32. The two tiers add them in different orders.
void check_bfloat16() {
  for (const int64_t lq : {1, 16, 17, 32, 33, 64}) {
    for (const int64_t dim : kDims) {
      const Batch b(DType::kBFloat16, lq, kLengths, dim, dim % 3, 1.0f);
      const Result ours = run(kAmx, b, 1);
      const Result theirs = run(kAvx512, b, 1);
      for (size_t i = 0; i < kLengths.size(); ++i) {
        const float allowed = 1e-5f * std::sqrt(static_cast<float>(dim)) * static_cast<float>(lq);
        check(std::fabs(ours.scores[i] - theirs.scores[i]) <= allowed, name_of(DType::kBFloat16, lq, dim));
      }
      // In this data no two rows are so near to each other that the order of a sum decides between them.
      check(ours.argmax == theirs.argmax, "an argmax: " + name_of(DType::kBFloat16, lq, dim));
      check(run(kAmx, b, 4) == ours, "four threads");
    }
  }
}

// All rows of a document are equal. The first one must win, for every length of document.
void check_first_of_equals() {
  for (const int64_t length : kLengths) {
    Batch b(DType::kBFloat16, 33, {length}, 100, 0, 1.0f);
    for (int64_t row = 1; row < length; ++row) std::memcpy(b.d.get() + row * 200, b.d.get(), 200);
    for (const int32_t row : run(kAmx, b, 1).argmax) check(row == 0, "the first of equals");
  }
}

// Lanes that AMX cannot compute are computed in float32, by the code that avx512 uses.
void check_numbers_that_tiles_lose() {
  for (const float size : {1e-39f, 1e-20f, 3e38f}) {
    const Batch b(DType::kBFloat16, 20, {140, 9}, 64, 0, size);
    const Result ours = run(kAmx, b, 1);
    const Result theirs = run(kAvx512, b, 1);
    for (size_t i = 0; i < 2; ++i) {
      const float expected = theirs.scores[i];
      check(ours.scores[i] == expected || std::fabs(ours.scores[i] - expected) <= 1e-5f * std::fabs(expected),
            "numbers of size " + std::to_string(size));
    }
  }
  Batch b(DType::kBFloat16, 20, {140, 9}, 64, 0, 1.0f);
  const uint16_t nan = 0x7fc0;
  std::memcpy(b.d.get() + (70 * 64 + 5) * 2, &nan, sizeof nan);
  const Result result = run(kAmx, b, 1);
  check(std::isnan(result.scores[0]) && !std::isnan(result.scores[1]), "NaN in one document");
  for (int t = 0; t < 20; ++t) check(result.argmax[static_cast<size_t>(t)] == 70, "the argmax of NaN");
}

TileConfig foreign_config() {
  TileConfig config = {};
  config.palette = 1;
  for (int tile = 0; tile < 3; ++tile) {
    config.rows[tile] = static_cast<uint8_t>(3 + tile);
    config.row_bytes[tile] = 16;
  }
  return config;
}

bool same(const TileConfig& a, const TileConfig& b) { return std::memcmp(&a, &b, sizeof a) == 0; }

// Other code may have a configuration of its own on this thread, or none.
void check_configuration_is_restored() {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kInt8}) {
    const Batch b(dtype, 32, {200, 7}, 64, 0, 1.0f);
    const Result expected = run(kAmx, b, 1);

    amx_model::release();
    const amx_model::Counts before = amx_model::counts();
    check(run(kAmx, b, 1) == expected, "without a configuration");
    TileConfig now;
    amx_model::store_config(now);
    check(now.palette == 0, "a configuration is left behind");
    // run() scores twice, and each time in one task.
    check(amx_model::counts().config_loads == before.config_loads + 2, "a configuration for each task");
    check(amx_model::counts().releases == before.releases + 2, "tiles are not released");
    check(amx_model::counts().products > before.products, "no product by tiles");

    const TileConfig foreign = foreign_config();
    amx_model::load_config(foreign);
    check(run(kAmx, b, 1) == expected, "after the configuration of somebody else");
    amx_model::store_config(now);
    check(same(now, foreign), "the configuration of somebody else is lost");
  }
  amx_model::release();
}

void check_threads_are_restored() {
  const Batch b(DType::kBFloat16, 33, std::vector<int64_t>(200, 20), 128, 0, 1.0f);
  const Result expected = run(kAmx, b, 1);
  std::vector<std::thread> callers;
  std::vector<int> passed(3, 0);
  for (int& mine : passed) {
    callers.emplace_back([&, out = &mine] {
      const TileConfig foreign = foreign_config();
      for (int i = 0; i < 5; ++i) {
        amx_model::load_config(foreign);
        const bool equal = run(kAmx, b, 1 + i % 3) == expected;
        TileConfig now;
        amx_model::store_config(now);
        *out += equal && same(now, foreign);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const int mine : passed) check(mine == 5, "callers at once");
}

// The tier asks the kernel when it is needed, asks again after a refusal, and stops asking when the kernel
// has granted the tiles. The model aborts at a tile instruction without permission.
void check_permission() {
  using amx_model::Kernel;
  amx_model::set_kernel(Kernel::kRefuses);
  const int64_t before = amx_model::requests();
  check(kAmx.unsupported() == nullptr && amx_model::requests() == before, "unsupported() asks");
  check(refused(kAvx512) == nullptr && amx_model::requests() == before, "another tier asks");
  check(refused(kAmx) != nullptr && amx_model::requests() == before + 1, "a refusal is not believed");
  check(refused(kAmx) != nullptr && amx_model::requests() == before + 2, "a refusal is forever");
  amx_model::set_kernel(Kernel::kHasNoAmx);
  check(refused(kAmx) != nullptr && amx_model::requests() == before + 2, "asks for what is not there");
  amx_model::set_kernel(Kernel::kGrants);
  std::vector<std::thread> callers;
  std::vector<int> granted(4, 0);
  for (int& mine : granted) callers.emplace_back([out = &mine] { *out = refused(kAmx) == nullptr; });
  for (std::thread& caller : callers) caller.join();
  for (const int mine : granted) check(mine == 1, "callers at once are refused");
  const int64_t asked = amx_model::requests();
  check(refused(kAmx) == nullptr && amx_model::requests() == asked, "asks for what it has");
}

}  // namespace

int main() {
  if (const char* reason = kAmx.unsupported()) {
    std::printf("amx: cannot run: %s\n", reason);
    return 0;
  }
  check_permission();
  check_configuration_is_restored();
  check_threads_are_restored();
  check_screening_changes_no_bit();
  check_bfloat16();
  check_first_of_equals();
  check_numbers_that_tiles_lose();
  std::printf("amx: %lld checks passed\n", static_cast<long long>(g_checks));
  return 0;
}
