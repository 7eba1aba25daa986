// The policies that scan: one pass over the chunks, partials merged into the k best.

#include <atomic>
#include <cmath>
#include <limits>
#include <new>
#include <numeric>

#include "sampling.h"

namespace fastrank {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

std::atomic<int64_t> forced_chunk_panels{0};

// ---- The chunk law (kernels.h) --------------------------------------------------------------

struct ChunkLaw {
  int64_t n_panels, chunk_panels;
  int64_t pilot, step;  // the pilot is panels 0, step, 2 step, ..., `pilot` of them

  ChunkLaw(int64_t n_items, int64_t k) : n_panels(panel_count(n_items)) {
    chunk_panels = 1024 * ((k + 255) / 256);
    if (const int64_t forced = forced_chunk_panels.load(std::memory_order_relaxed))
      chunk_panels = forced;
    const int64_t items = std::min(std::max(n_items / 256, 64 * k), n_items / 16);
    pilot = std::max<int64_t>(1, items / kLanes);
    step = n_panels / pilot;
  }

  int64_t chunks() const { return (n_panels + chunk_panels - 1) / chunk_panels; }

  Scan pilot_walk() const {
    Scan walk = {};
    walk.step = step;
    walk.count = pilot;
    // Golden-ratio steps: panels stored in ascending order become a sequence with few records.
    walk.stride = std::max<int64_t>(1, int64_t(double(pilot) * 0.6180339887498949));
    while (std::gcd(walk.stride, pilot) != 1) ++walk.stride;
    return walk;
  }

  // Calls visit(walk) for each walk of chunk c: the pilot first, then runs between its panels.
  template <class Visit>
  void walks(int64_t c, Visit visit) const {
    if (c == 0) visit(pilot_walk());
    const int64_t end = std::min(n_panels, (c + 1) * chunk_panels);
    for (int64_t panel = c * chunk_panels; panel < end;) {
      if (panel % step == 0 && panel / step < pilot) {
        ++panel;
        continue;
      }
      const int64_t next_pilot = (panel / step + 1) * step;
      const int64_t stop = next_pilot / step < pilot ? std::min(end, next_pilot) : end;
      Scan walk = {};
      walk.first = panel;
      walk.step = walk.stride = 1;
      walk.count = stop - panel;
      visit(walk);
      panel = stop;
    }
  }
};

// Goes to the walk's next panel with eligible lanes.
bool next_panel(const Source& source, Scan* walk) {
  while (walk->visit < walk->count) {
    walk->panel = walk->first + walk->offset * walk->step;
    ++walk->visit;
    walk->offset += walk->stride;
    if (walk->offset >= walk->count) walk->offset -= walk->count;
    walk->lanes = lanes_of(source, walk->panel);
    if (walk->lanes) return true;
  }
  return false;
}

// Takes the lowest lane out of walk->lanes.
int take_lane(Scan* walk) {
  const int lane = __builtin_ctz(walk->lanes);
  walk->lanes &= walk->lanes - 1;
  return lane;
}

// ---- Plackett-Luce by exponential jumps -----------------------------------------------------
//
// The order of the keys score / T + Gumbel is a Plackett-Luce ranking (Yellott 1977). With t the
// k-th best key so far, item i passes it with probability 1 - exp(-lambda_i), lambda_i =
// exp(score_i / T - t), so an Exp(1) budget E is spent on the lambdas: the item at which it runs
// out enters, all before do not (exponential jumps: Efraimidis and Spirakis, "Weighted random
// sampling with a reservoir", 2006). What is left of the budget before the entrant is distributed
// as an Exp(1) variate below its lambda, which is the law of the exponential in its key, given that
// it passes: so the remainder is that exponential, and an entry costs one number.
// The threshold t is kept as an item: weights are relative to its score, lambda = weight *
// exponential, and both are exact at any scale.
class Jumps {
 public:
  Jumps(const Kernels& kernels, const Source& source, double temperature, uint64_t seed)
      : order{1.0 / temperature, source.rows},
        kernels_(kernels),
        source_(source),
        inv_t_(float(1.0 / temperature)),
        seed_(seed) {}

  const Order order;

  void begin(int64_t chunk, const Candidate* floor, Partial* out) {
    chunk_ = uint32_t(chunk);
    drawn_ = 0;
    out_ = out;
    mass_ = rest_ = 0.0;
    limited_ = floor != nullptr;
    if (floor) {
      threshold_ = *floor;
      draw_budget();
    }
  }

