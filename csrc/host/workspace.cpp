#include "host/workspace.h"

#include <algorithm>
#include <new>

namespace colbert_fast {
namespace {

// Document rows that meet all panels of a block before the next rows are read. Together with one panel of
// 16 KiB they fit an L1 cache of 48 KiB.
constexpr int64_t kRowBytes = 18 * 1024;
// The same for the rows of documents as codes, which are fewer bytes, and their least number: two tiles of
// AMX.
constexpr int64_t kCodedBytes = 32 * 1024;
constexpr int64_t kCodedRows = 32;

// Every array begins at a cache line of its own, and one unused line lies between two arrays. So no two
// threads share a line, and arrays whose size is a power of two do not begin at the same address modulo 4
// KiB.
constexpr int64_t kAlignment = 64;

// The most rows of one document that are screened, or copied, together. It is a multiple of 64, which makes
// whole vectors and whole tiles of them.
int64_t most_rows_together(const Tokens& documents) {
  int64_t most = 1;
  for (int64_t i = 0; i < documents.count && most < kMostChunkRows; ++i)
    most = std::max(most, documents.lengths[i]);
  return round_up(std::min(most, kMostChunkRows), 64);
}

int64_t block_rows(const Problem& p, const Tier& tier) {
  const int64_t by_cache = kRowBytes / std::max<int64_t>(1, p.dim * static_cast<int64_t>(sizeof(float)));
  return std::max<int64_t>(1, by_cache / tier.panel_rows) * tier.panel_rows;
}

}  // namespace

Workspace::Workspace(const Problem& p, const Tier& tier, int64_t lanes, int64_t queries, int threads,
                     Interrupt& interrupt)
    : scratch_(static_cast<size_t>(threads)) {
  lanes = round_up(std::max<int64_t>(lanes, 1), tier.panel_lanes);
  allocate([&](Scratch& s) { take_all(p, tier, lanes, queries, s); }, interrupt);
}

Workspace::Workspace(const Codes& documents, const Tier& tier, int64_t lanes, int threads,
                     Interrupt& interrupt)
    : scratch_(static_cast<size_t>(threads)) {
  lanes = round_up(std::max<int64_t>(lanes, 1), tier.panel_lanes);
  allocate([&](Scratch& s) { take_upper(documents, tier, lanes, s); }, interrupt);
}

template <typename TakeEach>
void Workspace::allocate(TakeEach take_each, Interrupt& interrupt) {
  // The first pass counts the bytes, the second pass hands them out.
  for (Scratch& s : scratch_) take_each(s);
  memory_.reset(new unsigned char[static_cast<size_t>(used_ + kAlignment)]);
  used_ = 0;
  for (Scratch& s : scratch_) take_each(s);
  for (Scratch& s : scratch_) {
    s.call = &interrupt;
    s.interrupted = [](void* call) { return static_cast<const Interrupt*>(call)->heard(); };
  }
  // Worker 0 is the calling thread.
  scratch_[0].interrupted = [](void* call) { return static_cast<Interrupt*>(call)->look(); };
}

int64_t Workspace::chunks_screened() const {
  int64_t sum = 0;
  for (const Scratch& s : scratch_) sum += s.chunks_screened;
  return sum;
}

bool Workspace::rescored() const {
  return std::any_of(scratch_.begin(), scratch_.end(), [](const Scratch& s) { return s.rescored; });
}

bool Workspace::saw_empty_document() const {
  return std::any_of(scratch_.begin(), scratch_.end(), [](const Scratch& s) { return s.saw_empty_document; });
}

// scratch.h says what each array holds.
void Workspace::take_all(const Problem& p, const Tier& tier, int64_t lanes, int64_t queries, Scratch& s) {
  s = Scratch();
  s.block_rows = block_rows(p, tier);
  take(lanes * p.dim, s.query_rows);
  take(lanes * p.dim, s.float32_queries);
  take_best(lanes, s.best);
  take(lanes, s.token);
  take(queries + 1, s.segment);
  take(s.block_rows * std::max<int64_t>(p.dim, 1), s.float32_rows);
  if (tier.narrow_bytes > 0) take_narrow(p, tier, lanes, s);
}

void Workspace::take_narrow(const Problem& p, const Tier& tier, int64_t lanes, Scratch& s) {
  const int64_t row_floats = std::max<int64_t>(p.dim, 1);
  const int64_t bytes = round_up(2 * row_floats, tier.narrow_bytes);
  const int64_t chunk = most_rows_together(p.d);
  for (float** array : {&s.lane_floor, &s.lane_error, &s.lane_slack, &s.lane_scale, &s.lane_spread})
    take(lanes, *array);
  take(lanes, s.lane_offset);
  if (p.d.dtype == DType::kBFloat16) {
    take(lanes * bytes, s.bf16_queries);
    take(chunk * bytes, s.bf16_rows);
    take_best(lanes, s.bf16_best);
    take_best(lanes, s.float32_best);
  }
  if (p.dim > kMostScreenedDim) return;
  take(lanes * bytes, s.screened_queries);
  take(chunk * bytes + kNarrowSlack, s.narrow_rows);
  take(chunk, s.row_scales);
  take(chunk, s.row_offset);
  take(chunk * tier.panel_lanes, s.uppers);
  take(chunk, s.picked);
  take(chunk + 1, s.picked_lanes);
  take(kMostCandidates, s.candidates);
  take(tier.panel_lanes * round_up(4 * row_floats, tier.narrow_bytes), s.chosen_rows);
}

void Workspace::take_upper(const Codes& documents, const Tier& tier, int64_t lanes, Scratch& s) {
  s = Scratch();
  const bool narrow = tier.narrow_bytes > 0;
  const int64_t numbers = round_up(documents.numbers(), std::max<int64_t>(tier.narrow_bytes, 1));
  const int64_t row_bytes = numbers * (narrow ? 1 : static_cast<int64_t>(sizeof(float)));
  s.block_rows = round_up(std::max<int64_t>(kCodedBytes / row_bytes, 1), kCodedRows);
  take_best(lanes, s.best);
  take(lanes, s.lane_offset);
  take(lanes, s.lane_ratio);
  take(s.block_rows, s.row_scales);
  take(s.block_rows, s.row_slacks);
  take(s.block_rows * numbers + kNarrowSlack, s.narrow_rows);
  if (narrow) {
    take(lanes * numbers, s.screened_queries);
  } else {
    take(lanes * numbers, s.query_rows);
    take(lanes * numbers, s.float32_queries);
    take(s.block_rows * numbers, s.float32_rows);
  }
}

void Workspace::take_best(int64_t lanes, Best& best) {
  take(lanes, best.value);
  take(lanes, best.token);
}

// Without memory this counts the bytes only.
template <typename T>
void Workspace::take(int64_t count, T*& array) {
  // No machine has so much memory, and the sums below cannot overflow.
  constexpr int64_t kMost = int64_t{1} << 48;
  if (count > kMost / static_cast<int64_t>(sizeof(T)) || used_ > kMost) throw std::bad_alloc();
  if (memory_ != nullptr) {
    const int64_t past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(memory_.get()) % kAlignment);
    array = reinterpret_cast<T*>(memory_.get() + (kAlignment - past) + used_);
  }
  used_ += round_up(count * static_cast<int64_t>(sizeof(T)), kAlignment) + kAlignment;
}

}  // namespace colbert_fast
