// What kernels.cpp and upper_checks.cpp share: memory of exactly the right size, numbers, and checks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#define CF_GUARD_PAGES 1
#elif defined(_WIN32)
#define NOMINMAX
#include <windows.h>
#define CF_GUARD_PAGES 1
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(CF_NO_GUARD_PAGES)
#undef CF_GUARD_PAGES
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#undef CF_GUARD_PAGES
#endif
#endif

// What is being checked; and a check of it, which ends the program if it has not passed.
extern std::string g_case;
extern int64_t g_checks;
void check(bool passed, const char* what);

namespace {

// Memory that ends where the program must not read or write.
class Memory {
 public:
#ifdef CF_GUARD_PAGES
  explicit Memory(size_t bytes) {
    const size_t page = page_size();
    const size_t used = (bytes + page - 1) / page * page;
    mapped_ = used + page;
#ifdef _WIN32
    // A page that is reserved and not committed must not be touched.
    pages_ = static_cast<char*>(VirtualAlloc(nullptr, mapped_, MEM_RESERVE, PAGE_NOACCESS));
    if (pages_ == nullptr) std::abort();
    if (used > 0 && VirtualAlloc(pages_, used, MEM_COMMIT, PAGE_READWRITE) == nullptr) std::abort();
#else
    pages_ =
        static_cast<char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0));
    if (pages_ == MAP_FAILED || mprotect(pages_ + used, page, PROT_NONE) != 0) std::abort();
#endif
    data_ = pages_ + used - bytes;
  }
  Memory(const Memory&) = delete;
  Memory(Memory&& other) noexcept : pages_(other.pages_), mapped_(other.mapped_), data_(other.data_) {
    other.mapped_ = 0;
  }
#ifdef _WIN32
  ~Memory() {
    if (mapped_ != 0) VirtualFree(pages_, 0, MEM_RELEASE);
  }
#else
  ~Memory() {
    if (mapped_ != 0) munmap(pages_, mapped_);
  }
#endif
  void* data() const { return data_; }

 private:
  static size_t page_size() {
#ifdef _WIN32
    SYSTEM_INFO system;
    GetSystemInfo(&system);
    return system.dwPageSize;
#else
    return static_cast<size_t>(sysconf(_SC_PAGESIZE));
#endif
  }

  char* pages_;
  size_t mapped_;
  void* data_;
#else
  explicit Memory(size_t bytes) : data_(new char[bytes]) {}
  void* data() const { return data_.get(); }

 private:
  std::unique_ptr<char[]> data_;
#endif
};

// Exactly `size` values. The spare capacity of a std::vector would hide a read past its end.
template <typename T>
class Block {
 public:
  Block(int64_t size, T value) : size_(size), memory_(static_cast<size_t>(size) * sizeof(T)) {
    std::fill(get(), get() + size, value);
  }
  explicit Block(const std::vector<T>& from) : Block(static_cast<int64_t>(from.size()), T()) {
    std::copy(from.begin(), from.end(), get());
  }

  T* get() { return static_cast<T*>(memory_.data()); }
  const T* get() const { return static_cast<const T*>(memory_.data()); }
  const T& operator[](int64_t i) const { return get()[i]; }
  T& operator[](int64_t i) { return get()[i]; }
  bool same_bits(const Block& other) const {
    const size_t bytes = static_cast<size_t>(size_) * sizeof(T);
    return size_ == other.size_ && (bytes == 0 || std::memcmp(get(), other.get(), bytes) == 0);
  }

 private:
  int64_t size_;
  Memory memory_;
};

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  int64_t below(int64_t n) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(n)); }
  double unit() { return static_cast<double>(engine_()) / 2147483648.0 - 1.0; }

 private:
  std::mt19937 engine_;  // gives the same numbers everywhere; distributions of the standard do not
};

}  // namespace
