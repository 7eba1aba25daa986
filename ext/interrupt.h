// Whether a call is to end before it is done: the Poll of kernels.h, asked now and then.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include "kernels.h"

namespace fastrank {

// Thrown where a computation gives up, and caught before the call returns.
struct Interrupted {};

// What the threads of one call know of it. To ask is the caller's thread's, to obey is everyone's.
// A short call never looks at a clock, and another thread than the caller's reads one flag.
class Interrupt {
 public:
  explicit Interrupt(const Poll& poll) : poll_(poll), caller_(std::this_thread::get_id()) {}
  Interrupt(const Interrupt&) = delete;

  // Whether to stop now that so many panels are scored, or as much else is done, since last time.
  bool stop(int64_t panels) {
    if (asks()) {
      left_ -= panels;
      if (left_ <= 0) look_at_clock();
    }
    return stopped();
  }

  void check(int64_t panels) {
    if (stop(panels)) throw Interrupted();
  }

  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }

  // Whether it is for this thread to ask, at least every kInterval while it waits.
  bool asks() const { return poll_.stop && std::this_thread::get_id() == caller_; }

  void ask() {
    if (poll_.stop(poll_.context)) stopped_.store(true, std::memory_order_relaxed);
  }

  // To ask takes Python's lock, which can be 5 ms away.
  static constexpr std::chrono::milliseconds kInterval{25};

 private:
  using Clock = std::chrono::steady_clock;

  void look_at_clock() {
    left_ = kPanels;
    if (next_ != Clock::time_point() && Clock::now() < next_) return;
    if (next_ != Clock::time_point()) ask();
    next_ = Clock::now() + kInterval;
  }

  static constexpr int64_t kPanels = 512;  // 0.2 ms with 64 dimensions

  const Poll poll_;
  const std::thread::id caller_;
  std::atomic<bool> stopped_{false};
  int64_t left_ = kPanels;  // until the clock is looked at; this and the next are the caller's
  Clock::time_point next_;  // when to ask; unset until the call lasts
};

}  // namespace fastrank
