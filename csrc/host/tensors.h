// What the extension reads of torch's tensors: by their Python methods, without torch's library. Everything
// that could make a kernel leave its buffers is checked here, and refused, on the copy that is used.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "maxsim.h"

namespace py = pybind11;

namespace colbert_fast {

// The memory of a strided tensor of one or two dimensions on the CPU. Another thread may give the tensor
// other memory, or another shape, at any time. What was true when the tensor was read counts, and the storage
// that was asked is held as long as this object lives. A thread that shrinks that storage while a kernel
// reads it still takes the memory away, as it does in any operation of torch: torch has no way to forbid it.
class Memory {
 public:
  // `element` is the size of one element in bytes. Throws std::invalid_argument if the elements are not
  // there, or are not aligned to their size.
  Memory(py::handle tensor, int dims, int64_t element, const std::string& name);

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

// A contiguous tensor of `count` elements, or more.
template <typename T>
class Numbers {
 public:
  Numbers(py::handle tensor, int dims, int64_t count, const char* name);
  T* data() const { return memory_.data<T>(); }

 private:
  Memory memory_;
};

// Where to write `count` results: into a tensor that cpu.py has just made, which nobody else has.
template <typename T>
T* output(py::handle tensor, int64_t count, const char* name);

// One side of a problem, and all that must live as long. `tokens` points into it.
struct Side {
  // `parts` is what cpu.py makes of a side: (dtype, tokens, starts, lengths, scales or None), or of items
  // that lie apart (dtype, items, dim).
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

// A problem, and the sides and pairs that it points into. `pairs` is None, or [p, 2].
struct Sides {
  Sides(const py::tuple& q, const py::tuple& d, py::handle pairs, int64_t max_lq, bool skip_zero_q,
        bool skip_zero_d);

  int64_t num_scores() const {
    return problem.all_pairs ? problem.q.count * problem.d.count : problem.num_pairs;
  }

  Side q, d;
  std::vector<int64_t> pairs;
  Problem problem = {};
};

// The number of rows of each item, if all are matrices of one dim and one floating dtype on the CPU, of this
// very type and layout; else None.
py::object row_counts(const py::tuple& items, py::handle type, py::handle layout);

}  // namespace colbert_fast
