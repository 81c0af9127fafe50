// The module colbert_fast._C: the functions that Python calls. tensors.h reads their tensors. While a
// function scores, it releases the GIL and lets Python handle its signals.
#include <pybind11/pybind11.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <thread>

#include "host/backward.h"
#include "host/best.h"
#include "host/dispatch.h"
#include "host/encode.h"
#include "host/masks.h"
#include "host/plan.h"
#include "host/rotation.h"
#include "host/tensors.h"
#include "host/threads.h"
#include "host/tiers.h"
#include "host/upper.h"
#include "maxsim.h"

namespace colbert_fast {
namespace {

// Other Python threads can run while this object lives. When the interpreter has begun to finalise, and a
// thread wants the GIL back, Python ends the thread with pthread_exit. That unwinds the stack, and it must
// not unwind the frames of torch and of this extension. So such a thread sleeps here until the process ends,
// as Python 3.14 makes it do by itself.
class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;
  ~ReleasedGil() { take(); }

  // Lets Python handle its signals. Returns whether a handler raised an exception, as the handler of Ctrl-C
  // does. The exception is then pending.
  bool handle_signals() {
    take();
    const bool raised = PyErr_CheckSignals() != 0;
    state_ = PyEval_SaveThread();
    return raised;
  }

 private:
  void take() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }

  PyThreadState* state_;
};

const Tier& runnable_tier(const std::string& name) {
  const Tier& tier = tier_named(name);
  if (const char* reason = refused(tier)) throw std::runtime_error("tier '" + name + "': " + reason);
  return tier;
}

int checked_threads(int threads) {
  if (threads < 1) throw std::invalid_argument("threads must be 1 or more; got " + std::to_string(threads));
  return threads;
}

// The identifier of the thread on which Python handles signals.
std::atomic<unsigned long> g_main_thread{0};

void set_main_thread(unsigned long ident) { g_main_thread.store(ident); }

// Lets other Python threads run during work(interrupt). On the main thread, Ctrl-C interrupts the work.
template <typename Work>
void without_gil(const Work& work) {
  const bool main = PyThread_get_thread_ident() == g_main_thread.load();
  bool raised = false;
  bool lost = false;
  {
    ReleasedGil released;
    const auto pending = [](void* context) { return static_cast<ReleasedGil*>(context)->handle_signals(); };
    Interrupt interrupt(main ? +pending : nullptr, &released);
    work(interrupt);
    raised = interrupt.heard();
    lost = interrupt.lost();
  }
  if (raised) throw py::error_already_set();
  if (lost) throw std::runtime_error("forked by a handler of signals in the middle of this call");
}

bool py_score(const std::string& tier, const py::tuple& q, const py::tuple& d, py::handle pairs,
              int64_t max_lq, bool skip_zero_q, bool skip_zero_d, int threads, py::handle scores,
              py::handle argmax) {
  const Tier& t = runnable_tier(tier);
  threads = checked_threads(threads);
  const Sides sides(q, d, pairs, max_lq, skip_zero_q, skip_zero_d);
  const Problem& p = sides.problem;
  float* const out = output<float>(scores, num_pairs(p), "scores");
  int32_t* const winners =
      argmax.is_none() ? nullptr : output<int32_t>(argmax, num_pairs(p) * p.max_lq, "argmax");
  bool empty_document = false;
  without_gil([&](Interrupt& interrupt) { empty_document = score(t, p, threads, out, winners, interrupt); });
  return empty_document;
}

// Whether the tier has ceilings for the problem.
bool py_ceilings(const std::string& tier, const py::tuple& q, const py::tuple& d, int64_t max_lq,
                 bool skip_zero_q, int threads, py::handle most) {
  const Tier& t = runnable_tier(tier);
  threads = checked_threads(threads);
  const Sides sides(q, d, py::none(), max_lq, skip_zero_q, false);
  const Problem& p = sides.problem;
  if (!has_ceilings(t, p)) return false;
  float* const out = output<float>(most, num_pairs(p), "most");
  without_gil([&](Interrupt& interrupt) { ceilings(t, p, threads, out, interrupt); });
  return true;
}

