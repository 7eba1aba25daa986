// What the samplers share: draws, candidates and their order, the heap of the k best, masses.
// Compiled for the baseline only, so that entries and normalisers have the same bits everywhere.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "elementary.h"
#include "interrupt.h"
#include "kernels.h"
#include "philox.h"

namespace fastrank {

// ---- Draws ----------------------------------------------------------------------------------

enum Purpose : uint32_t {
  kJumps = 0,
  kSequentialDraws = 1,
  kCoins = 3,
  kExploration = 4,
  kUniformDraws = 5,
  kTableDraws = 6,
  kFlatTailDraws = 7,
};

// The numbers of one (seed, chunk, purpose), in order.
class Stream {
 public:
  Stream(uint64_t seed, uint32_t chunk, Purpose purpose)
      : seed_(seed), chunk_(chunk), purpose_(purpose) {}

  // Strictly inside (0, 1).
  double uniform() { return uniform_of(next()); }

  double exponential() { return -log(uniform()); }

  // Uniform on 0, ..., bound - 1, without bias (Lemire, "Fast random integer generation in an
  // interval", 2019).
  uint64_t below(uint64_t bound) {
    __extension__ using Wide = unsigned __int128;
    const uint64_t unfair = (0 - bound) % bound;
    for (;;) {
      const Wide product = Wide(next()) * bound;
      if (uint64_t(product) >= unfair) return uint64_t(product >> 64);
    }
  }

 private:
  uint64_t next() {
    if (count_ % 2 == 0) {
      const uint64_t draw = count_ / 2;
      block_ = philox4x32_10(Block{{uint32_t(draw), uint32_t(draw >> 32), chunk_, purpose_}},
                             uint32_t(seed_), uint32_t(seed_ >> 32));
    }
    const uint32_t* words = block_.word + 2 * (count_++ % 2);
    return words[0] | uint64_t(words[1]) << 32;
  }

  uint64_t seed_, count_ = 0;
  uint32_t chunk_, purpose_;
  Block block_ = {};
};

// ---- Candidates -----------------------------------------------------------------------------

// An item with its key, score / T + gumbel, kept in two parts: at large score / T the sum would
// round the noise away, and with it the law among items of equal score.
struct Candidate {
  double gumbel;       // -log(exponential); 0 for the deterministic policy
  double exponential;  // 1 for the deterministic policy
  int64_t position;
  float score;
};

inline Candidate perturbed(float score, int64_t position, double exponential) {
  return {-log(exponential), exponential, position, score};
}

struct Order {
  double inv_temperature;
  const int64_t* rows;  // of a source

  int64_t row(int64_t position) const { return rows ? rows[position] : position; }

  bool better(const Candidate& a, const Candidate& b) const {
    const double difference =
        (double(a.score) - double(b.score)) * inv_temperature + (a.gumbel - b.gumbel);
    return difference != 0.0 ? difference > 0.0 : row(a.position) < row(b.position);
  }
};

// ---- Masses ---------------------------------------------------------------------------------

inline void add(Mass* sum, Mass term, double inv_temperature) {
  if (term.value == 0.0) return;
  if (sum->value == 0.0) {
    *sum = term;
    return;
  }
  if (term.reference > sum->reference) std::swap(*sum, term);
  sum->value += term.value * exp((term.reference - sum->reference) * inv_temperature);
}

// Conditional log-propensities of items shown in this order, `mass` being that of all other
// eligible items. With x_j = log(mass after place j / w_j), log P_j = -log(1 + e^x_j): sums of
// positive terms from the last place on, so nothing cancels and nothing is above 0, whatever the
// order. Returns the log-normaliser.
template <class Score>
double conditional(const Score* scores, int64_t count, Mass mass, double temperature,
                   double* log_propensities) {
  const double inv_t = 1.0 / temperature;
  for (int64_t j = count - 1; j >= 0; --j) {
    const double score = double(scores[j]);
    const double x = log(mass.value) + (mass.reference - score) * inv_t;
    log_propensities[j] = 0.0 - softplus(x);
    add(&mass, {1.0, score}, inv_t);
  }
  return log(mass.value) + mass.reference * inv_t;
}

// Conditional log-propensity under epsilon-greedy, with `left` items to choose from.
inline double epsilon_greedy(bool best, double epsilon, int64_t left) {
  const double chance = epsilon / double(left);
  if (!best) return log(chance);
  // The last item is certain, though (1 - epsilon) + epsilon may round below 1.
  return left == 1 ? 0.0 : std::min(0.0, log((1.0 - epsilon) + chance));
}

// ---- Partials -------------------------------------------------------------------------------

// What is not known exactly in the mass of a partial whose scores are estimates: sums over items of
// an estimated weight w, of w * deviation and (w * deviation)^2. See normaliser.h.
struct Doubt {
  Mass mass, scaled, variance;
  Mass noted;      // of estimates, of the items noted
  double cut = -kInfinity;  // as a score: what reached it was noted
  int64_t panels;  // visited
  bool costly;     // estimates would not pay: what comes later is to do without
  bool estimated;  // there are items of which no more is kept than an estimate
};

inline void add(Doubt* sum, const Doubt& term, double inv_temperature) {
  add(&sum->mass, term.mass, inv_temperature);
  add(&sum->scaled, term.scaled, inv_temperature);
  add(&sum->variance, term.variance, 2.0 * inv_temperature);
  add(&sum->noted, term.noted, inv_temperature);
  sum->cut = std::max(sum->cut, term.cut);
  sum->panels += term.panels;
  sum->costly |= term.costly;
  sum->estimated |= term.estimated;
}

// The masses, label by label, of items that a partial does not keep, relative to one score.
class LabelMasses {
 public:
  std::vector<double> values;
  double reference = -kInfinity;  // until there is an item