  void walk(Scan scan) {
    while (!limited_ && next_panel(source_, &scan)) {
      kernels_.score_panel(source_, scan.panel, scan.scores);
      fill(&scan);
    }
    settle(&scan);
    for (;;) {
      scan.reference = threshold_.score;
      scan.inv_temperature = inv_t_;
      scan.limit = limit_;
      scan.mass = mass_;
      const bool stopped = limited_ && kernels_.scan_mass(source_, &scan);
      mass_ = scan.mass;
      if (!stopped) return;
      find_entrant(&scan);
      settle(&scan);
    }
  }

  void end() {
    settle_rest();
    if (limited_) out_->rest = {rest_ + mass_, threshold_.score};
  }

 private:
  // Until there are k items each gets a plain Gumbel key.
  void fill(Scan* scan) {
    while (scan->lanes && !limited_) {
      const int lane = take_lane(scan);
      out_->push(
          perturbed(scan->scores[lane], scan->panel * kLanes + lane, next_exponential()));
      if (out_->full()) {
        limited_ = true;
        threshold_ = out_->worst();
        draw_budget();
      }
    }
  }

  // Settles the lanes left in a panel after an entry.
  void settle(Scan* scan) {
    while (scan->lanes) {
      const float sum =
          kernels_.weigh(scan->scores, scan->lanes, threshold_.score, inv_t_, scan->weights);
      if (mass_ + double(sum) <= limit_) {
        mass_ += double(sum);
        scan->lanes = 0;
        return;
      }
      find_entrant(scan);
    }
  }

  // Takes lanes up to the one that passes the limit, which enters. Their sum may be +inf: `mass_`
  // takes weights one by one, and the entrant's never.
  void find_entrant(Scan* scan) {
    while (scan->lanes) {
      const int lane = take_lane(scan);
      const double next = mass_ + double(scan->weights[lane]);
      if (!(next <= limit_)) {
        enter(scan->scores[lane], scan->panel * kLanes + lane);
        return;
      }
      mass_ = next;
    }
  }

  void enter(float score, int64_t position) {
    // Never 0, which would be a key of +inf.
    const double exponential = std::max((limit_ - mass_) * threshold_.exponential, 0x1p-1000);
    const Candidate entrant = perturbed(score, position, exponential);
    if (!out_->full()) {
      out_->push(entrant);
      move_threshold(0.0, out_->full() ? out_->worst() : threshold_);
    } else {
      out_->replace_worst(entrant);
      move_threshold(1.0, out_->worst());  // the item that leaves is the threshold: weight 1
    }
    draw_budget();
  }

  // Puts down what `rest_` gains, relative to the old threshold; `settle_rest` adds it up.
  void move_threshold(double gone, const Candidate& next) {
    if (moves_ == kAhead) settle_rest();
    passed_[moves_] = mass_;
    gone_[moves_] = gone;
    shift_[moves_] = (double(threshold_.score) - double(next.score)) * order.inv_temperature;
    ++moves_;
    mass_ = 0.0;
    threshold_ = next;
  }

  void settle_rest() {
    bool in_range = true;
    for (int i = 0; i < moves_; ++i) in_range &= std::fabs(shift_[i]) <= kExpInRange;
    for (int i = moves_; i < kAhead; ++i) shift_[i] = 0.0;
    if (in_range) {
      kernels_.exps(shift_);
    } else {
      for (int i = 0; i < moves_; ++i) shift_[i] = exp(shift_[i]);
    }
    for (int i = 0; i < moves_; ++i) rest_ = ((rest_ + passed_[i]) + gone_[i]) * shift_[i];
    moves_ = 0;
  }

  void draw_budget() { limit_ = next_exponential() / threshold_.exponential; }

  double next_exponential() {
    const uint64_t number = drawn_++ % kAhead;
    if (number == 0)
      kernels_.exponentials(seed_, chunk_, kJumps, drawn_ / 2, exponentials_);
    return exponentials_[number];
  }

  const Kernels& kernels_;
  const Source& source_;
  const float inv_t_;
  const uint64_t seed_;
  uint32_t chunk_ = 0;
  uint64_t drawn_ = 0;  // numbers of the chunk's stream that are spent
  double exponentials_[kAhead];
  Partial* out_ = nullptr;
  bool limited_ = false;  // there is a threshold
  Candidate threshold_ = {};
  double mass_ = 0.0;   // weights since the last entry, relative to the threshold
  double limit_ = 0.0;  // the budget in units of weight
  double rest_ = 0.0;   // weights before `mass_` of items that are not in the heap, without
  int moves_ = 0;       // what these last moves of the threshold bring:
  double passed_[kAhead], gone_[kAhead];  // weights passed since the move before, and evicted
  double shift_[kAhead];                  // (score of the old threshold - of the new) / T
};

// ---- Deterministic: the same walk with key = score ------------------------------------------

class Best {
 public:
  Best(const Kernels& kernels, const Source& source)
      : order{1.0, source.rows}, kernels_(kernels), source_(source) {}

