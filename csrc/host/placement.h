// Where and when the operating system runs worker threads. Only Linux can be told; elsewhere the threads run
// where the system puts them, and these functions do nothing.
//
// Linux puts a thread that wakes up where it thinks best, and is often wrong in two cases that are common
// here. They were seen in a virtual machine of two CPUs, with Linux 6.18:
//   After a pause, a worker woke up on the CPU of its caller in 38 of 52 calls, although the other CPU slept.
//   There it waits, because its caller is about to work for milliseconds. `Spread` takes the CPU of the
//   caller away from the workers. After an operation of torch the threads of OpenMP spin for some
//   milliseconds. A worker that wakes up beside one of them waits for its turn. A thread that asked for short
//   turns gets its turn first
//   (`take_short_turns`, Linux 6.12).
// A worker may still lose its CPU to another thread in the middle of a task. Then a caller that has nothing
// left to do gives its own CPU to the worker (`waits_for_a_cpu`, `move_here`).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace colbert_fast {

// The number by which the system knows the calling thread; 0 where it cannot be told anything.
int this_thread();

// Asks for turns of 0.1 ms for the calling thread. The thread gets no more time than others do, but it gets
// its turn sooner.
void take_short_turns();

// On which CPUs some threads may run.
class Spread {
 public:
  // Lets the threads run on every CPU where the calling thread may run, but not on the CPU where it runs now;
  // or on every one, if there are too few others for all threads, or more than 16 threads. This takes a
  // microsecond for each thread if anything has changed since the last call, and a third of one if not.
  void around_caller(const std::vector<int>& threads);

  // Says that a thread was moved: the next call tells all threads again.
  void forget() { threads_ = 0; }

 private:
  size_t threads_ = 0;  // how many threads were told
#if defined(__linux__)
  int kept_off_ = -1;       // the CPU that they keep off, or -1
  uint64_t cpus_[16] = {};  // where the caller might run, a bit for each CPU
#endif
};

// Whether a thread is not running at this moment. It takes about a microsecond to find out.
bool waits_for_a_cpu(int thread);

// Puts a thread on the CPU of the calling thread.
void move_here(int thread);

}  // namespace colbert_fast