  void make_room(const Source& source) {
    labels_ = source.labels;
    values.resize(size_t(source.n_labels));
  }

  void clear() { reference = -kInfinity; }

  void add(const Candidate& item, double inv_temperature) {
    if (!labels_) return;
    const double score = double(item.score);
    if (!((score - reference) * inv_temperature < kFar)) refer_to(score, inv_temperature);
    values[labels_[item.position]] += exp((score - reference) * inv_temperature);
  }

  void add(const LabelMasses& other, double inv_temperature) {
    if (!labels_ || other.reference == -kInfinity) return;
    if (other.reference > reference) refer_to(other.reference, inv_temperature);
    const double factor = exp((other.reference - reference) * inv_temperature);
    for (size_t i = 0; i < values.size(); ++i) values[i] += other.values[i] * factor;
  }

  static constexpr double kFar = 300.0;  // from where on e^-x is nothing, and e^x no overflow

 private:
  void refer_to(double score, double inv_temperature) {
    const bool any = reference != -kInfinity;
    const double factor = any ? exp((reference - score) * inv_temperature) : 0.0;
    for (double& value : values) value = any ? value * factor : 0.0;
    reference = score;
  }

  const uint16_t* labels_ = nullptr;  // null: no masses are wanted
};

// Noted items of a chunk, which an arena holds.
struct NotedRun {
  const Noted* items;
  int64_t count;
  float highest;  // heaviness - window * scale
};

// A chunk's mergeable result: its best items, at most `capacity`, and the mass of the others.
class Partial {
 public:
  Partial(int64_t capacity, Order order) : capacity_(size_t(capacity)), order_(order) {
    items.reserve(capacity_);
  }

  std::vector<Candidate> items;  // a heap, the worst first, until `sort`
  Mass rest = {0.0, 0.0};
  LabelMasses labels;
  Doubt doubt = {};
  std::vector<NotedRun> noted;  // not in `rest`, nor in the sums of `doubt` but the last

  bool full() const { return items.size() == capacity_; }
  const Candidate& worst() const { return items.front(); }

  void clear() {
    items.clear();
    rest = {0.0, 0.0};
    labels.clear();
    doubt = {};
    noted.clear();
  }

  void push(const Candidate& candidate) {
    items.push_back(candidate);
    rise(items.size() - 1, candidate);
  }

  void replace_worst(const Candidate& candidate) { sift(items.size(), candidate); }

  // Joins the result of items that come later in the order of chunks.
  void merge(const Partial& other, Interrupt* interrupt) {
    const double inv_t = order_.inv_temperature;
    for (const Candidate& item : other.items) {
      if (interrupt->stop(1)) return;
      if (!full()) {
        push(item);
      } else if (order_.better(item, worst())) {
        drop(worst());
        replace_worst(item);
      } else {
        drop(item);
      }
    }
    add(&rest, other.rest, inv_t);
    labels.add(other.labels, inv_t);
    add(&doubt, other.doubt, inv_t);
    noted.insert(noted.end(), other.noted.begin(), other.noted.end());
  }

  // Best first. A heap sort of our own: `better` may fail to be transitive within a rounding,
  // which std::sort does not forgive.
  void sort(Interrupt* interrupt) {
    for (size_t size = items.size(); size > 1; --size) {
      interrupt->check(1);
      const Candidate last = items[size - 1];
      items[size - 1] = items[0];
      sift(size - 1, last);
    }
  }

 private:
  void drop(const Candidate& item) {
    add(&rest, {1.0, item.score}, order_.inv_temperature);
    labels.add(item, order_.inv_temperature);
  }

  // Moves the hole at the root to a leaf, then the candidate up from there: most belong low.
  void sift(size_t size, const Candidate& candidate) {
    size_t i = 0;
    for (size_t child = 1; child < size; child = 2 * i + 1) {
      if (child + 1 < size) child += order_.better(items[child], items[child + 1]);
      items[i] = items[child];
      i = child;
    }
    rise(i, candidate);
  }

  void rise(size_t i, const Candidate& candidate) {
    while (i > 0) {
      const size_t parent = (i - 1) / 2;
      if (!order_.better(items[parent], candidate)) break;
      items[i] = items[parent];
      i = parent;
    }
    items[i] = candidate;
  }

