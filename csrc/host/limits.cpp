#include "host/limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "host/threads.h"

namespace colbert_fast {
namespace {

using Clock = std::chrono::steady_clock;

// Somewhere to put results, so that they have to be computed.
std::atomic<float> g_sink;

constexpr int64_t kChunkBytes = 1 << 20;

struct Work {
  const Product* product;
  const Tier* tier;
  const char* data;
  int64_t bytes;
  int64_t steps;
};

double seconds_of(int64_t tasks, int threads, void (*run)(void*, int64_t, int), Work* work) {
  const Clock::time_point start = Clock::now();
  Interrupt nobody(nullptr, nullptr);
  parallel_for(tasks, threads, run, work, nobody);
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void multiply_add_task(void* opaque, int64_t, int) {
  const Work& work = *static_cast<Work*>(opaque);
  g_sink.store(work.product->multiply_add(work.steps));
}

void read_task(void* opaque, int64_t task, int) {
  const Work& work = *static_cast<Work*>(opaque);
  const int64_t begin = task * kChunkBytes;
  const int64_t bytes = std::min(kChunkBytes, work.bytes - begin);
  // Whole vectors of the widest tier; what is left out is less than a millionth.
  const int64_t floats = bytes / 256 * 64;
  g_sink.store(work.tier->read(reinterpret_cast<const float*>(work.data + begin), floats));
}

}  // namespace

double measure_flops(const Product& product, int threads, double seconds) {
  Work work = {&product, nullptr, nullptr, 0, 1000};
  double taken = seconds_of(1, 1, &multiply_add_task, &work);
  work.steps = std::max<int64_t>(1000, static_cast<int64_t>(1000.0 * seconds / std::max(taken, 1e-7)));
  taken = seconds_of(threads, threads, &multiply_add_task, &work);
  return static_cast<double>(threads) * static_cast<double>(work.steps * product.flops_per_step) / taken;
}

double measure_read(const Tier& tier, int threads, const void* data, int64_t bytes) {
  Work work = {nullptr, &tier, static_cast<const char*>(data), bytes, 0};
  return static_cast<double>(bytes) /
         seconds_of((bytes + kChunkBytes - 1) / kChunkBytes, threads, &read_task, &work);
}

}  // namespace colbert_fast
