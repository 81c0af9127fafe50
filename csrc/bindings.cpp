// The module colbert_fast._C. Pointers and shapes come in, nothing is owned; the GIL is released while
// scoring. Everything that could make a kernel leave its buffers is checked here, and refused.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>

#include "dispatch.h"
#include "limits.h"
#include "masks.h"
#include "maxsim.h"
#include "threads.h"

namespace py = pybind11;

namespace colbert_fast {
namespace {

// (data, row stride in elements, rows, starts, lengths, count, dtype, scales or 0, items or 0): Tokens of
// maxsim.h.
using Side =
    std::tuple<uintptr_t, int64_t, int64_t, uintptr_t, uintptr_t, int64_t, int, uintptr_t, uintptr_t>;

// While it lives, other Python threads run. Python ends a thread that wants the GIL back after the
// interpreter has begun to finalise by pthread_exit, whose unwinding must not pass through torch's frames and
// ours: such a thread sleeps until the process is gone, as Python 3.14 arranges by itself.
class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;
  ~ReleasedGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }

 private:
  PyThreadState* state_;
};

const Tier& tier_named(const std::string& name) {
  std::string known;
  for (const Tier* const* t = kTiers; *t != nullptr; ++t) {
    if (name == (*t)->name) {
      if (const char* reason = refused(**t)) throw std::runtime_error("tier '" + name + "': " + reason);
      return **t;
    }
    known += std::string(known.empty() ? "" : ", ") + (*t)->name;
  }
  throw std::invalid_argument("no CPU tier '" + name + "'; there are " + known);
}

Tokens tokens_of(const Side& side, int64_t dim, const char* which) {
  const auto& [data, row_stride, rows, starts, lengths, count, dtype, scales, items] = side;
  if (dtype < 0 || dtype > 3)
    throw std::invalid_argument(std::string(which) + " has dtype " + std::to_string(dtype) +
                                "; 0 to 3 are known");
  // Embeddings of no dimensions have no address to add a stride to.
  Tokens tokens = {reinterpret_cast<const void*>(data),
                   dim == 0 ? 0 : row_stride,
                   rows,
                   reinterpret_cast<const int64_t*>(starts),
                   reinterpret_cast<const int64_t*>(lengths),
                   count,
                   static_cast<DType>(dtype),
                   reinterpret_cast<const float*>(scales),
                   reinterpret_cast<const void* const*>(items)};
  if ((tokens.dtype == DType::kInt8) != (scales != 0) || (scales != 0 && items != 0)) {
    throw std::invalid_argument(std::string(which) +
                                " needs scales if its rows are int8, and only then, in one matrix");
  }
  if (row_stride < 0 || rows < 0 || count < 0) {
    throw std::invalid_argument(std::string(which) + " needs a stride, rows and items of 0 or more");
  }
  if ((items == 0 && data == 0 && rows > 0 && dim > 0) || (items == 0 && starts == 0 && count > 0) ||
      (lengths == 0 && count > 0)) {
    throw std::invalid_argument(std::string(which) + " has rows or items without memory");
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t start = items != 0 ? 0 : tokens.starts[i];
    const int64_t length = tokens.lengths[i];
    // The rows of scattered items are known to the caller alone.
    const int64_t rows_there = items != 0 ? std::max<int64_t>(length, 0) : rows;
    // start > rows - length and not start + length > rows: the sum could overflow.
    if (start < 0 || length < 0 || length > rows_there || start > rows_there - length) {
      throw std::invalid_argument("item " + std::to_string(i) + " of " + which + " is the rows [" +
                                  std::to_string(start) + ", +" + std::to_string(length) + ") of " +
                                  std::to_string(rows_there));
    }
    if (length > std::numeric_limits<int32_t>::max()) {
      throw std::invalid_argument("item " + std::to_string(i) + " of " + which + " has " +
                                  std::to_string(length) + " tokens; 2147483647 is the most");
    }
  }
  return tokens;
}

// num_pairs -1: all pairs. (The address of an empty list of pairs is 0.)
Problem problem_of(const Side& q, const Side& d, int64_t dim, uintptr_t pairs, int64_t num_pairs,
                   int64_t max_lq, bool skip_zero_q, bool skip_zero_d) {
  if (dim < 0 || num_pairs < -1) throw std::invalid_argument("dim needs 0 or more, num_pairs -1 or more");
  Problem p = {};
  p.q = tokens_of(q, dim, "q");
  p.d = tokens_of(d, dim, "d");
  if (p.q.dtype == DType::kInt8 || (p.d.dtype != DType::kInt8 && p.d.dtype != p.q.dtype))
    throw std::invalid_argument("q and d need the same dtype, or d int8");
  p.dim = dim;
  p.all_pairs = num_pairs == -1;
  p.pairs = reinterpret_cast<const int64_t*>(pairs);
  p.num_pairs = num_pairs;
  p.max_lq = max_lq;
  p.skip_zero_q = skip_zero_q;
  p.skip_zero_d = skip_zero_d;
  for (int64_t i = 0; i < p.q.count; ++i) {
    if (p.q.lengths[i] > max_lq) {
      throw std::invalid_argument("query " + std::to_string(i) + " has " + std::to_string(p.q.lengths[i]) +
                                  " tokens; max_lq says " + std::to_string(max_lq));
    }
  }
  for (int64_t i = 0; !p.all_pairs && i < num_pairs; ++i) {
    const int64_t query = p.pairs[2 * i];
    const int64_t document = p.pairs[2 * i + 1];
    if (query < 0 || query >= p.q.count || document < 0 || document >= p.d.count) {
      throw std::invalid_argument("pairs[" + std::to_string(i) + "] is (" + std::to_string(query) + ", " +
                                  std::to_string(document) + "); there are " + std::to_string(p.q.count) +
                                  " queries and " + std::to_string(p.d.count) + " documents");
    }
  }
  return p;
}

