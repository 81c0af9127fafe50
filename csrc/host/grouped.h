// A counting sort.
#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

namespace colbert_fast {

// The numbers 0 .. count - 1 in the order of their groups. The numbers of one group are in ascending order.
struct Grouped {
  std::vector<int64_t> order;
  std::vector<int64_t> first;  // group g is order[first[g] .. first[g + 1])
};

// group_of(number) is in [0, groups).
template <typename GroupOf>
Grouped group_by(int64_t count, int64_t groups, GroupOf group_of) {
  Grouped result;
  result.order.resize(static_cast<size_t>(count));
  result.first.assign(static_cast<size_t>(groups + 1), 0);
  for (int64_t i = 0; i < count; ++i) ++result.first[static_cast<size_t>(group_of(i) + 1)];
  std::partial_sum(result.first.begin(), result.first.end(), result.first.begin());
  std::vector<int64_t> next(result.first.begin(), result.first.end() - 1);
  for (int64_t i = 0; i < count; ++i) {
    result.order[static_cast<size_t>(next[static_cast<size_t>(group_of(i))]++)] = i;
  }
  return result;
}

}  // namespace colbert_fast
