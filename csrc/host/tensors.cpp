#include "host/tensors.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

namespace colbert_fast {
namespace {

// The names of the methods and attributes of tensors that are used.
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

// The address of a storage, or 0. Some tensors of torch have no memory, and torch raises an error when it is
// asked for their address.
uintptr_t address_of(py::handle storage) {
  PyObject* const address = PyObject_CallMethodNoArgs(storage.ptr(), names().data_ptr);
  if (address == nullptr) {
    if (!PyErr_ExceptionMatches(PyExc_RuntimeError)) throw py::error_already_set();
    PyErr_Clear();
    return 0;
  }
  return static_cast<uintptr_t>(integer(py::reinterpret_steal<py::object>(address)));
}

// Reads a tuple of `count` integers, one or two. False if it is something else.
bool integers(const py::object& tuple, Py_ssize_t count, int64_t (&values)[2]) {
  if (!PyTuple_Check(tuple.ptr()) || PyTuple_GET_SIZE(tuple.ptr()) != count) return false;
  for (Py_ssize_t i = 0; i < count; ++i) values[i] = integer(PyTuple_GET_ITEM(tuple.ptr(), i));
  return true;
}

// A copy of a tensor of int64. These numbers bound what a kernel reads, so nobody may change them after they
// were checked.
std::vector<int64_t> copied(py::handle tensor, int dims, const std::string& name) {
  const Memory memory(tensor, dims, sizeof(int64_t), name);
  if (!memory.contiguous()) throw std::invalid_argument(name + " must be contiguous");
  const int64_t count = memory.rows() * memory.columns();
  const int64_t* const first = memory.data<const int64_t>();
  return count == 0 ? std::vector<int64_t>() : std::vector<int64_t>(first, first + count);
}

void check_count(int64_t there, int64_t needed, const char* name) {
  if (there >= needed) return;
  throw std::invalid_argument(std::string(name) + " must have " + std::to_string(needed) + " elements; got " +
                              std::to_string(there));
}

// Throws if an item is not among the rows.
void check_item(size_t item, int64_t start, int64_t length, int64_t rows, const std::string& which) {
  // This compares start with rows - length, because start + length could overflow.
  if (start < 0 || length < 0 || length > rows || start > rows - length) {
    throw std::invalid_argument("item " + std::to_string(item) + " of " + which + " is the rows [" +
                                std::to_string(start) + ", +" + std::to_string(length) + ") of " +
                                std::to_string(rows));
  }
  if (length > std::numeric_limits<int32_t>::max()) {
    throw std::invalid_argument("item " + std::to_string(item) + " of " + which + " has " +
                                std::to_string(length) + " tokens; 2147483647 is the most");
  }
}

}  // namespace

void make_names() { names(); }

DType dtype_of(int64_t number) {
  if (number < 0 || number > 3)
    throw std::invalid_argument("dtype " + std::to_string(number) + "; 0 to 3 are known");
  return static_cast<DType>(number);
}

void check_results(int64_t queries, int64_t documents, int64_t max_lq) {
  constexpr int64_t kMost = int64_t{1} << 48;
  if (queries == 0 || documents == 0) return;
  if (queries > kMost / documents || queries * documents > kMost / std::max<int64_t>(max_lq, 1))
    throw std::invalid_argument("there are more results than any memory holds");
}

Memory::Memory(py::handle tensor, int dims, int64_t number_bytes, const std::string& name) {
  py::object storage = asked(tensor, names().untyped_storage);
  const int64_t offset = integer(asked(tensor, names().storage_offset));
  int64_t sizes[2] = {0, 1};
  int64_t strides[2] = {1, 1};
  if (!integers(attribute(tensor, names().shape), dims, sizes) ||
      !integers(asked(tensor, names().stride), dims, strides))
    throw std::invalid_argument(name + " must have " + std::to_string(dims) + " dimensions");
  rows_ = sizes[0];
  columns_ = sizes[1];
  row_stride_ = strides[0];
  column_stride_ = strides[1];
  const int64_t bytes = integer(asked(storage, names().nbytes));
  const uintptr_t begin = address_of(storage);
  // torch makes sure that sizes and strides are 0 or more, and that these products do not overflow.
  const int64_t last = offset + (rows_ - 1) * row_stride_ + (columns_ - 1) * column_stride_;
  if (rows_ > 0 && columns_ > 0 && (begin == 0 || last >= bytes / number_bytes)) {
    throw std::invalid_argument(name + " needs " + std::to_string(last + 1) +
                                " elements of memory; its storage has " +
                                std::to_string(bytes / number_bytes));
  }
  const uintptr_t data = begin + static_cast<uintptr_t>(offset * number_bytes);
  if (data % static_cast<uintptr_t>(number_bytes) != 0)
    throw std::invalid_argument(name + " must be aligned to its element size");
  data_ = reinterpret_cast<unsigned char*>(data);
  storage_ = std::move(storage);
}

template <typename T>
Numbers<T>::Numbers(py::handle tensor, int dims, int64_t count, const char* name)
    : memory_(tensor, dims, sizeof(T), name) {
  if (!memory_.contiguous()) throw std::invalid_argument(std::string(name) + " must be contiguous");
  check_count(memory_.rows() * memory_.columns(), count, name);
}
template class Numbers<float>;
template class Numbers<int32_t>;
template class Numbers<int64_t>;

template <typename T>
T* output(py::handle tensor, int64_t count, const char* name) {
  check_count(integer(asked(tensor, names().numel)), count, name);
  return reinterpret_cast<T*>(static_cast<uintptr_t>(integer(asked(tensor, names().data_ptr))));
}
template float* output<float>(py::handle tensor, int64_t count, const char* name);
template int64_t* output<int64_t>(py::handle tensor, int64_t count, const char* name);
template int32_t* output<int32_t>(py::handle tensor, int64_t count, const char* name);
template uint8_t* output<uint8_t>(py::handle tensor, int64_t count, const char* name);
template uint16_t* output<uint16_t>(py::handle tensor, int64_t count, const char* name);

Side::Side(const py::tuple& parts, const char* which) {
  const auto part = [&](Py_ssize_t i) { return py::handle(PyTuple_GET_ITEM(parts.ptr(), i)); };
  if (parts.size() != 5 && parts.size() != 3)
    throw std::invalid_argument(std::string(which) + " must be a tuple of five, or of three");
  tokens.dtype = dtype_of(integer(part(0)));
  if (parts.size() == 5) {
    read_packed(part(1), part(2), part(3), part(4), which);
  } else {
    dim = integer(part(2));
    read_items(part(1), which);
  }
  check_items(which);
}

// Reads items that are rows of one matrix. Python has checked the dtype of the tensors, which no thread can
// change.
void Side::read_packed(py::handle rows, py::handle starts_of, py::handle lengths_of, py::handle scales,
                       const std::string& which) {
  memory.emplace_back(rows, 2, bytes_of(tokens.dtype), which + "_tokens");
  const Memory& matrix = memory.back();
  if (!matrix.adjacent()) throw std::invalid_argument(which + "_tokens must have adjacent elements in a row");
  dim = matrix.columns();
  tokens.data = matrix.data<const void>();
  // Rows without numbers may have no address, and nothing may be added to a null pointer.
  tokens.row_stride = dim == 0 ? 0 : matrix.row_stride();
  tokens.rows = matrix.rows();
  if ((tokens.dtype == DType::kInt8) != !scales.is_none())
    throw std::invalid_argument(which + " needs scales if its rows are int8, and only then");
  if (!scales.is_none()) {
    memory.emplace_back(scales, 1, sizeof(float), which + "_scales");
    const Memory& factors = memory.back();
    if (!factors.contiguous() || factors.rows() != tokens.rows) {
      throw std::invalid_argument(which + "_scales must be contiguous, one for each of the " +
                                  std::to_string(tokens.rows) + " rows; got " +
                                  std::to_string(factors.rows()));
    }
    // A matrix without rows has no scales in memory. `scales` must not be null: the dtype is int8 all the
    // same.
    static const float kNone = 0.0f;
    tokens.scales = factors.rows() == 0 ? &kNone : factors.data<const float>();
  }
  starts = copied(starts_of, 1, which + "_starts");
  lengths = copied(lengths_of, 1, which + "_lengths");
  if (starts.size() != lengths.size()) {
    throw std::invalid_argument(which + "_starts and " + which + "_lengths must be equally long; got " +
                                std::to_string(starts.size()) + " and " + std::to_string(lengths.size()));
  }
}

// Reads items that are matrices of their own.
void Side::read_items(py::handle matrices, const std::string& which) {
  if (!PyTuple_Check(matrices.ptr())) throw std::invalid_argument("items must be a tuple");
  const Py_ssize_t count = PyTuple_GET_SIZE(matrices.ptr());
  tokens.row_stride = dim;
  memory.reserve(static_cast<size_t>(count));
  for (Py_ssize_t i = 0; i < count; ++i) {
    memory.emplace_back(PyTuple_GET_ITEM(matrices.ptr(), i), 2, bytes_of(tokens.dtype), which);
    const Memory& matrix = memory.back();
    if (!matrix.contiguous() || (matrix.rows() > 0 && matrix.columns() != dim)) {
      throw std::invalid_argument("item " + std::to_string(i) + " of " + which +
                                  " must be contiguous, and of the dim of the first");
    }
    items.push_back(matrix.data<const void>());
    lengths.push_back(matrix.rows());
  }
  tokens.items = items.data();
}

void Side::check_items(const std::string& which) {
  for (size_t i = 0; i < lengths.size(); ++i) {
    const int64_t start = starts.empty() ? 0 : starts[i];
    const int64_t length = lengths[i];
    check_item(i, start, length, starts.empty() ? length : tokens.rows, which);
    longest = std::max(longest, length);
  }
  tokens.starts = starts.data();
  tokens.lengths = lengths.data();
  tokens.count = static_cast<int64_t>(lengths.size());
}

Sides::Sides(const py::tuple& q_parts, const py::tuple& d_parts, py::handle listed, int64_t max_lq,
             bool skip_zero_q, bool skip_zero_d)
    : q(q_parts, "q"), d(d_parts, "d") {
  Problem& p = problem;
  p.q = q.tokens;
  p.d = d.tokens;
  const bool fit = p.d.dtype == p.q.dtype || p.d.dtype == DType::kInt8 || p.q.dtype == DType::kFloat32;
  if (p.q.dtype == DType::kInt8 || !fit)
    throw std::invalid_argument("q and d need the same dtype, or q float32, or d int8");
  p.dim = q.dim;
  if (d.dim != p.dim) {
    throw std::invalid_argument("q and d need the same dim; got " + std::to_string(p.dim) + " and " +
                                std::to_string(d.dim));
  }
  // A tensor without memory may have any dim. The number of lanes times dim must not overflow.
  if (p.dim > std::numeric_limits<int32_t>::max())
    throw std::invalid_argument("dim must be 2147483647 or less");
  // A row of the argmax has max_lq numbers. The longest query needs so many, and no query can have more
  // tokens than there are rows.
  if (max_lq < q.longest || max_lq > std::numeric_limits<int32_t>::max() ||
      (p.q.count > 0 && max_lq > p.q.rows)) {
    throw std::invalid_argument("the longest of " + std::to_string(p.q.count) + " queries has " +
                                std::to_string(q.longest) + " tokens, of " + std::to_string(p.q.rows) +
                                " in all; max_lq says " + std::to_string(max_lq));
  }
  p.max_lq = max_lq;
  p.skip_zero_q = skip_zero_q;
  p.skip_zero_d = skip_zero_d;
  p.all_pairs = listed.is_none();
  if (p.all_pairs) {
    check_results(p.q.count, p.d.count, max_lq);
    return;
  }
  pairs = copied(listed, 2, "pairs");
  if (pairs.size() % 2 != 0) throw std::invalid_argument("pairs must be [p, 2]");
  p.pairs = pairs.data();
  p.num_pairs = static_cast<int64_t>(pairs.size() / 2);
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

CodedDocuments::CodedDocuments(const py::tuple& parts) {
  const auto part = [&](Py_ssize_t i) { return py::handle(PyTuple_GET_ITEM(parts.ptr(), i)); };
  if (parts.size() != 9) throw std::invalid_argument("codes must be a tuple of nine");
  const int64_t bits = integer(part(0));
  const bool planes = !part(3).is_none();
  if ((bits != 8 && bits != 4 && bits != 2 && bits != 1) || (planes && bits != 8)) {
    throw std::invalid_argument("codes must have 8, 4, 2 or 1 bits, and 8 in two planes; got " +
                                std::to_string(bits));
  }
  codes.bits = static_cast<int>(bits);
  codes.dim = integer(part(1));
  if (codes.dim < 1 || codes.dim > kMostCodedDim) {
    throw std::invalid_argument("codes must have a dim of 1 to " + std::to_string(kMostCodedDim) + "; got " +
                                std::to_string(codes.dim));
  }
  const int64_t per_byte = planes ? 2 : 8 / bits;
  codes.row_bytes = (codes.dim + per_byte - 1) / per_byte;
  // Checks one array; `rows` is then what all arrays of rows must have.
  const auto read = [&](Py_ssize_t i, int dims, int64_t number_bytes, int64_t rows, const char* name) {
    memory.emplace_back(part(i), dims, number_bytes, name);
    const Memory& array = memory.back();
    const int64_t columns = dims == 2 ? codes.row_bytes : 1;
    if (!array.contiguous() || array.columns() != columns || (rows >= 0 && array.rows() != rows)) {
      throw std::invalid_argument(std::string(name) + " must be contiguous, " +
                                  (rows >= 0 ? std::to_string(rows) : std::string("any number of")) +
                                  " rows of " + std::to_string(columns) + "; got " +
                                  std::to_string(array.rows()) + " rows of " +
                                  std::to_string(array.columns()));
    }
    return memory.size() - 1;
  };
  memory.reserve(5);
  const Memory& levels = memory[read(2, 2, 1, -1, "levels")];
  const int64_t rows = levels.rows();
  codes.levels = levels.data<const unsigned char>();
  // Without rows the plane may have no address.
  static const unsigned char kNone = 0;
  if (planes) {
    const unsigned char* const low = memory[read(3, 2, 1, rows, "low")].data<const unsigned char>();
    codes.low = rows == 0 ? &kNone : low;
  }
  codes.multipliers = memory[read(4, 1, 2, rows, "multipliers")].data<const uint16_t>();
  codes.slack = memory[read(5, 1, 2, rows, "slack")].data<const uint16_t>();
  starts = copied(part(7), 1, "starts");
  lengths = copied(part(8), 1, "lengths");
  codes.count = static_cast<int64_t>(lengths.size());
  codes.norms = memory[read(6, 1, 4, codes.count, "norms")].data<const float>();
  if (starts.size() != lengths.size()) {
    throw std::invalid_argument("starts and lengths must be equally long; got " +
                                std::to_string(starts.size()) + " and " + std::to_string(lengths.size()));
  }
  for (size_t i = 0; i < lengths.size(); ++i) check_item(i, starts[i], lengths[i], rows, "codes");
  codes.starts = starts.data();
  codes.lengths = lengths.data();
}

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

}  // namespace colbert_fast
