#include "host/threads.h"

#include <atomic>
#include <cfenv>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "host/placement.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <signal.h>
#define CF_POSIX 1
#else
#define CF_POSIX 0
#endif

namespace colbert_fast {
namespace {

// How long a caller that has no tasks left watches its workers before it goes to sleep. Workers end within
// one task of each other. In a short call a task takes about ten microseconds, and waking a sleeping thread
// takes several times as long. In a call with longer tasks, the time that is spent watching does not matter.
constexpr std::chrono::microseconds kWatch{50};
// How often a caller that sleeps looks whether a worker has lost its CPU.
constexpr std::chrono::milliseconds kRescueEvery{1};

struct Job {
  void (*run)(void*, int64_t, int);
  void* context;
  int64_t tasks;
  // The caller's rounding mode and treatment of denormals (torch.set_flush_denormal). Every thread uses them,
  // because a score must not depend on which thread computes it.
  std::fenv_t environment;
  Interrupt* interrupt;
  std::atomic<int64_t> next{0};

  void work(int worker) {
    for (int64_t task = next.fetch_add(1); task < tasks; task = next.fetch_add(1)) {
      if (worker == 0 ? interrupt->look() : interrupt->heard()) return;
      run(context, task, worker);
    }
  }
};

// Blocks signals while it lives, and threads that start meanwhile keep them blocked. Signals belong to the
// threads of the application: Python expects Ctrl-C on its main thread. Signals which say that the thread
// itself has crashed are not blocked.
class BlockSignals {
 public:
#if CF_POSIX
  BlockSignals() {
    sigset_t all;
    sigfillset(&all);
    for (int crash : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigdelset(&all, crash);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~BlockSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
#endif
};

class Pool {
 public:
  // True if the caller may run a job, until it leaves: there is one such caller at a time. This is not a
  // mutex, because a Python signal handler runs on the calling thread in the middle of its job, and may score
  // too.
  bool try_enter() { return !entered_.exchange(true); }
  void leave() { entered_.store(false); }

  // Counts a call that wants several threads, until it ends. Returns how many others there are.
  int begin_call() { return calls_.fetch_add(1); }
  void end_call() { calls_.fetch_sub(1); }

  void run(Job& job, int threads) {
    grow(threads - 1);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      spread_.around_caller(threads_);
      job_ = &job;
      ++turn_;
      seats_ = threads - 1;
      next_worker_ = 1;
    }
    wake_.notify_all();
    job.work(0);
    if (is_of_the_parent()) return job.interrupt->lose();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = nullptr;  // a worker that wakes up late finds nothing to do
    }
    // The workers write busy_. Reading the clock between two looks at it leaves them its cache line
    // meanwhile.
    const auto deadline = std::chrono::steady_clock::now() + kWatch;
    while (busy_.load() > 0) {
      if (std::chrono::steady_clock::now() < deadline) continue;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        rescue();
        if (idle_.wait_for(lock, kRescueEvery, [this] { return busy_.load() == 0; })) break;
      }
      job.interrupt->look();
      if (is_of_the_parent()) return job.interrupt->lose();
    }
  }

  int size() const { return started_.load(); }

 private:
  // True in a child that a signal handler forked in the middle of a call: this pool's workers exist only in
  // the parent.
  bool is_of_the_parent() const;

  // Lets a worker that has lost its CPU run on the CPU of the caller, which has nothing left to do there.
  // Needs the lock.
  void rescue() {
    for (size_t i = 0; i < threads_.size(); ++i) {
      if (!in_job_[i]->load() || !waits_for_a_cpu(threads_[i])) continue;
      move_here(threads_[i]);
      spread_.forget();
      return;
    }
  }

  void grow(int wanted) {
    if (started_.load() >= wanted) return;
    [[maybe_unused]] const BlockSignals block;
    while (started_.load() < wanted) {
      try {
        std::thread(&Pool::serve, this).detach();
      } catch (const std::exception&) {
        return;
      }
      started_.fetch_add(1);
    }
  }

  void serve() {
    take_short_turns();
    std::atomic<bool> in_job{false};
    std::unique_lock<std::mutex> lock(mutex_);
    threads_.push_back(this_thread());
    in_job_.push_back(&in_job);
    uint64_t seen = 0;
    for (;;) {
      wake_.wait(lock, [&] { return job_ != nullptr && seats_ > 0 && turn_ != seen; });
      seen = turn_;
      Job* job = job_;
      --seats_;
      busy_.fetch_add(1);
      in_job.store(true);
      const int worker = next_worker_++;
      lock.unlock();
      std::fesetenv(&job->environment);
      job->work(worker);
      in_job.store(false);
      // As soon as busy_ is 0, the caller may return and the job may end. If the caller sleeps, or is about
      // to sleep, it has looked at busy_ under the lock. Taking the lock here makes sure that it hears the
      // notification.
      const bool last = busy_.fetch_sub(1) == 1;
      lock.lock();
      if (last) idle_.notify_one();
    }
  }

  std::atomic<bool> entered_{false};
  std::atomic<int> calls_{0};
  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  Job* job_ = nullptr;
  uint64_t turn_ = 0;         // the number of jobs so far; it keeps a worker from joining a job twice
  int seats_ = 0;             // how many workers may still join the job
  std::atomic<int> busy_{0};  // workers in the job; it grows only under the lock, and shrinks at any time
  int next_worker_ = 1;
  std::atomic<int> started_{0};
  // Of the workers that have begun to serve: their numbers (placement.h), and whether each is in the job.
  std::vector<int> threads_;
  std::vector<const std::atomic<bool>*> in_job_;
  Spread spread_;
};

// The pool is never deleted, because a worker may live longer than every static object. A forked child has a
// copy of its parent's pool, perhaps a locked one, but none of the threads. So the child forgets that pool,
// and makes another when it needs one.
std::atomic<Pool*> g_pool{nullptr};
#if CF_POSIX
[[maybe_unused]] const int g_fork_handler = pthread_atfork(nullptr, nullptr, [] { g_pool.store(nullptr); });
#endif

bool Pool::is_of_the_parent() const { return g_pool.load() != this; }

Pool& pool() {
  Pool* current = g_pool.load();
  if (current != nullptr) return *current;
  Pool* fresh = new Pool;
  if (g_pool.compare_exchange_strong(current, fresh)) return *fresh;
  delete fresh;
  return *current;
}

}  // namespace

void parallel_for(int64_t tasks, int threads, void (*run)(void*, int64_t, int), void* context,
                  Interrupt& interrupt) {
  Job job;
  job.run = run;
  job.context = context;
  job.tasks = tasks;
  job.interrupt = &interrupt;
  if (threads > tasks) threads = static_cast<int>(tasks);
  if (threads <= 1) return job.work(0);
  Pool& workers = pool();
  // Callers at the same time are threads too: each of them has a CPU to work on.
  threads -= workers.begin_call();
  if (threads > 1 && workers.try_enter()) {
    std::fegetenv(&job.environment);
    workers.run(job, threads);
    workers.leave();
  } else {
    job.work(0);
  }
  workers.end_call();
}

int pool_size() {
  const Pool* current = g_pool.load();
  return current == nullptr ? 0 : current->size();
}

}  // namespace colbert_fast