bool py_best(const std::string& tier, const py::tuple& q, const py::tuple& d, int64_t max_lq,
             bool skip_zero_q, bool skip_zero_d, int threads, int64_t k, py::handle scores,
             py::handle numbers) {
  const Tier& t = runnable_tier(tier);
  threads = checked_threads(threads);
  if (k < 1) throw std::invalid_argument("k must be 1 or more; got " + std::to_string(k));
  const Sides sides(q, d, py::none(), max_lq, skip_zero_q, skip_zero_d);
  const Problem& p = sides.problem;
  if (k > p.d.count) throw std::invalid_argument("k must be " + std::to_string(p.d.count) + " or less");
  const BestJob job = {k, output<float>(scores, p.q.count * k, "scores"),
                       output<int64_t>(numbers, p.q.count * k, "numbers")};
  bool empty_document = false;
  without_gil([&](Interrupt& interrupt) { empty_document = best(t, p, threads, job, interrupt); });
  return empty_document;
}

void py_backward(const std::string& tier, const py::tuple& q, const py::tuple& d, py::handle pairs,
                 int64_t max_lq, int threads, bool to_queries, py::handle grad_scores, py::handle argmax,
                 py::handle grad) {
  const Tier& t = runnable_tier(tier);
  threads = checked_threads(threads);
  const Sides sides(q, d, pairs, max_lq, false, false);
  const Problem& p = sides.problem;
  if (p.q.items != nullptr || p.d.items != nullptr)
    throw std::invalid_argument("gradients need both sides in one matrix");
  const Numbers<float> weights(grad_scores, 1, num_pairs(p), "grad_scores");
  const Numbers<int32_t> winners(argmax, 2, num_pairs(p) * p.max_lq, "argmax");
  float* const out = output<float>(grad, (to_queries ? p.q : p.d).rows * p.dim, "grad");
  without_gil([&](Interrupt& interrupt) {
    backward(t, p, threads, to_queries, weights.data(), winners.data(), out, interrupt);
  });
}

void py_upper(const std::string& tier, const py::tuple& q, py::handle signs, const py::tuple& codes,
              int threads, py::handle bounds) {
  const Tier& t = runnable_tier(tier);
  threads = checked_threads(threads);
  const Side queries(q, "q");
  const CodedDocuments documents(codes);
  if (queries.tokens.dtype != DType::kFloat32 || queries.tokens.items != nullptr)
    throw std::invalid_argument("q must be one matrix of float32");
  if (queries.dim != documents.codes.dim) {
    throw std::invalid_argument("q and codes need the same dim; got " + std::to_string(queries.dim) +
                                " and " + std::to_string(documents.codes.dim));
  }
  const Numbers<float> of_rotation(signs, 2, kRotationStages * queries.dim, "signs");
  check_results(queries.tokens.count, documents.codes.count, 1);
  float* const out = output<float>(bounds, queries.tokens.count * documents.codes.count, "bounds");
  without_gil([&](Interrupt& interrupt) {
    upper(t, queries.tokens, of_rotation.data(), documents.codes, threads, out, interrupt);
  });
}

bool py_runs_of_mask(py::handle mask, py::handle starts, py::handle lengths) {
  const Memory rows(mask, 2, 1, "mask");
  if (!rows.contiguous()) throw std::invalid_argument("mask must be contiguous");
  const Numbers<int64_t> first(starts, 1, rows.rows(), "starts");
  const Numbers<int64_t> count(lengths, 1, rows.rows(), "lengths");
  return runs_of_mask(rows.data<const unsigned char>(), rows.rows(), rows.columns(), first.data(),
                      count.data());
}

// The results for level numbers of so many bits, which cpu tensors of Python take: (bits, multipliers, slack,
// norms).
Fit fit_of(const py::tuple& parts, int64_t count) {
  if (parts.size() != 4) throw std::invalid_argument("a fit must be a tuple of four");
  return {parts[0].cast<int>(), output<uint16_t>(parts[1], count, "multipliers"),
          output<uint16_t>(parts[2], count, "slack"), output<float>(parts[3], count, "norms")};
}

