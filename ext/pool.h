// The eligible items, for uniform draws: for policies that explore, and for a flat tail.
#pragma once

#include <algorithm>
#include <vector>

#include "sampling.h"

namespace fastrank {

// Eligible positions by rank: the r-th set bit of the filter.
class Eligible {
 public:
  Eligible(const Source& source, int64_t n_eligible) : words_(source.eligible), n_(n_eligible) {
    if (!words_) return;
    int64_t before = 0;
    for (int64_t panel = 0; panel < source.n_panels; ++panel) {
      if (panel % kStep == 0) before_.push_back(before);
      before += __builtin_popcount(words_[panel]);
    }
  }

  int64_t count() const { return n_; }

  int64_t position(int64_t rank) const {
    if (!words_) return rank;
    const auto after = std::upper_bound(before_.begin(), before_.end(), rank);
    int64_t panel = (after - before_.begin() - 1) * kStep;
    rank -= *(after - 1);
    for (; rank >= __builtin_popcount(words_[panel]); ++panel)
      rank -= __builtin_popcount(words_[panel]);
    uint32_t word = words_[panel];
    for (; rank > 0; --rank) word &= word - 1;
    return panel * kLanes + __builtin_ctz(word);
  }

 private:
  static constexpr int64_t kStep = 32;
  const uint16_t* words_;
  int64_t n_;
  std::vector<int64_t> before_;  // eligible items before every 32nd panel
};

// The items not yet chosen. While fewer than half can be chosen, a set of the chosen ones for
// rejection (less than two tries each); otherwise a list, which is then no longer than 2 k.
class Pool {
 public:
  Pool(const Eligible& eligible, int64_t k, Interrupt* interrupt)
      : eligible_(eligible),
        left_(eligible.count()),
        listed_(2 * k >= eligible.count()),
        slot_of_(size_t(listed_ ? eligible.count() : k)) {
    if (!listed_) return;
    list_.reserve(size_t(left_));
    for (int64_t rank = 0; rank < left_; ++rank) {
      interrupt->check(1);
      list_.push_back(eligible.position(rank));
      slot_of_[list_.back()] = rank;
    }
  }

  int64_t left() const { return left_; }

  int64_t draw(Stream* stream) const {
    if (listed_) return list_[stream->below(uint64_t(left_))];
    for (;;) {
      const int64_t rank = int64_t(stream->below(uint64_t(eligible_.count())));
      const int64_t position = eligible_.position(rank);
      if (!slot_of_.contains(position)) return position;
    }
  }

  void remove(int64_t position) {
    --left_;
    if (!listed_) {
      slot_of_[position] = 0;
      return;
    }
    const int64_t slot = slot_of_[position], last = list_[size_t(left_)];
    list_[size_t(slot)] = last;
    slot_of_[last] = slot;
  }

 private:
  const Eligible& eligible_;
  int64_t left_;
  bool listed_;
  std::vector<int64_t> list_;
  FlatMap<int64_t> slot_of_;
};

}  // namespace fastrank
