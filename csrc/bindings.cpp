// The module colbert_fast._C. Tensors come in, by torch's Python methods and without its library; the GIL is
// released while scoring. Everything that could make a kernel leave its buffers is checked here, and refused,
// on the copy that is used.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "limits.h"
#include "masks.h"
#include "maxsim.h"
#include "threads.h"

namespace py = pybind11;

namespace colbert_fast {
namespace {

// While it lives, other Python threads run. Python ends a thread that wants the GIL back after the
// interpreter has begun to finalise by pthread_exit, whose unwinding must not pass through torch's frames and
// ours: such a thread sleeps until the process is gone, as Python 3.14 arranges by itself.
class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;
  ~ReleasedGil() { take(); }

  // True if Python's handler of a signal raised, as that of Ctrl-C does; the exception is then pending.
  bool handle_signals() {
    take();
    bool raised = PyErr_CheckSignals() != 0;
    if (!raised && forks() != forks_) {
      // The other threads of this call are in the parent, and with them a part of the results.
      PyErr_SetString(PyExc_RuntimeError, "forked by a handler of signals in the middle of this call");
      raised = true;
    }
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
  const int64_t forks_ = forks();
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

// What torch's tensors are asked, by names that are made once.
struct Names {
  PyObject* dtype = PyUnicode_InternFromString("dtype");
  PyObject* is_cpu = PyUnicode_InternFromString("is_cpu");
  PyObject* is_floating_point = PyUnicode_InternFromString("is_floating_point");
  PyObject* layout = PyUnicode_InternFromString("layout");
  PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
  PyObject* numel = PyUnicode_InternFromString("numel");
  PyObject* nbytes = PyUnicode_InternFromString("nbytes");
  PyObject* shape = PyUnicode_InternFromString("shape");
  PyObject* storage_offset = PyUnicode_InternFromString("storage_offset");
  PyObject* stride = PyUnicode_InternFromString("stride");
  PyObject* untyped_storage = PyUnicode_InternFromString("untyped_storage");
};

const Names& names() {
  static const Names* const kNames = new Names;
  return *kNames;
}

py::object asked(py::handle object, PyObject* method) {
  PyObject* const answer = PyObject_CallMethodNoArgs(object.ptr(), method);
  if (answer == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(answer);
}

py::object attribute(py::handle object, PyObject* name) {
  PyObject* const value = PyObject_GetAttr(object.ptr(), name);
  if (value == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(value);
}

int64_t integer(py::handle value) {
  const int64_t result = PyLong_AsLongLong(value.ptr());
  if (result == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return result;
}

// Where a storage is, or 0: torch has tensors of zeros that are only described, and raises when it is asked.
uintptr_t address_of(py::handle storage) {
  PyObject* const address = PyObject_CallMethodNoArgs(storage.ptr(), names().data_ptr);
  if (address == nullptr) {
    if (!PyErr_ExceptionMatches(PyExc_RuntimeError)) throw py::error_already_set();
    PyErr_Clear();
    return 0;
  }
  return static_cast<uintptr_t>(integer(py::reinterpret_steal<py::object>(address)));
}

// A tuple of `count` integers, one or two.
bool integers(const py::object& tuple, Py_ssize_t count, int64_t (&values)[2]) {
  if (!PyTuple_Check(tuple.ptr()) || PyTuple_GET_SIZE(tuple.ptr()) != count) return false;
  for (Py_ssize_t i = 0; i < count; ++i) values[i] = integer(PyTuple_GET_ITEM(tuple.ptr(), i));
  return true;
}

// The memory of a strided tensor of one or two dimensions in CPU memory: where it is, and that all of it is
// there. Another thread may give the tensor other memory, or another shape, at any time: what counts is what
// was true here, and the storage that was asked is held as long as this lives. Whoever shrinks that storage
// while it is read takes the memory away from under us, as from under any operation of torch: nothing but
// torch's own lock could keep him from it.
class Memory {
 public:
  Memory() = default;

  // `element` is the size of one in bytes. Throws if the elements are not aligned to it, or not there.
  Memory(py::handle tensor, int dims, int64_t element, const char* name) {
    py::object storage = asked(tensor, names().untyped_storage);
    const int64_t offset = integer(asked(tensor, names().storage_offset));
    int64_t sizes[2] = {0, 1};
    int64_t strides[2] = {1, 1};
    if (!integers(attribute(tensor, names().shape), dims, sizes) ||
        !integers(asked(tensor, names().stride), dims, strides))
      throw std::invalid_argument(std::string(name) + " must have " + std::to_string(dims) + " dimensions");
    rows_ = sizes[0];
    columns_ = sizes[1];
    row_stride_ = strides[0];
    column_stride_ = strides[1];
    const int64_t bytes = integer(asked(storage, names().nbytes));
    const uintptr_t begin = address_of(storage);
    // torch keeps sizes and strides of 0 or more whose products do not overflow.
    const int64_t last = offset + (rows_ - 1) * row_stride_ + (columns_ - 1) * column_stride_;
    if (rows_ > 0 && columns_ > 0 && (begin == 0 || last >= bytes / element)) {
      throw std::invalid_argument(std::string(name) + " needs " + std::to_string(last + 1) +
                                  " elements of memory; its storage has " + std::to_string(bytes / element));
    }
    const uintptr_t data = begin + static_cast<uintptr_t>(offset * element);
    if (data % static_cast<uintptr_t>(element) != 0)
      throw std::invalid_argument(std::string(name) + " must be aligned to its element size");
    data_ = reinterpret_cast<unsigned char*>(data);
    storage_ = std::move(storage);
  }

  template <typename T>
  T* data() const {
    return reinterpret_cast<T*>(data_);
  }
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  int64_t row_stride() const { return row_stride_; }
  bool adjacent() const { return rows_ == 0 || columns_ < 2 || column_stride_ == 1; }
  bool contiguous() const {
    return rows_ == 0 || columns_ == 0 || (adjacent() && (rows_ < 2 || row_stride_ == columns_));
  }

 private:
  py::object storage_;
  unsigned char* data_ = nullptr;
  int64_t rows_ = 0, columns_ = 1, row_stride_ = 1, column_stride_ = 1;
};

void check_count(int64_t there, int64_t needed, const char* name) {
  if (there >= needed) return;
  throw std::invalid_argument(std::string(name) + " must have " + std::to_string(needed) + " elements; got " +
                              std::to_string(there));
}

// A contiguous tensor of `count` elements, or more.
template <typename T>
class Numbers {
 public:
  Numbers(py::handle tensor, int dims, int64_t count, const char* name)
      : memory_(tensor, dims, sizeof(T), name) {
    if (!memory_.contiguous()) throw std::invalid_argument(std::string(name) + " must be contiguous");
    check_count(memory_.rows() * memory_.columns(), count, name);
  }
  T* data() const { return memory_.data<T>(); }

 private:
  Memory memory_;
};

// Where to write `count` results: into a tensor that cpu.py has just made, which nobody else has.
template <typename T>
T* output(py::handle tensor, int64_t count, const char* name) {
  check_count(integer(asked(tensor, names().numel)), count, name);
  return reinterpret_cast<T*>(static_cast<uintptr_t>(integer(asked(tensor, names().data_ptr))));
}

// A copy, for nobody may write to what bounds an access after it has been checked.
std::vector<int64_t> copied(py::handle tensor, int dims, const char* name) {
  const Memory memory(tensor, dims, sizeof(int64_t), name);
  if (!memory.contiguous()) throw std::invalid_argument(std::string(name) + " must be contiguous");
  const int64_t* const first = memory.data<const int64_t>();
  if (memory.rows() * memory.columns() == 0) return {};
  return std::vector<int64_t>(first, first + memory.rows() * memory.columns());
}

int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : dtype == DType::kInt8 ? 1 : 2; }

// One side of a problem, and all that must live as long. `tokens` points into it.
struct Side {
  Tokens tokens = {};
  int64_t dim = 0;
  int64_t longest = 0;
  std::vector<int64_t> starts, lengths;
  std::vector<const void*> items;
  std::vector<Memory> memory;
};

std::string named(const char* which, const char* part) { return std::string(which) + "_" + part; }

void check_items(Side& side, const char* which) {
  for (size_t i = 0; i < side.lengths.size(); ++i) {
    const int64_t start = side.starts.empty() ? 0 : side.starts[i];
    const int64_t length = side.lengths[i];
    const int64_t rows_there = side.starts.empty() ? length : side.tokens.rows;
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
    side.longest = std::max(side.longest, length);
  }
  side.tokens.starts = side.starts.data();
  side.tokens.lengths = side.lengths.data();
  side.tokens.count = static_cast<int64_t>(side.lengths.size());
}

// Items that are rows of one matrix. Their dtype, and that of the offsets, was checked: it is what a tensor
// cannot change.
void read_packed(py::handle tokens, py::handle starts, py::handle lengths, py::handle scales, DType dtype,
                 const char* which, Side& side) {
  side.memory.emplace_back(tokens, 2, element_size(dtype), named(which, "tokens").c_str());
  const Memory& matrix = side.memory.back();
  if (!matrix.adjacent())
    throw std::invalid_argument(named(which, "tokens") + " must have adjacent elements in a row");
  side.dim = matrix.columns();
  side.tokens.data = matrix.data<const void>();
  // Embeddings of no dimensions have no address to add a stride to.
  side.tokens.row_stride = side.dim == 0 ? 0 : matrix.row_stride();
  side.tokens.rows = matrix.rows();
  side.tokens.dtype = dtype;
  if ((dtype == DType::kInt8) != !scales.is_none()) {
    throw std::invalid_argument(std::string(which) +
                                " needs scales if its rows are int8, and only then, in one matrix");
  }
  if (!scales.is_none()) {
    side.memory.emplace_back(scales, 1, sizeof(float), named(which, "scales").c_str());
    const Memory& factors = side.memory.back();
    if (!factors.contiguous() || factors.rows() != side.tokens.rows) {
      throw std::invalid_argument(named(which, "scales") + " must be contiguous, one for each of the " +
                                  std::to_string(side.tokens.rows) + " rows; got " +
                                  std::to_string(factors.rows()));
    }
    // Where there are no rows there is no memory, but the rows are int8 all the same.
    static const float kNone = 0.0f;
    side.tokens.scales = factors.rows() == 0 ? &kNone : factors.data<const float>();
  }
  side.starts = copied(starts, 1, named(which, "starts").c_str());
  side.lengths = copied(lengths, 1, named(which, "lengths").c_str());
  if (side.starts.size() != side.lengths.size()) {
    throw std::invalid_argument(named(which, "starts") + " and " + named(which, "lengths") +
                                " must be equally long; got " + std::to_string(side.starts.size()) + " and " +
                                std::to_string(side.lengths.size()));
  }
  check_items(side, which);
}

// Items that lie apart, each a matrix.
void read_items(py::handle items, int64_t dim, DType dtype, const char* which, Side& side) {
  if (!PyTuple_Check(items.ptr())) throw std::invalid_argument("items must be a tuple");
  const Py_ssize_t count = PyTuple_GET_SIZE(items.ptr());
  side.dim = dim;
  side.tokens.row_stride = dim;
  side.tokens.dtype = dtype;
  side.memory.reserve(static_cast<size_t>(count));
  for (Py_ssize_t i = 0; i < count; ++i) {
    const py::handle item = PyTuple_GET_ITEM(items.ptr(), i);
    const auto refuse = [&](const char* why) {
      throw std::invalid_argument("item " + std::to_string(i) + " of " + which + " " + why);
    };
    side.memory.emplace_back(item, 2, element_size(dtype), which);
    const Memory& matrix = side.memory.back();
    if (matrix.rows() > 0 && matrix.columns() != dim) refuse("has another dim than the first");
    if (!matrix.contiguous()) refuse("must be contiguous");
    side.items.push_back(matrix.data<const void>());
    side.lengths.push_back(matrix.rows());
  }
  check_items(side, which);
  side.tokens.items = side.items.data();
}

// The sides of a problem, which points into them.
struct Sides {
  Side q, d;
  std::vector<int64_t> pairs;
  Problem problem = {};
};

// There are so many scores, with so many numbers of the argmax each.
void check_results(int64_t queries, int64_t documents, int64_t max_lq) {
  constexpr int64_t kMost = int64_t{1} << 48;
  if (queries == 0 || documents == 0) return;
  if (queries > kMost / documents || queries * documents > kMost / std::max<int64_t>(max_lq, 1))
    throw std::invalid_argument("there are more results than any memory holds");
}

void read_problem(py::handle pairs, int64_t max_lq, bool skip_zero_q, bool skip_zero_d, Sides& sides) {
  Problem& p = sides.problem;
  p.q = sides.q.tokens;
  p.d = sides.d.tokens;
  if (p.q.dtype == DType::kInt8 || (p.d.dtype != DType::kInt8 && p.d.dtype != p.q.dtype))
    throw std::invalid_argument("q and d need the same dtype, or d int8");
  p.dim = sides.q.dim;
  if (sides.d.dim != p.dim) {
    throw std::invalid_argument("q and d need the same dim; got " + std::to_string(p.dim) + " and " +
                                std::to_string(sides.d.dim));
  }
  // A row of the argmax has max_lq numbers: as many as a query can have, and not 2^62.
  if (max_lq < sides.q.longest || max_lq > std::numeric_limits<int32_t>::max() ||
      (p.q.count > 0 && max_lq > p.q.rows)) {
    throw std::invalid_argument("the longest of " + std::to_string(p.q.count) + " queries has " +
                                std::to_string(sides.q.longest) + " tokens, of " + std::to_string(p.q.rows) +
                                " in all; max_lq says " + std::to_string(max_lq));
  }
  p.max_lq = max_lq;
  p.skip_zero_q = skip_zero_q;
  p.skip_zero_d = skip_zero_d;
  // Nothing that is counted in lanes times dimensions may overflow, whatever a tensor without memory says.
  if (p.dim > std::numeric_limits<int32_t>::max())
    throw std::invalid_argument("dim must be 2147483647 or less");
  p.all_pairs = pairs.is_none();
  if (p.all_pairs) return check_results(p.q.count, p.d.count, max_lq);
  sides.pairs = copied(pairs, 2, "pairs");
  if (sides.pairs.size() % 2 != 0) throw std::invalid_argument("pairs must be [p, 2]");
  p.pairs = sides.pairs.data();
  p.num_pairs = static_cast<int64_t>(sides.pairs.size() / 2);
  check_results(p.num_pairs, 1, max_lq);
  for (int64_t i = 0; i < p.num_pairs; ++i) {
    const int64_t query = p.pairs[2 * i];
    const int64_t document = p.pairs[2 * i + 1];
    if (query < 0 || query >= p.q.count || document < 0 || document >= p.d.count) {
      throw std::invalid_argument("pairs[" + std::to_string(i) + "] is (" + std::to_string(query) + ", " +
                                  std::to_string(document) + "); there are " + std::to_string(p.q.count) +
                                  " queries and " + std::to_string(p.d.count) + " documents");
    }
  }
}

DType dtype_of(int64_t number) {
  if (number < 0 || number > 3)
    throw std::invalid_argument("dtype " + std::to_string(number) + "; 0 to 3 are known");
  return static_cast<DType>(number);
}

// (dtype, tokens, starts, lengths, scales or None), or (dtype, items, dim): what cpu.py makes of a side.
void read_side(const py::tuple& parts, const char* which, Side& side) {
  const auto part = [&](Py_ssize_t i) { return py::handle(PyTuple_GET_ITEM(parts.ptr(), i)); };
  if (parts.size() == 5) {
    read_packed(part(1), part(2), part(3), part(4), dtype_of(integer(part(0))), which, side);
  } else if (parts.size() == 3) {
    read_items(part(1), integer(part(2)), dtype_of(integer(part(0))), which, side);
  } else {
    throw std::invalid_argument(std::string(which) + " must be a tuple of five, or of three");
  }
}

int checked_threads(int threads) {
  if (threads < 1) throw std::invalid_argument("threads must be 1 or more; got " + std::to_string(threads));
  return threads;
}

int64_t pairs_of(const Problem& p) { return p.all_pairs ? p.q.count * p.d.count : p.num_pairs; }

// The thread that Python gives signals to.
std::atomic<unsigned long> g_main_thread{0};

void set_main_thread(unsigned long ident) { g_main_thread.store(ident); }

// Lets other Python threads run while it works, and hears Ctrl-C meanwhile.
template <typename Work>
void without_gil(const Work& work) {
  const bool main = PyThread_get_thread_ident() == g_main_thread.load();
  bool raised = false;
  {
    ReleasedGil released;
    const auto pending = [](void* context) { return static_cast<ReleasedGil*>(context)->handle_signals(); };
    Interrupt interrupt(main ? +pending : nullptr, &released);
    work(interrupt);
    raised = interrupt.heard();
  }
  if (raised) throw py::error_already_set();
}

bool py_score(const std::string& tier, const py::tuple& q, const py::tuple& d, py::handle pairs,
              int64_t max_lq, bool skip_zero_q, bool skip_zero_d, int threads, py::handle scores,
              py::handle argmax) {
  const Tier& t = tier_named(tier);
  threads = checked_threads(threads);
  Sides sides;
  read_side(q, "q", sides.q);
  read_side(d, "d", sides.d);
  read_problem(pairs, max_lq, skip_zero_q, skip_zero_d, sides);
  const Problem& p = sides.problem;
  float* const out = output<float>(scores, pairs_of(p), "scores");
  int32_t* const winners =
      argmax.is_none() ? nullptr : output<int32_t>(argmax, pairs_of(p) * p.max_lq, "argmax");
  bool empty_document = false;
  without_gil([&](Interrupt& interrupt) { empty_document = score(t, p, threads, out, winners, interrupt); });
  return empty_document;
}

void py_backward(const std::string& tier, const py::tuple& q, const py::tuple& d, py::handle pairs,
                 int64_t max_lq, int threads, bool to_queries, py::handle grad_scores, py::handle argmax,
                 py::handle grad) {
  const Tier& t = tier_named(tier);
  threads = checked_threads(threads);
  Sides sides;
  read_side(q, "q", sides.q);
  read_side(d, "d", sides.d);
  read_problem(pairs, max_lq, false, false, sides);
  const Problem& p = sides.problem;
  if (p.q.items != nullptr || p.d.items != nullptr)
    throw std::invalid_argument("gradients need both sides in one matrix");
  const Numbers<float> weights(grad_scores, 1, pairs_of(p), "grad_scores");
  const Numbers<int32_t> winners(argmax, 2, pairs_of(p) * p.max_lq, "argmax");
  float* const out = output<float>(grad, (to_queries ? p.q : p.d).rows * p.dim, "grad");
  without_gil([&](Interrupt& interrupt) {
    backward(t, p, threads, to_queries, weights.data(), winners.data(), out, interrupt);
  });
}

// The number of rows of each item, if all are matrices of one dim and one floating dtype in CPU memory, of
// this very type and layout; else None.
py::object row_counts(const py::tuple& items, py::handle type, py::handle layout) {
  if (items.empty()) return py::none();
  py::list counts(items.size());
  py::object dtype;
  int64_t dim = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    const py::handle item = PyTuple_GET_ITEM(items.ptr(), static_cast<Py_ssize_t>(i));
    if (reinterpret_cast<PyObject*>(Py_TYPE(item.ptr())) != type.ptr()) return py::none();
    int64_t shape[2] = {};
    if (!attribute(item, names().layout).is(layout) || attribute(item, names().is_cpu).ptr() != Py_True ||
        !integers(attribute(item, names().shape), 2, shape))
      return py::none();
    const py::object its_dtype = attribute(item, names().dtype);
    if (i == 0) {
      if (asked(item, names().is_floating_point).ptr() != Py_True) return py::none();
      dtype = its_dtype;
      dim = shape[1];
    }
    if (!its_dtype.is(dtype) || shape[1] != dim) return py::none();
    PyList_SET_ITEM(counts.ptr(), static_cast<Py_ssize_t>(i), PyLong_FromLongLong(shape[0]));
  }
  return counts;
}

bool py_runs_of_mask(py::handle mask, py::handle starts, py::handle lengths) {
  const Memory rows(mask, 2, 1, "mask");
  if (!rows.contiguous()) throw std::invalid_argument("mask must be contiguous");
  const Numbers<int64_t> first(starts, 1, rows.rows(), "starts");
  const Numbers<int64_t> count(lengths, 1, rows.rows(), "lengths");
  return runs_of_mask(rows.data<const unsigned char>(), rows.rows(), rows.columns(), first.data(),
                      count.data());
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

double py_measure_read(const std::string& tier, int threads, py::handle memory) {
  const Tier& t = tier_named(tier);
  threads = checked_threads(threads);
  const Memory floats(memory, 1, sizeof(float), "memory");
  if (floats.rows() < 1 || !floats.contiguous())
    throw std::invalid_argument("read needs contiguous floats, one or more");
  const ReleasedGil released;
  return measure_read(t, threads, floats.data<const void>(),
                      floats.rows() * static_cast<int64_t>(sizeof(float)));
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
  m.def(
      "set_main_thread", &set_main_thread,
      "Signals are handled while the thread of this ident scores: the main one, in a forked child another.");
  m.def("row_counts", &row_counts,
        "The rows of each of these tensors; None unless they are plain matrices that are alike.");
  m.def("runs_of_mask", &py_runs_of_mask,
        "Fills starts and lengths; False if an item is not one run of rows.");
  m.def("products", &py_products, "The dtypes that a tier has multiply-adds for.");
  m.def("measure_flops", &py_measure_flops, "Operations a second of a tier's multiply-adds of a dtype.");
  m.def("measure_read", &py_measure_read, "Bytes a second of one pass over memory with software prefetch.");
  m.def("backward", &py_backward, "Adds one side's gradient to grad.");
}