  size_t capacity_;
  Order order_;
};

// What a chunk may know about those before it: their k-th best, and the mass of the others.
struct Outlook {
  Candidate floor;
  Mass rest;
  Doubt doubt;
};

// A tile's panels, at most.
constexpr int64_t kTilePanels = 64;

// ---- Small things ---------------------------------------------------------------------------

// The entry at which `budget` runs out, which is left with what it is of that entry. The last one
// that has any weight, should rounding leave a remainder; -1 where none has.
template <class Number>
inline int64_t pick(const Number* weights, int64_t count, double* budget) {
  int64_t last = -1;
  for (int64_t i = 0; i < count; ++i) {
    const double weight = double(weights[i]);
    if (!(weight > 0.0)) continue;
    last = i;
    if (*budget < weight) break;
    *budget -= weight;
  }
  return last;
}

template <class Number>
inline double sum_of(const Number* values, int64_t count) {
  double sums[4] = {0.0, 0.0, 0.0, 0.0};  // none waits for the one before
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (int j = 0; j < 4; ++j) sums[j] += double(values[i + j]);
  for (; i < count; ++i) sums[0] += double(values[i]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// A hash map from non-negative integers, open addressing, no deletion.
template <class Value>
class FlatMap {
 public:
  explicit FlatMap(size_t expected) {
    size_t size = 16;
    while (size < 2 * expected) size *= 2;
    slots_.assign(size, {-1, Value{}});
  }

  const Value* find(int64_t key) const {
    const Slot& slot = slots_[index(key)];
    return slot.key == key ? &slot.value : nullptr;
  }

  bool contains(int64_t key) const { return find(key) != nullptr; }

  // Whether there was none of this key; else the one that there is stays.
  bool insert(int64_t key, Value value) {
    size_t i = index(key);
    if (slots_[i].key == key) return false;
    if (2 * ++used_ > slots_.size()) {
      grow();
      i = index(key);
    }
    slots_[i] = {key, value};
    return true;
  }

  Value& operator[](int64_t key) {
    size_t i = index(key);
    if (slots_[i].key != key) {
      if (2 * ++used_ > slots_.size()) {
        grow();
        i = index(key);
      }
      slots_[i].key = key;
    }
    return slots_[i].value;
  }

 private:
  struct Slot {
    int64_t key;
    Value value;
  };

  size_t index(int64_t key) const {
    const size_t mask = slots_.size() - 1;
    size_t i = size_t((uint64_t(key) * 0x9E3779B97F4A7C15u) >> 20) & mask;
    while (slots_[i].key != key && slots_[i].key != -1) i = (i + 1) & mask;
    return i;
  }

  void grow() {
    std::vector<Slot> old(slots_.size() * 2, Slot{-1, Value{}});
    old.swap(slots_);
    for (const Slot& slot : old)
      if (slot.key != -1) slots_[index(slot.key)] = slot;
  }

  std::vector<Slot> slots_;
  size_t used_ = 0;
};

// A request joined with its catalog; `bias_tail` pads the call's bias in the last panel. `fault` is
// where its function says what it met.
Source make_source(const Catalog&, const Request&, int64_t* fault);

// Whether a function is faster over many panels at a time. A short one hides behind memory where each
// panel is scored and passed before the next comes; of a long one every step costs a look at it.
inline bool wants_tile(const Source& source) {
  return source.function && !source.function->run && source.function->n_steps > 14;
}

// The same source, whose scores of some panels are made together, in the room that is given.
inline Source filled(const Kernels& kernels, const Source& source, int64_t first, int64_t count,
                     float* room) {
  Source copy = source;
  const Source* one = &source;
  kernels.score_tile(&one, 1, first, count, {}, room);
  kernels.apply(source, first, count, room);
  copy.tile = {room, first};
  return copy;
}

inline Code code_of_fault(int64_t fault, int64_t* where) {
  if (fault == kNoFault) return kOk;
  *where = fault;
  return kScoreNotFinite;
}

inline bool scores_are_given(const Catalog& catalog) { return !catalog.panels && !catalog.vectors; }

inline int64_t panel_count(int64_t n_items) { return (n_items + kLanes - 1) / kLanes; }

inline uint32_t lanes_of(const Source& source, int64_t panel) {
  if (source.eligible) return source.eligible[panel];
  return panel == source.n_panels - 1 ? source.last_lanes : 0xFFFFu;
}

inline const float* row_of(const Source& source, int64_t position) {
  return source.vectors + position * ((source.dim + 3) / 4 * 4);
}

inline float score_of(const Kernels& kernels, const Source& source, int64_t position) {
  if (source.vectors) return kernels.score_row(source, position);
  float scores[kLanes];
  kernels.score_panel(source, position / kLanes, scores);
  return scores[position % kLanes];
}

// Mass of the eligible items that are not in `shown`, in one pass of its own over float32 scores.
Mass rest_mass(const Kernels&, const Source&, double temperature, std::vector<int64_t> shown,
               Interrupt*);

// The k best items by score, best first, without masses.
Partial best_items(const Kernels&, const Source&, int64_t n_items, int64_t k, int64_t capacity,
                   Interrupt*);

}  // namespace fastrank
