#include "host/upper.h"

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "host/plan.h"
#include "host/rotation.h"
#include "host/run_tasks.h"
#include "host/tiers.h"
#include "host/workspace.h"

namespace colbert_fast {
namespace {

static_assert(kMostCodedDim <= kMostRotatedDim);

constexpr double kMostNumber = 127.0;
// Query tokens that are rotated side by side, and the groups of them that are a task.
constexpr int kTogether = kRotatedTogether;
constexpr int64_t kGroupsTogether = 8;

// Rounding to nearest, and no flushing of denormals, while an object of this class lives.
class PlainArithmetic {
 public:
  PlainArithmetic() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  PlainArithmetic(const PlainArithmetic&) = delete;
  PlainArithmetic& operator=(const PlainArithmetic&) = delete;
  ~PlainArithmetic() { std::fesetenv(&before_); }

 private:
  std::fenv_t before_;
};

// What a CodedQueries points into.
class Lanes {
 public:
  Lanes(const Tokens& q, const float* signs, int64_t dim);

  int64_t count() const { return static_cast<int64_t>(rows_.size()); }
  // Prepares the lanes from number `begin` on, at most kTogether of them.
  void prepare(int64_t begin);
  // Once all lanes are prepared.
  CodedQueries queries();

 private:
  void quantise(int64_t lane, int r, double norm, double largest, const double* numbers);

