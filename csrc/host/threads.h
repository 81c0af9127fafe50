// The only threading of the extension: a pool of workers that help the calling thread through a list of
// tasks.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace colbert_fast {

// How a call hears that its caller is wanted elsewhere, by Ctrl-C for instance. The calling thread looks, at
// most every kLookEvery, while it works and while it waits for the others. Once it has heard something, all
// threads give up, and nothing that the call has written is of use.
class Interrupt {
 public:
  static constexpr std::chrono::milliseconds kLookEvery{50};

  // `pending` is asked on the calling thread alone; null: nobody can interrupt the call.
  Interrupt(bool (*pending)(void* context), void* context)
      : pending_(pending), context_(context), looked_(std::chrono::steady_clock::now()) {}

  // Whether to give up. On the calling thread only.
  bool look() {
    if (heard() || pending_ == nullptr) return heard();
    const auto now = std::chrono::steady_clock::now();
    if (now - looked_ < kLookEvery) return false;
    if (pending_(context_)) heard_.store(true);
    looked_ = std::chrono::steady_clock::now();
    return heard();
  }

  // Whether the calling thread has heard something. On any thread.
  bool heard() const { return heard_.load(std::memory_order_relaxed); }

  // Says that tasks were lost, or whether they were: a handler of signals forked, and the threads that had
  // these tasks are in the parent. On the calling thread only.
  void lose() { lost_ = true; }
  bool lost() const { return lost_; }

 private:
  bool (*pending_)(void*);
  void* context_;
  std::chrono::steady_clock::time_point looked_;
  std::atomic<bool> heard_{false};
  bool lost_ = false;
};

// Calls run(context, task, worker) once for every task in [0, tasks), on at most `threads` threads, the
// calling one among them. `worker` is in [0, threads) and names the thread for the length of this call. Units
// are handed out in order, to whoever is free, until `interrupt` says that the call is given up. `run` must
// not throw.
//
// No thread starts before the first call that wants one, and none is ever joined: idle workers sleep, and end
// with the process. A forked child starts its own pool. While one Python thread uses the pool, a call from
// another runs by itself. The pool has as many workers as the largest call so far had use for. If the system
// refuses a thread, the work is done by those there are.
void parallel_for(int64_t tasks, int threads, void (*run)(void* context, int64_t task, int worker),
                  void* context, Interrupt& interrupt);

// Threads this process has started so far, for `colbert-fast info` and the tests.
int pool_size();

}  // namespace colbert_fast