  const Order order;

  void begin(int64_t, const Candidate* floor, Partial* out) {
    out_ = out;
    limited_ = floor != nullptr;
    if (floor) threshold_ = *floor;
  }

  void walk(Scan scan) {
    while (!limited_ && next_panel(source_, &scan)) {
      kernels_.score_panel(source_, scan.panel, scan.scores);
      settle(&scan);
    }
    for (;;) {
      scan.reference = threshold_.score;
      if (!limited_) return;
      scan.tie_panel = threshold_.position / kLanes;
      scan.tie_row = order.row(threshold_.position);
      if (!kernels_.scan_above(source_, &scan)) return;
      settle(&scan);
    }
  }

  void end() {}

 private:
  void settle(Scan* scan) {
    while (scan->lanes) {
      const int lane = take_lane(scan);
      const Candidate item = {0.0, 1.0, scan->panel * kLanes + lane, scan->scores[lane]};
      if (limited_ && !order.better(item, threshold_)) continue;
      if (out_->full()) {
        out_->replace_worst(item);
      } else {
        out_->push(item);
      }
      if (out_->full()) {
        limited_ = true;
        threshold_ = out_->worst();
      }
    }
  }

  const Kernels& kernels_;
  const Source& source_;
  Partial* out_ = nullptr;
  bool limited_ = false;
  Candidate threshold_ = {};
};

// Runs a pass over all chunks: what each of several threads would do for its own, in order.
template <class Pass>
Partial run(Pass pass, int64_t n_items, int64_t k, int64_t capacity) {
  const ChunkLaw law(n_items, k);
  Partial total(capacity, pass.order), part(capacity, pass.order);
  Candidate floor = {};
  bool has_floor = false;
  for (int64_t c = 0; c < law.chunks(); ++c) {
    if (c > 0 && (c & (c - 1)) == 0 && total.full()) {
      floor = total.worst();
      has_floor = true;
    }
    Partial* out = c == 0 ? &total : &part;
    out->clear();
    pass.begin(c, has_floor ? &floor : nullptr, out);
    law.walks(c, [&](const Scan& walk) { pass.walk(walk); });
    pass.end();
    if (c > 0) total.merge(part);
  }
  total.sort();
  return total;
}

// ---- The eligible items, to draw from uniformly ---------------------------------------------

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

// The items not yet chosen. While fewer than half can be chosen, a set of the chosen to reject
// against (less than two tries each); else a list, which then is no longer than 2 k.
class Pool {
 public:
  Pool(const Eligible& eligible, int64_t k)
      : eligible_(eligible),
        left_(eligible.count()),
        listed_(2 * k >= eligible.count()),
        slot_of_(size_t(listed_ ? eligible.count() : k)) {
    if (!listed_) return;
    list_.reserve(size_t(left_));
    for (int64_t rank = 0; rank < left_; ++rank) {
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

void rank_uniform(const Kernels& kernels, const Source& source, const Request& request,
                  uint64_t seed, Ranking* out) {
  const Eligible eligible(source, request.n_eligible);
  Pool pool(eligible, out->count);
  Stream stream(seed, 0, kExploration);
  for (int64_t j = 0; j < out->count; ++j) {
    const int64_t position = pool.draw(&stream);
    out->positions[j] = position;
    out->scores[j] = score_of(kernels, source, position);
    out->log_propensities[j] = 0.0 - log(double(pool.left()));
    pool.remove(position);
  }
}

void rank_epsilon_greedy(const Kernels& kernels, const Source& source, const Request& request,
                         const Policy& policy, int64_t n_items, int64_t k, Ranking* out) {
  const Partial best = best_items(kernels, source, n_items, k, out->count);
  const Eligible eligible(source, request.n_eligible);
  Pool pool(eligible, out->count);
  Stream coins(policy.seed, 0, kCoins), draws(policy.seed, 0, kExploration);
  FlatMap<bool> shown(size_t(out->count));
  size_t next_best = 0;
  for (int64_t j = 0; j < out->count; ++j) {
    while (shown.contains(best.items[next_best].position)) ++next_best;
    const int64_t greedy = best.items[next_best].position;
    const bool explore = coins.uniform() < policy.epsilon;
    const int64_t position = explore ? pool.draw(&draws) : greedy;
    out->positions[j] = position;
    out->scores[j] = position == greedy ? best.items[next_best].score
                                        : score_of(kernels, source, position);
    out->log_propensities[j] = epsilon_greedy(position == greedy, policy.epsilon, pool.left());
    pool.remove(position);
    shown[position] = true;
  }
}

// ---- Sequential Plackett-Luce: the textbook, O(k n) -----------------------------------------

void rank_sequential(const Kernels& kernels, const Source& source, const Policy& policy,
                     Ranking* out) {
  const double inv_t = 1.0 / policy.temperature;
  std::vector<int64_t> left;  // eligible positions, ascending, and their scores
  std::vector<float> scores;
  for (int64_t panel = 0; panel < source.n_panels; ++panel) {
    uint32_t lanes = lanes_of(source, panel);
    if (!lanes) continue;
    float panel_scores[kLanes];
    kernels.score_panel(source, panel, panel_scores);
    for (; lanes; lanes &= lanes - 1) {
      left.push_back(panel * kLanes + __builtin_ctz(lanes));
      scores.push_back(panel_scores[__builtin_ctz(lanes)]);
    }
  }
  std::vector<double> weights(left.size());
  Stream stream(policy.seed, 0, kSequentialDraws);
  Mass rest = {0.0, 0.0};
  for (int64_t j = 0; j <= out->count; ++j) {
    const float highest = left.empty() ? 0.0f : *std::max_element(scores.begin(), scores.end());
    double sum = 0.0;
    for (size_t i = 0; i < left.size(); ++i) {
      weights[i] = exp((double(scores[i]) - double(highest)) * inv_t);
      sum += weights[i];
    }
    rest = {sum, double(highest)};
    if (j == out->count) break;
    double budget = stream.uniform() * sum;
    size_t chosen = 0;
    for (size_t i = 0; i < left.size() && budget >= 0.0; ++i) {
      if (weights[i] == 0.0) continue;
      chosen = i;  // the last item with weight, should rounding leave a remainder
      budget -= weights[i];
    }
    out->positions[j] = left[chosen];
    out->scores[j] = scores[chosen];
    left.erase(left.begin() + int64_t(chosen));
    scores.erase(scores.begin() + int64_t(chosen));
  }
  out->log_norm =
      conditional(out->scores, out->count, rest, policy.temperature, out->log_propensities);
}

void take(const Partial& partial, Ranking* out) {
  for (size_t j = 0; j < partial.items.size(); ++j) {
    out->positions[j] = partial.items[j].position;
    out->scores[j] = partial.items[j].score;
    out->log_propensities[j] = 0.0;
  }
}

}  // namespace

Partial best_items(const Kernels& kernels, const Source& source, int64_t n_items, int64_t k,
                   int64_t capacity) {
  return run(Best(kernels, source), n_items, k, capacity);
}

Code rank(const Catalog& catalog, const Request& request, const Policy& policy, int64_t k,
          Ranking* out, int64_t* where) {
  const Code code = check_request(catalog, request, where);
  if (code != kOk) return code;
  try {
    const Kernels& kernels = fastrank::kernels();
    const Source source = make_source(catalog, request);
    k = std::min(k, catalog.n_items);
    out->count = std::min(k, request.n_eligible);
    out->log_norm = kNaN;
    const bool plackett_luce = policy.kind == kGumbel || policy.kind == kSequential;
    if (out->count == 0) {
      if (plackett_luce) out->log_norm = -kInfinity;
      return kOk;
    }
    switch (policy.kind) {
      case kDeterministic:
        take(best_items(kernels, source, catalog.n_items, k, out->count), out);
        break;
      case kGumbel: {
        const Partial top = run(Jumps(kernels, source, policy.temperature, policy.seed),
                                catalog.n_items, k, out->count);
        take(top, out);
        out->log_norm = conditional(out->scores, out->count, top.rest, policy.temperature,
                                    out->log_propensities);
        break;
      }
      case kSequential:
        rank_sequential(kernels, source, policy, out);
        break;
      case kEpsilonGreedy:
        rank_epsilon_greedy(kernels, source, request, policy, catalog.n_items, k, out);
        break;
      case kUniform:
        rank_uniform(kernels, source, request, policy.seed, out);
        break;
    }
    return kOk;
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
}

int64_t set_chunk_panels(int64_t count) { return forced_chunk_panels.exchange(count); }

}  // namespace fastrank