int64_t py_encode(int64_t dtype, py::handle tokens, py::handle signs, int threads, py::handle levels,
                  py::handle low, const py::tuple& fit, py::handle high) {
  threads = checked_threads(threads);
  EncodeJob job{};
  job.dtype = dtype_of(dtype);
  if (job.dtype == DType::kInt8) throw std::invalid_argument("tokens must be floating point");
  const Memory rows(tokens, 2, bytes_of(job.dtype), "tokens");
  if (!rows.adjacent()) throw std::invalid_argument("tokens must have adjacent elements in a row");
  job.tokens = rows.data<const void>();
  job.row_stride = rows.row_stride();
  job.count = rows.rows();
  job.dim = rows.columns();
  if (job.dim < 1 || job.dim > kMostRotatedDim)
    throw std::invalid_argument("dim must be 1 to 4096; got " + std::to_string(job.dim));
  const Numbers<float> factors(signs, 2, kRotationStages * job.dim, "signs");
  job.signs = factors.data();
  job.fit = fit_of(fit, job.count);
  const int bits = job.fit.bits;
  if (bits != 8 && bits != 4 && bits != 2 && bits != 1)
    throw std::invalid_argument("bits must be 8, 4, 2 or 1; got " + std::to_string(bits));
  const int64_t bytes = job.count * packed_bytes(job.dim, low.is_none() ? bits : 4);
  job.levels = output<uint8_t>(levels, bytes, "levels");
  if (!low.is_none()) {
    if (bits != 8) throw std::invalid_argument("a low plane needs 8 bits; got " + std::to_string(bits));
    job.low = output<uint8_t>(low, bytes, "low");
    if (!py::isinstance<py::tuple>(high))
      throw std::invalid_argument("a low plane needs a fit of the high one");
    job.high = fit_of(py::reinterpret_borrow<py::tuple>(high), job.count);
  }
  int64_t refused = -1;
  without_gil([&](Interrupt& interrupt) { refused = encode(job, threads, interrupt); });
  return refused;
}

py::dict by_tier(std::atomic<int64_t> Counters::* count) {
  py::dict result;
  for (const Tier* const* t = kTiers; *t != nullptr; ++t) result[(*t)->name] = (counters(**t).*count).load();
  return result;
}

}  // namespace
}  // namespace colbert_fast

// The functions need no global interpreter lock: a tensor is read as tensors.h says, tuples do not change,
// and what threads share is atomic (counters, what the system has granted) or guarded (the pool of
// threads.cpp).
PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  using namespace colbert_fast;
  make_names();
  m.doc() = "CPU kernels of colbert_fast. Private.";
  // By which _extension.py knows that the Python files beside it are those that it was built with.
  m.attr("stub") = COLBERT_FAST_STUB;
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
        const char* reason = refused(tier_named(name));
        return reason == nullptr ? py::object(py::none()) : py::object(py::str(reason));
      },
      "None, or the reason why a tier cannot run; asks the operating system for what it needs.");
  m.def(
      "calls", [] { return by_tier(&Counters::calls); },
      "{name: how often the tier has run in this process}.");
  m.def(
      "chunks_screened", [] { return by_tier(&Counters::chunks_screened); },
      "{name: how many chunks of documents the tier has screened in this process}.");
  m.def(
      "left_out", [] { return by_tier(&Counters::left_out); },
      "{name: how many scores the tier has left out in this process, because they are not among the best}.");
  m.def("pool_size", &pool_size, "Threads started so far.");
  m.def("score", &py_score, "Fills scores and, unless it is None, argmax. True if a document had no token.");
  m.def("upper", &py_upper, "Fills bounds with upper bounds of the scores of queries with codes.");
  m.def("ceilings", &py_ceilings,
        "Fills most with what no score exceeds; False if the tier cannot. For the tests.");
  m.def("best", &py_best, "Fills scores and numbers. True if a document had no token.");
  m.def("set_main_thread", &set_main_thread,
        "Sets the identifier of the main thread. Signals are handled while that thread scores.");
  m.def("row_counts", &row_counts,
        "The number of rows of each tensor; None unless all are plain matrices of one dtype and one dim.");
  m.def("runs_of_mask", &py_runs_of_mask,
        "Fills starts and lengths; False if a mask keeps more than one run of rows of an item.");
  m.def("encode", &py_encode,
        "Fills levels, low unless it is None, and fits. -1, or the first token with a NaN or an infinity.");
  m.def("backward", &py_backward, "Adds one side's gradient to grad.");
}
