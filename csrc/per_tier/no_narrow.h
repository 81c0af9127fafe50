// The Narrow (screen.h) of a tier that multiplies nothing but float32. This file is compiled once for each
// such tier, inside the tier's target region, and includes no system header.

#pragma once

namespace colbert_fast {
namespace {

struct Narrow {
  template <typename T>
  using Screen = void;
  static constexpr bool kBFloat16 = false;
  static constexpr bool kCeilings = false;
  static constexpr const Tier* kForFloat32Queries = nullptr;
  static constexpr bool kLeavesFloat32 = false;
  static constexpr int64_t kBytes = 0;
  static constexpr int kSinkVecs = 1;
};

}  // namespace
}  // namespace colbert_fast
