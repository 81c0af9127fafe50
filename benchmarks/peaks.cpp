// The rates that bound a CPU backend: how fast its instructions multiply, and how fast memory is read with
// them.
//
// peaks.py compiles this file once for each backend, with the compiler's flags for the instructions of the
// backend, and calls it by ctypes. Nothing here is part of the package.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#ifdef PEAKS_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

// Results go here, so that the compiler cannot leave the work out.
std::atomic<uint32_t> g_sink;

// A kind of multiply-add: its register, the operations that a step counts for, and what a step adds to `sum`.
#define MULTIPLY_ADD(Name, Type, flops, added)                       \
  struct Name {                                                      \
    using Register = Type;                                           \
    static constexpr int kFlops = flops;                             \
    static Register step(Register x, Register sum) { return added; } \
  }

#if defined(__AVX512F__)
constexpr int kBytes = 64, kChains = 24;
MULTIPLY_ADD(Float32, __m512, 2 * 16, _mm512_fmadd_ps(x, x, sum));
#elif defined(__AVX2__)
constexpr int kBytes = 32, kChains = 12;
MULTIPLY_ADD(Float32, __m256, 2 * 8, _mm256_fmadd_ps(x, x, sum));
#elif defined(__aarch64__) && !defined(PEAKS_PORTABLE)
constexpr int kBytes = 16, kChains = 24;
MULTIPLY_ADD(Float32, float32x4_t, 2 * 4, vfmaq_f32(sum, x, x));
#else
constexpr int kBytes = 16, kChains = 8;
using Floats4 = float __attribute__((vector_size(16)));
MULTIPLY_ADD(Float32, Floats4, 2 * 4, x* x + sum);
#endif

