// All threading of the extension: a pool of worker threads that help the calling thread with a list of tasks.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace colbert_fast {

// How a call learns that it must stop, for example because of Ctrl-C. The calling thread looks for a reason
// to stop, at most once in kLookEvery, while it works and while it waits for the other threads. When it has
// heard of a reason, all threads give up, and what the call has written is of no use.
class Interrupt {
 public:
  static constexpr std::chrono::milliseconds kLookEvery{50};

  // `pending` says whether there is a reason to stop. Only the calling thread calls it. If it is null,
  // nothing can interrupt the call.
  Interrupt(bool (*pending)(void* context), void* context)
      : pending_(pending), context_(context), looked_(std::chrono::steady_clock::now()) {}

  // Looks, and returns whether to give up. Only for the calling thread.
  bool look() {
    if (heard() || pending_ == nullptr) return heard();
    const auto now = std::chrono::steady_clock::now();
    if (now - looked_ < kLookEvery) return false;
    if (pending_(context_)) heard_.store(true);
    looked_ = std::chrono::steady_clock::now();
    return heard();
  }

  // Whether the calling thread has heard of a reason to stop. For any thread.
  bool heard() const { return heard_.load(std::memory_order_relaxed); }

  // lose() notes that tasks were lost, and lost() asks whether they were. Tasks are lost in a child that a
  // signal handler forked in the middle of a call: the threads that had these tasks exist only in the parent.
  // Only for the calling thread.
  void lose() { lost_ = true; }
  bool lost() const { return lost_; }

 private:
  bool (*pending_)(void*);
  void* context_;
  std::chrono::steady_clock::time_point looked_;
  std::atomic<bool> heard_{false};
  bool lost_ = false;
};

// Calls run(context, task, worker) once for every task in [0, tasks), on at most `threads` threads. The
// calling thread is one of them. `worker` is in [0, threads): it is the number of the thread in this call,
// and the number of the calling thread is 0. Tasks are handed out in order, each to the next thread that is
// free, until `interrupt` says that the call is given up. `run` must not throw.
//
// A worker thread starts when the first call needs it, and is never joined: idle workers sleep, and they end
// with the process. A forked child starts a pool of its own. While one Python thread uses the pool, a call
// from another Python thread does all of its tasks itself. Each call that runs at the same time counts as one
// of the `threads`. The pool has as many workers as the largest call so far needed. If the system refuses to
// start a thread, the threads that exist do the work. placement.h says where the workers run.
void parallel_for(int64_t tasks, int threads, void (*run)(void* context, int64_t task, int worker),
                  void* context, Interrupt& interrupt);

// The number of workers that this process has started so far, for `colbert-fast info` and the tests.
int pool_size();

}  // namespace colbert_fast