int checked_threads(int threads) {
  if (threads < 1) throw std::invalid_argument("threads must be 1 or more; got " + std::to_string(threads));
  return threads;
}

bool py_score(const std::string& tier, const Side& q, const Side& d, int64_t dim, uintptr_t pairs,
              int64_t num_pairs, int64_t max_lq, bool skip_zero_q, bool skip_zero_d, int threads,
              uintptr_t scores, uintptr_t argmax) {
  const Tier& t = tier_named(tier);
  const Problem p = problem_of(q, d, dim, pairs, num_pairs, max_lq, skip_zero_q, skip_zero_d);
  threads = checked_threads(threads);
  const ReleasedGil released;
  return score(t, p, threads, reinterpret_cast<float*>(scores), reinterpret_cast<int32_t*>(argmax));
}

void py_backward(const std::string& tier, const Side& q, const Side& d, int64_t dim, uintptr_t pairs,
                 int64_t num_pairs, int64_t max_lq, int threads, bool to_queries, uintptr_t grad_scores,
                 uintptr_t argmax, uintptr_t grad) {
  const Tier& t = tier_named(tier);
  const Problem p = problem_of(q, d, dim, pairs, num_pairs, max_lq, false, false);
  if (p.q.items != nullptr || p.d.items != nullptr)
    throw std::invalid_argument("gradients need both sides in one matrix");
  threads = checked_threads(threads);
  const ReleasedGil released;
  backward(t, p, threads, to_queries, reinterpret_cast<const float*>(grad_scores),
           reinterpret_cast<const int32_t*>(argmax), reinterpret_cast<float*>(grad));
}

bool py_runs_of_mask(uintptr_t mask, int64_t n, int64_t length, uintptr_t starts, uintptr_t lengths) {
  if (n < 0 || length < 0) throw std::invalid_argument("a mask needs 0 items and rows or more");
  return runs_of_mask(reinterpret_cast<const unsigned char*>(mask), n, length,
                      reinterpret_cast<int64_t*>(starts), reinterpret_cast<int64_t*>(lengths));
}

py::dict by_tier(int64_t (*count)(const Tier&)) {
  py::dict result;
  for (const Tier* const* t = kTiers; *t != nullptr; ++t) result[(*t)->name] = count(**t);
  return result;
}

py::list py_products(const std::string& tier) {
  py::list result;
  for (const Product* p = tier_named(tier).products; p->dtype != nullptr; ++p) result.append(p->dtype);
  return result;
}

double py_measure_flops(const std::string& tier, const std::string& dtype, int threads, double seconds) {
  const Product* product = tier_named(tier).products;
  while (product->dtype != nullptr && product->dtype != dtype) ++product;
  if (product->dtype == nullptr)
    throw std::invalid_argument("tier '" + tier + "' has no product of " + dtype);
  threads = checked_threads(threads);
  if (!(seconds > 0.0 && seconds <= 60.0))
    throw std::invalid_argument("seconds must be above 0 and at most 60");
  const ReleasedGil released;
  return measure_flops(*product, threads, seconds);
}

double py_measure_read(const std::string& tier, int threads, uintptr_t data, int64_t bytes) {
  const Tier& t = tier_named(tier);
  threads = checked_threads(threads);
  if (bytes < 1 || data % sizeof(float) != 0) throw std::invalid_argument("read needs aligned floats");
  const ReleasedGil released;
  return measure_read(t, threads, reinterpret_cast<const void*>(data), bytes);
}

}  // namespace
}  // namespace colbert_fast

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  using namespace colbert_fast;
  m.doc() = "CPU kernels of colbert_fast. Private: _backends/cpu.py, and packed.py for masks, call it.";
  m.def(
      "tiers",
      [] {
        py::list result;
        for (const Tier* const* t = kTiers; *t != nullptr; ++t) {
          const char* reason = (*t)->unsupported();
          result.append(
              py::make_tuple((*t)->name, reason == nullptr ? py::object(py::none()) : py::str(reason)));
        }
        return result;
      },
      "[(name, None or the reason why it cannot run here)], best first.");
  m.def(
      "refused",
      [](const std::string& name) -> py::object {
        for (const Tier* const* t = kTiers; *t != nullptr; ++t) {
          if (name != (*t)->name) continue;
          const char* reason = refused(**t);
          return reason == nullptr ? py::object(py::none()) : py::object(py::str(reason));
        }
        throw std::invalid_argument("no CPU tier '" + name + "'");
      },
      "None, or the reason why a tier cannot run; asks the operating system for what it needs.");
  m.def("calls", [] { return by_tier(&calls); }, "{name: how often the tier has run in this process}.");
  m.def(
      "chunks_screened", [] { return by_tier(&chunks_screened); },
      "{name: how many chunks of documents the tier has screened in this process}.");
  m.def("pool_size", &pool_size, "Threads started so far.");
  m.def("score", &py_score, "Fills scores and, unless it is 0, argmax. True if a document had no token.");
  m.def("runs_of_mask", &py_runs_of_mask,
        "Fills starts and lengths; False if an item is not one run of rows.");
  m.def("products", &py_products, "The dtypes that a tier has multiply-adds for.");
  m.def("measure_flops", &py_measure_flops, "Operations a second of a tier's multiply-adds of a dtype.");
  m.def("measure_read", &py_measure_read, "Bytes a second of one pass over memory with software prefetch.");
  m.def("backward", &py_backward, "Adds one side's gradient to grad.");
}
