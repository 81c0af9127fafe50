// How the extension reads torch's tensors: through their Python methods, without torch's library. Everything
// that could make a kernel access memory outside its buffers is checked here, and refused. The numbers that
// are checked are copied first, and the kernels use the copies.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "codes.h"
#include "maxsim.h"

namespace py = pybind11;

namespace colbert_fast {

// Makes the names that tensors are asked by. The module calls this while it is imported. Later several
// threads could ask for the names at once, and those that wait would keep a Python without the global
// interpreter lock from stopping all threads, as its collector of garbage does: the thread that makes the
// names would wait too.
void make_names();

// Throws std::invalid_argument unless cpu.py may pass this number.
DType dtype_of(int64_t number);

// The memory of a strided tensor of one or two dimensions on the CPU. Another thread may give the tensor
// other memory, or another shape, at any time. This object keeps the shape, the strides and the storage that
// the tensor had when it was read, and the storage lives as long as this object. One danger is left: a thread
// may shrink that storage while a kernel reads it. Every operation of torch has this danger, because torch
// has no way to forbid it.
class Memory {
 public:
  // `number_bytes` is the size of one number. Throws std::invalid_argument if the storage is too small for
  // the tensor, or if the numbers are not aligned to their size.
  Memory(py::handle tensor, int dims, int64_t number_bytes, const std::string& name);

  template <typename T>
  T* data() const {
    return reinterpret_cast<T*>(data_);
  }
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  int64_t row_stride() const { return row_stride_; }
  // Whether the numbers of a row are adjacent.
  bool adjacent() const { return rows_ == 0 || columns_ < 2 || column_stride_ == 1; }
  bool contiguous() const {
    return rows_ == 0 || columns_ == 0 || (adjacent() && (rows_ < 2 || row_stride_ == columns_));
  }

 private:
  py::object storage_;
  unsigned char* data_ = nullptr;
  int64_t rows_ = 0, columns_ = 1, row_stride_ = 1, column_stride_ = 1;
};

// A contiguous tensor of `count` numbers, or more.
template <typename T>
class Numbers {
 public:
  Numbers(py::handle tensor, int dims, int64_t count, const char* name);
  T* data() const { return memory_.data<T>(); }

 private:
  Memory memory_;
};

// The memory for `count` results, in a tensor that cpu.py has just made. Nobody else has this tensor, so it
// cannot change.
template <typename T>
T* output(py::handle tensor, int64_t count, const char* name);

// One side of a problem, and everything that its `tokens` point into.
struct Side {
  // `parts` comes from cpu.py. It is (dtype, tokens, starts, lengths, scales or None), or (dtype, items, dim)
  // if every item is a matrix of its own.
  Side(const py::tuple& parts, const char* which);

  Tokens tokens = {};
  int64_t dim = 0;
  int64_t longest = 0;  // tokens of the longest item
  std::vector<int64_t> starts, lengths;
  std::vector<const void*> items;
  std::vector<Memory> memory;

 private:
  void read_packed(py::handle rows, py::handle starts_of, py::handle lengths_of, py::handle scales,
                   const std::string& which);
  void read_items(py::handle matrices, const std::string& which);
  void check_items(const std::string& which);
};

// A problem, and the sides and pairs that it points into. `pairs` is None for all pairs, or [p, 2].
struct Sides {
  Sides(const py::tuple& q, const py::tuple& d, py::handle pairs, int64_t max_lq, bool skip_zero_q,
        bool skip_zero_d);

  Side q, d;
  std::vector<int64_t> pairs;
  Problem problem = {};
};

// Documents as codes, and everything that its `codes` point into.
struct CodedDocuments {
  // `parts` comes from cpu_upper.py: (bits, dim, levels, low or None, multipliers, slack, norms, starts,
  // lengths).
  explicit CodedDocuments(const py::tuple& parts);

  Codes codes = {};
  std::vector<int64_t> starts, lengths;
  std::vector<Memory> memory;
};

// Throws if the number of scores, times the max_lq numbers of argmax for each score, is more than any memory
// holds.
void check_results(int64_t queries, int64_t documents, int64_t max_lq);

// A list with the number of rows of each item, if all items are matrices of one dim and one floating dtype on
// the CPU, and have exactly this type and this layout. Otherwise None.
py::object row_counts(const py::tuple& items, py::handle type, py::handle layout);

}  // namespace colbert_fast
