#include "host/placement.h"

#include <cstring>

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#endif

namespace colbert_fast {

#if defined(__linux__) && defined(SYS_sched_setattr) && defined(SYS_sched_getattr)
namespace {

// struct sched_attr of Linux, in its first version. The C library does not declare it.
struct SchedulerAttributes {
  uint32_t size;
  uint32_t policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime;  // of a turn, in ns
  uint64_t deadline;
  uint64_t period;
};
constexpr uint64_t kTurn = 100 * 1000;  // the shortest that Linux allows

// More threads are told nothing when the caller has moved: each takes a microsecond, and of so many threads
// one that is late matters little.
constexpr size_t kMostKeptOff = 16;

// The CPU time of any thread, in ns, or -1. Linux numbers the clocks of threads so
// (include/linux/posix-timers_types.h).
int64_t cpu_time(int thread) {
  constexpr int kOfThread = 4;
  constexpr int kOfScheduler = 2;
  const clockid_t clock =
      static_cast<clockid_t>(~static_cast<unsigned>(thread) << 3 | kOfThread | kOfScheduler);
  timespec time;
  if (clock_gettime(clock, &time) != 0) return -1;
  return int64_t{1000000000} * time.tv_sec + time.tv_nsec;
}

}  // namespace

int this_thread() { return static_cast<int>(syscall(SYS_gettid)); }

void take_short_turns() {
  SchedulerAttributes attributes = {};
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0) return;
  if (attributes.policy != SCHED_OTHER) return;
  attributes.runtime = kTurn;
  syscall(SYS_sched_setattr, 0, &attributes, 0);
}

void Spread::around_caller(const std::vector<int>& threads) {
  cpu_set_t cpus;
  static_assert(sizeof cpus == sizeof cpus_, "a cpu_set_t has 1024 bits");
  // This fails where there are more CPUs than a cpu_set_t has room for.
  if (threads.empty() || sched_getaffinity(0, sizeof cpus, &cpus) != 0) return;
  const bool room = threads.size() <= kMostKeptOff && threads.size() < static_cast<size_t>(CPU_COUNT(&cpus));
  const int cpu = room ? sched_getcpu() : -1;
  if (threads.size() == threads_ && cpu == kept_off_ && std::memcmp(&cpus, cpus_, sizeof cpus) == 0) return;
  threads_ = threads.size();
  kept_off_ = cpu;
  std::memcpy(cpus_, &cpus, sizeof cpus);
  if (cpu >= 0) CPU_CLR(static_cast<size_t>(cpu), &cpus);
  for (const int thread : threads) sched_setaffinity(thread, sizeof cpus, &cpus);
}

bool waits_for_a_cpu(int thread) {
  const int64_t before = cpu_time(thread);
  return before >= 0 && cpu_time(thread) == before;
}

void move_here(int thread) {
  cpu_set_t here;
  CPU_ZERO(&here);
  CPU_SET(static_cast<size_t>(sched_getcpu()), &here);
  sched_setaffinity(thread, sizeof here, &here);
}

#else

int this_thread() { return 0; }
void take_short_turns() {}
void Spread::around_caller(const std::vector<int>&) {}
bool waits_for_a_cpu(int) { return false; }
void move_here(int) {}

#endif

}  // namespace colbert_fast