  const float* signs_;
  int64_t dim_;
  std::vector<int64_t> segment_ = {0};
  std::vector<const float*> rows_;
  std::vector<int8_t> numbers_;
  std::vector<int32_t> sums_;
  std::vector<float> ratios_;
  std::vector<double> scales_, lane_errors_, errors_, leasts_;
};

Lanes::Lanes(const Tokens& q, const float* signs, int64_t dim) : signs_(signs), dim_(dim) {
  for (int64_t i = 0; i < q.count; ++i) {
    for (int64_t t = 0; t < q.lengths[i]; ++t)
      rows_.push_back(static_cast<const float*>(q.data) + (q.starts[i] + t) * q.row_stride);
    segment_.push_back(count());
  }
  numbers_.resize(rows_.size() * static_cast<size_t>(dim));
  sums_.resize(rows_.size());
  ratios_.resize(rows_.size());
  scales_.resize(rows_.size());
  lane_errors_.resize(rows_.size());
}

void Lanes::prepare(int64_t begin) {
  const PlainArithmetic plain;
  const int64_t lanes = std::min<int64_t>(kTogether, count() - begin);
  std::vector<double> numbers(static_cast<size_t>(dim_ * kTogether));
  double squares[kTogether] = {};
  double largest[kTogether] = {};
  for (int64_t r = 0; r < lanes; ++r) {
    const float* const row = rows_[static_cast<size_t>(begin + r)];
    for (int64_t k = 0; k < dim_; ++k)
      numbers[static_cast<size_t>(k * kTogether + r)] = static_cast<double>(row[k]);
  }
  const auto each = [&](auto of) {
    for (int64_t k = 0; k < dim_; ++k) {
      for (int r = 0; r < kTogether; ++r) of(r, numbers[static_cast<size_t>(k * kTogether + r)]);
    }
  };
  each([&](int r, double value) { squares[r] += value * value; });
  rotate(numbers.data(), dim_, signs_);
  each([&](int r, double value) { largest[r] = std::max(largest[r], std::fabs(value)); });
  for (int r = 0; r < lanes; ++r) quantise(begin + r, r, std::sqrt(squares[r]), largest[r], numbers.data());
}

// Fills in everything of a lane from its rotated numbers, numbers[k * kTogether + r].
//
// The largest of them becomes 127 or -127, and the sum becomes even: the number changes that this takes the
// least from. The arithmetic is in double. So 2^-40 of the norm is a margin for all of its roundings, which
// are at most dim + 8 and those of the rotation, as rotation.h has them. per_tier/upper.h says what the other
// margins are for.
void Lanes::quantise(int64_t lane, int r, double norm, double largest, const double* numbers) {
  const size_t at = static_cast<size_t>(lane);
  ratios_[at] = 1.0f;
  if (!std::isfinite(norm)) lane_errors_[at] = std::numeric_limits<double>::infinity();
  if (!std::isfinite(norm) || !(largest > 0.0)) return;
  const double scale = largest / kMostNumber;
  const double inverse = kMostNumber / largest;
  int8_t* const to = numbers_.data() + lane * dim_;
  int32_t sum = 0;
  int32_t squares = 0;
  double lost = 0.0;
  double most = -2.0;
  int64_t most_at = 0;
  int step = 0;
  for (int64_t k = 0; k < dim_; ++k) {
    const double value = numbers[k * kTogether + r] * inverse;
    const int32_t number = static_cast<int32_t>(value + (value < 0.0 ? -0.5 : 0.5));
    const double rest = value - number;
    const bool down = number == 127 || (rest < 0.0 && number != -127);
    const double taken = down ? -rest : rest;
    if (taken > most) {
      most = taken;
      most_at = k;
      step = down ? -1 : 1;
    }
    to[k] = static_cast<int8_t>(number);
    sum += number;
    squares += number * number;
    lost += rest * rest;
  }
  if (sum % 2 != 0) {
    lost += 1.0 - 2.0 * most;
    squares += 2 * step * to[most_at] + 1;
    sum += step;
    to[most_at] = static_cast<int8_t>(to[most_at] + step);
  }
  sums_[at] = sum;
  scales_[at] = scale;
  ratios_[at] = static_cast<float>(norm / scale * (1.0 + 0x1p-20));
  const double taken = std::sqrt(lost) + 0x1p-20 * std::sqrt(static_cast<double>(squares));
  lane_errors_[at] = scale * taken + (0x1p-40 + rotation_error<double>(dim_)) * norm;
}

CodedQueries Lanes::queries() {
  const PlainArithmetic plain;
  for (size_t i = 0; i + 1 < segment_.size(); ++i) {
    double error = 0.0;
    double least = 0.0;
    for (size_t l = static_cast<size_t>(segment_[i]); l < static_cast<size_t>(segment_[i + 1]); ++l) {
      error += lane_errors_[l];
      least += scales_[l] * 0x1p-98;
    }
    errors_.push_back(error * (1.0 + 0x1p-24));
    leasts_.push_back(least);
  }
  return {numbers_.data(), sums_.data(),   ratios_.data(), scales_.data(),
          segment_.data(), errors_.data(), leasts_.data(), static_cast<int64_t>(errors_.size())};
}

}  // namespace

void upper(const Tier& tier, const Tokens& q, const float* signs, const Codes& documents, int threads,
           float* bounds, Interrupt& interrupt) {
  Problem p = {};
  p.q = q;
  p.d.count = documents.count;
  p.d.starts = documents.starts;
  p.d.lengths = documents.lengths;
  p.dim = documents.dim;
  p.all_pairs = true;
  if (num_pairs(p) == 0) return;
  counters(tier).calls.fetch_add(1);
  threads = threads_worth(flops(p), threads);
  Lanes lanes(q, signs, documents.dim);
  const Plan plan = plan_all_pairs(p, wanted_tasks(threads));
  threads = static_cast<int>(std::min<int64_t>(threads, static_cast<int64_t>(plan.tasks.size())));
  Workspace workspace(documents, tier, plan.lanes, threads, interrupt);
  const auto prepare = [](void* context, int64_t task, int) {
    Lanes& all = *static_cast<Lanes*>(context);
    const int64_t end = std::min(all.count(), (task + 1) * kGroupsTogether * kTogether);
    for (int64_t lane = task * kGroupsTogether * kTogether; lane < end; lane += kTogether) all.prepare(lane);
  };
  const int64_t groups = (lanes.count() + kTogether - 1) / kTogether;
  parallel_for((groups + kGroupsTogether - 1) / kGroupsTogether, threads, prepare, &lanes, interrupt);
  if (interrupt.heard() || interrupt.lost()) return;
  const CodedQueries queries = lanes.queries();
  const UpperJob job = {&queries, &documents, bounds};
  run_tasks(job, plan.tasks, tier.upper, workspace, interrupt);
}

}  // namespace colbert_fast
