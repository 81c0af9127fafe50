// The memory of one call: a Scratch for each thread, allocated before any thread starts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "codes.h"
#include "host/threads.h"
#include "maxsim.h"
#include "scratch.h"

namespace colbert_fast {

// The smallest multiple that is not less than `value`.
constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

class Workspace {
 public:
  // Room for `lanes` query tokens of `queries` queries to be packed together. Throws std::bad_alloc.
  Workspace(const Problem& problem, const Tier& tier, int64_t lanes, int64_t queries, int threads,
            Interrupt& interrupt);
  // Room for the upper bounds of `lanes` query tokens that are packed together. Throws std::bad_alloc.
  Workspace(const Codes& documents, const Tier& tier, int64_t lanes, int threads, Interrupt& interrupt);

  Scratch& operator[](int thread) { return scratch_[static_cast<size_t>(thread)]; }
  int threads() const { return static_cast<int>(scratch_.size()); }

  // What the threads have seen, once all tasks are done.
  int64_t chunks_screened() const;
  bool rescored() const;
  bool saw_empty_document() const;

 private:
  // take_each(s) takes the arrays of a Scratch. It is called twice for each.
  template <typename TakeEach>
  void allocate(TakeEach take_each, Interrupt& interrupt);
  void take_all(const Problem& problem, const Tier& tier, int64_t lanes, int64_t queries, Scratch& s);
  void take_narrow(const Problem& problem, const Tier& tier, int64_t lanes, Scratch& s);
  void take_upper(const Codes& documents, const Tier& tier, int64_t lanes, Scratch& s);
  void take_best(int64_t lanes, Best& best);
  template <typename T>
  void take(int64_t count, T*& array);

  std::vector<Scratch> scratch_;
  std::unique_ptr<unsigned char[]> memory_;
  int64_t used_ = 0;
};

}  // namespace colbert_fast
