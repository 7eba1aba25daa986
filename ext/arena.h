// Memory for what the users of a pass note, handed out in order and freed as a whole.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastrank {

// Large blocks ask the system for huge pages: a batch writes down megabytes, and a fault for every
// 4 KB of them took 8 % of its time.
class Pages {
 public:
  explicit Pages(size_t bytes) : bytes_(bytes) {
#if defined(__linux__)
    if (bytes_ >= kHugePage) {
      bytes_ += kHugePage;  // of which a part lies before the first huge page
      void* const mapped =
          mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (mapped == MAP_FAILED) throw std::bad_alloc();
      madvise(mapped, bytes_, MADV_HUGEPAGE);
      data_ = static_cast<char*>(mapped);
      return;
    }
#endif
    data_ = static_cast<char*>(::operator new(bytes_));
  }

  ~Pages() {
#if defined(__linux__)
    if (bytes_ >= kHugePage) {
      munmap(data_, bytes_);
      return;
    }
#endif
    ::operator delete(data_);
  }

  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  char* data() const { return data_; }
  size_t size() const { return bytes_; }

 private:
  static constexpr size_t kHugePage = size_t(1) << 21;
  size_t bytes_;
  char* data_;
};

class Arena {
 public:
  // Room for `count` values, which are not initialised. Throws std::bad_alloc.
  template <class Value>
  Value* take(int64_t count) {
    const size_t bytes = size_t(count) * sizeof(Value);
    if (pages_.empty() || used_ + bytes > pages_.back()->size()) reserve(bytes);
    Value* const first = reinterpret_cast<Value*>(pages_.back()->data() + used_);
    used_ += (bytes + 63) / 64 * 64;
    return first;
  }

  // That so many bytes come from one block. Throws std::bad_alloc.
  void reserve(size_t bytes) {
    const size_t last = pages_.empty() ? 0 : pages_.back()->size();
    const size_t more = last < kMore ? last : kMore;
    pages_.push_back(std::make_unique<Pages>(bytes > more ? bytes : more));
    used_ = 0;
  }

 private:
  static constexpr size_t kMore = size_t(1) << 22;  // bytes of a further block, at most, if they do

  std::vector<std::unique_ptr<Pages>> pages_;
  size_t used_ = 0;  // of the last block
};

}  // namespace fastrank