#if defined(__AVX512BF16__)
__m512bh pairs(__m512 x) {
  __m512bh bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
MULTIPLY_ADD(BFloat16, __m512, 2 * 2 * 16, _mm512_dpbf16_ps(sum, pairs(x), pairs(x)));
#elif defined(__ARM_FEATURE_BF16)
bfloat16x8_t pairs(float32x4_t x) { return vreinterpretq_bf16_f32(x); }
MULTIPLY_ADD(BFloat16, float32x4_t, 2 * 4 * 2 * 2, vbfmmlaq_f32(sum, pairs(x), pairs(x)));
#else
using BFloat16 = void;  // there is none
#endif

#if defined(__AVX512VNNI__)
MULTIPLY_ADD(Int8, __m512i, 2 * 4 * 16, _mm512_dpbusd_epi32(sum, x, x));
#elif defined(__AVXVNNI__)
MULTIPLY_ADD(Int8, __m256i, 2 * 4 * 8, _mm256_dpbusd_avx_epi32(sum, x, x));
#elif defined(__ARM_FEATURE_MATMUL_INT8)
int8x16_t bytes(int32x4_t x) { return vreinterpretq_s8_s32(x); }
MULTIPLY_ADD(Int8, int32x4_t, 2 * 8 * 2 * 2, vmmlaq_s32(sum, bytes(x), bytes(x)));
#elif defined(__ARM_FEATURE_DOTPROD)
int8x16_t bytes(int32x4_t x) { return vreinterpretq_s8_s32(x); }
MULTIPLY_ADD(Int8, int32x4_t, 2 * 4 * 4, vdotq_s32(sum, bytes(x), bytes(x)));
#else
using Int8 = void;
#endif

// `steps` steps of each of the chains that a full tile of the backend keeps in registers. Every chain begins
// with another number, because the compiler would compute equal chains once. The numbers are about 1e-3, as
// float32 and as bfloat16.
template <typename Kind, int... kChain>
void multiply_add(int64_t steps, std::integer_sequence<int, kChain...>) {
  using Register = typename Kind::Register;
  uint32_t bits[kChains + sizeof(Register) / 4];
  for (uint32_t i = 0; i < sizeof bits / 4; ++i)
    bits[i] = 0x3a833a83u + static_cast<uint32_t>(steps % 97) + i;
  const auto load = [&](int from) {
    Register value;
    std::memcpy(&value, bits + from, sizeof value);
    return value;
  };
  const Register x = load(0);
  Register sums[] = {load(kChain)...};
  for (int64_t i = 0; i < steps; ++i) ((sums[kChain] = Kind::step(x, sums[kChain])), ...);
  uint32_t mixed = 0;
  const auto mix = [&](Register sum) {
    uint32_t first;
    std::memcpy(&first, &sum, sizeof first);
    mixed ^= first;
  };
  (mix(sums[kChain]), ...);
  g_sink.store(mixed);
}

#ifdef PEAKS_AMX
// A step is four products of tiles of 16 rows of 64 bytes, into four tiles of sums.
constexpr int64_t kTileFlops = 2 * 4 * 16 * 16;

template <bool kInt8>
void multiply_tiles(int64_t steps) {
  struct {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
  uint16_t numbers[16 * 32];  // 9e-4 as bfloat16, and an int8 that is not zero either
  std::fill_n(numbers, 16 * 32, static_cast<uint16_t>(0x3a6b));
  __asm__ volatile(
      "tileloadd (%0,%1,1), %%tmm4\n\ttileloadd (%0,%1,1), %%tmm5\n\t"
      "tileloadd (%0,%1,1), %%tmm6\n\ttileloadd (%0,%1,1), %%tmm7\n\t"
      "tilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\ttilezero %%tmm3"
      :
      : "r"(numbers), "r"(int64_t{64})
      : "memory");
  for (int64_t i = 0; i < steps; ++i) {
    if constexpr (kInt8) {
      __asm__ volatile(
          "tdpbssd %tmm6, %tmm4, %tmm0\n\ttdpbssd %tmm7, %tmm4, %tmm1\n\t"
          "tdpbssd %tmm6, %tmm5, %tmm2\n\ttdpbssd %tmm7, %tmm5, %tmm3");
    } else {
      __asm__ volatile(
          "tdpbf16ps %tmm6, %tmm4, %tmm0\n\ttdpbf16ps %tmm7, %tmm4, %tmm1\n\t"
          "tdpbf16ps %tmm6, %tmm5, %tmm2\n\ttdpbf16ps %tmm7, %tmm5, %tmm3");
    }
  }
  __asm__ volatile("tilerelease");
}
#endif

// Adds up numbers in address order, with the prefetch distance of the kernels.
void read(const char* data, int64_t bytes) {
  using Floats = float __attribute__((vector_size(kBytes)));
  constexpr int64_t kAhead = 24 * 1024, kStep = 4 * kBytes;
  Floats sums[4] = {};
  for (int64_t at = 0; at + kStep <= bytes; at += kStep) {
    const uintptr_t ahead = reinterpret_cast<uintptr_t>(data + at) + kAhead;
    for (int64_t b = 0; b < kStep; b += 64) __builtin_prefetch(reinterpret_cast<const void*>(ahead + b));
    for (int v = 0; v < 4; ++v) {
      Floats values;
      std::memcpy(&values, data + at + v * kBytes, sizeof values);
      sums[v] += values;
    }
  }
  uint32_t first;
  const Floats all = sums[0] + sums[1] + sums[2] + sums[3];
  std::memcpy(&first, &all, sizeof first);
  g_sink.store(first);
}

// Seconds from the moment when all threads are ready until the last of them has done its work.
template <typename Work>
double seconds_of(int threads, const Work& work) {
  using Clock = std::chrono::steady_clock;
  std::atomic<int> missing{threads};
  std::vector<Clock::time_point> begin(threads), end(threads);
  const auto run = [&](int thread) {
    missing.fetch_sub(1);
    while (missing.load() > 0) std::this_thread::yield();
    begin[thread] = Clock::now();
    work();
    end[thread] = Clock::now();
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
  run(0);
  for (std::thread& other : others) other.join();
  const Clock::time_point first = *std::min_element(begin.begin(), begin.end());
  return std::chrono::duration<double>(*std::max_element(end.begin(), end.end()) - first).count();
}

template <typename Work>
double rate(const Work& work, double flops_per_step, int threads, double seconds) {
  const double taken = seconds_of(1, [&] { work(1000); });
  const auto steps = std::max<int64_t>(1000, static_cast<int64_t>(1000 * seconds / std::max(taken, 1e-7)));
  return threads * flops_per_step * static_cast<double>(steps) / seconds_of(threads, [&] { work(steps); });
}

template <typename Kind>
double rate_of(int threads, double seconds) {
  if constexpr (std::is_void_v<Kind>) {
    return 0.0;
  } else {
    const auto work = [](int64_t steps) {
      multiply_add<Kind>(steps, std::make_integer_sequence<int, kChains>());
    };
    return rate(work, kChains * Kind::kFlops, threads, seconds);
  }
}

}  // namespace

// Operations a second of the multiply-adds of a dtype, over about `seconds`; 0 where the backend has none.
extern "C" double peak_flops(const char* dtype, int threads, double seconds) {
  const bool bfloat16 = !std::strcmp(dtype, "bfloat16");
  if (!std::strcmp(dtype, "float32")) return rate_of<Float32>(threads, seconds);
#ifdef PEAKS_AMX
  // Linux saves the tile registers only for processes that ask for it.
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return 0.0;
  if (bfloat16) return rate(multiply_tiles<false>, kTileFlops * 32, threads, seconds);
  return rate(multiply_tiles<true>, kTileFlops * 64, threads, seconds);
#else
  return bfloat16 ? rate_of<BFloat16>(threads, seconds) : rate_of<Int8>(threads, seconds);
#endif
}

// Bytes a second at which threads read `bytes` bytes once, a mebibyte at a time.
extern "C" double peak_read(int threads, const char* data, int64_t bytes) {
  constexpr int64_t kChunk = 1 << 20;
  std::atomic<int64_t> next{0};
  const double seconds = seconds_of(threads, [&] {
    for (int64_t at; (at = next.fetch_add(kChunk)) < bytes;) read(data + at, std::min(kChunk, bytes - at));
  });
  return static_cast<double>(bytes) / seconds;
}
