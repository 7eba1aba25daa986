// The passes over int8 codes: Jumps and Best on upper bounds, corrected by the float32 score.
// Included by rank.cpp, which has those two.
//
// Jumps. An item's budget is spent on an upper bound of its weight. Where that runs out, the item's
// float32 score is computed, and it enters if the budget runs out on its true weight too: the
// remainder, an Exp(1) variate given that it is below the bound, is then one given that it is below
// the true weight. If not, the item does not pass, and the next budget is a fresh one. So rankings
// follow the law of the float32 scores exactly, whatever the bounds are.
//
// The normaliser. Items are heavy if score + 2 * spread * scale reaches a cut. The heavy ones add
// their true weights, all others estimates, whose errors are independent with mean 0. Which items
// are heavy hangs on true scores alone: a choice by estimates would take out those that erred upwards
// and leave a bias. A scan sees bounds, so it notes more items than that; when all are known, the
// cut is set where the error of what is estimated is within the tolerance, and those above are scored.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "chunks.h"
#include "quantise.h"

namespace fastrank {

// With probability 1 - 1e-9 over the dither of the codes the sum is within its bound.
constexpr double kLogOdds = 21.4;  // log(2 / 1e-9)

// Sums over items whose weight w is estimated, and the largest weight at the cut.
struct Unscored {
  double mass, upper, scaled, variance, cut;  // as Estimates
};

// How far the estimated part of a sum of weights can be off: Bernstein's inequality for what is
// random, and the sum of what is not. Or, if less, the sum of the upper bounds.
class ErrorLaw {
 public:
  ErrorLaw(const CodeQuery& query, double temperature)
      : deviation(std::min(0.5 * query.norm / temperature, 1e38)),
        per_scale_(query.norm > 0.0 ? 2.0 * query.per_scale / query.norm : 0.0),
        constant_(query.constant / temperature),
        skew_(query.norm > 0.0 ? 0.8 * query.largest_value / query.norm : 0.0) {
    // An estimate is within e^(+-x) of its weight, and that is below cut * e^(-2 x).
    const double x = std::min(0.6931471805599453, query.spread * query.max_scale / temperature);
    largest_ = std::exp(-x) - std::exp(-2.0 * x);
    // Var exp(e) / Var e, with room for estimating it. What deviates by more than 1 weighs nothing.
    const double most = deviation * query.max_scale;
    inflation_ = 1.1 * std::min(2.0, std::exp(most * most));
  }

  double bound(const Unscored& sum) const {
    if (sum.upper == 0.0) return 0.0;
    const double usual = sum.mass > 0.0 ? sum.scaled / sum.mass : 0.0;  // deviation
    const double jump = kLogOdds / 3.0 * sum.cut * largest_;
    const double spread = 2.0 * kLogOdds * inflation_ * sum.variance;
    const double random = jump + std::sqrt(jump * jump + spread);
    const double fixed = sum.scaled * per_scale_ +
                         sum.mass * (constant_ + skew_ * usual * usual * usual);
    if (getenv("FR_DEBUG2")) fprintf(stderr,"      jump %.3g spread %.3g per_scale %.3g const %.3g skew %.3g infl %.3g dev %.3g (abs; mass %.3g)\n", jump, std::sqrt(spread), sum.scaled*per_scale_, sum.mass*constant_, sum.mass*skew_*usual*usual*usual, inflation_, usual, sum.mass);
    return random + fixed < sum.upper ? random + fixed : sum.upper;  // and where it is no number
  }

  const double deviation;  // standard deviation of an estimated log-weight, per unit of scale

 private:
  double per_scale_, constant_, skew_, largest_, inflation_;
};

// Items by the logarithm of a weight, in steps of 1/4 below the largest.
class Histogram {
 public:
  static constexpr int kBins = 256;
  static constexpr double kStep = 0.25;

  Histogram(double highest, double inv_temperature)
      : highest_(highest), per_bin_(inv_temperature / kStep) {}

  void add(double score) {
    const double below = (highest_ - score) * per_bin_;
    ++counts[below < kBins - 1 ? int(below) : kBins - 1];
  }

  double edge(int bin) const { return highest_ - double(bin) / per_bin_; }  // a bin's upper end

  int64_t counts[kBins] = {};

 private:
  double highest_, per_bin_;
};

namespace {

double relative(const Mass& mass, double reference, double inv_temperature) {
  return mass.value == 0.0
             ? 0.0
             : mass.value * exp((mass.reference - reference) * inv_temperature);
}

Unscored unscored(const Doubt& doubt, double reference, double inv_temperature) {
  return {relative(doubt.mass, reference, inv_temperature),
          relative(doubt.upper, reference, inv_temperature),
          relative(doubt.scaled, reference, inv_temperature),
          relative(doubt.variance, reference, 2.0 * inv_temperature),
          exp((doubt.cut - reference) * inv_temperature)};
}

double heaviness(const CodeQuery& query, float score, float scale) {
  return double(score) + 2.0 * query.spread * scale;
}

void prefetch_row(const Source& source, int64_t position) {
  const int64_t stride = (source.dim + 3) / 4 * 4;
  const float* row = source.vectors + position * stride;
  for (int64_t c = 0; c < stride; c += 16) __builtin_prefetch(row + c);
}

// Adds items by their estimates, 16 at a time.
void estimate_items(const Kernels& kernels, const Noted* items, int64_t count, float reference, float inv_temperature, double deviation, Estimates* sums) {
  float estimates[kLanes] = {}, uppers[kLanes] = {}, scales[kLanes] = {};
  for (int64_t first = 0; first < count; first += kLanes) {
    const int size = int(std::min<int64_t>(kLanes, count - first));
    for (int i = 0; i < size; ++i) {
      const Noted& item = items[first + i];
      estimates[i] = item.estimate;
      uppers[i] = item.upper;
      scales[i] = item.scale;
    }
    kernels.add_estimates(estimates, uppers, scales, (1u << size) - 1, reference, inv_temperature,
                          float(deviation), sums);
  }
}

// The mass of the items that are not ranked: scores those that were noted and are heavy. Returns a
// bound on the error of log(mass + weight of the last item that is ranked), infinite if it cannot be
// kept within the tolerance.
double finish(const Kernels& kernels, const Source& source, double temperature, Partial* top) {
  const CodeQuery& query = *source.query_of_codes;
  const ErrorLaw law(query, temperature);
  const double inv_t = 1.0 / temperature;
  const float reference = top->items.back().score;
  const Unscored light = unscored(top->doubt, reference, inv_t);
  const double exact = relative(top->rest, reference, inv_t);
  const double noted = relative(top->doubt.noted, reference, inv_t);
  std::vector<Noted>& items = top->noted;
  top->rest.reference = reference;

  // How many of the noted items to score, by estimates of what the others would leave in doubt.
  double highest = -kInfinity;
  for (const Noted& item : items)
    highest = std::max(highest, heaviness(query, item.upper, item.scale));
  Histogram bins(highest, inv_t);
  for (const Noted& item : items) bins.add(heaviness(query, item.upper, item.scale));
  const double usual =
      light.mass > 0.0 ? light.scaled / light.mass : law.deviation * query.max_scale;
  const double scale = law.deviation > 0.0 ? usual / law.deviation : 0.0;
  Unscored sum = light;
  int last = Histogram::kBins;  // bins before it are scored
  const double allowed = query.tolerance * (exact + light.mass + noted + 1.0);
  while (last > 0) {
    const int b = last - 1;
    Unscored more = sum;
    if (bins.counts[b] > 0) {
      const double count = double(bins.counts[b]);
      const double weight =
          exp((bins.edge(b) - 3.0 * query.spread * scale - reference) * inv_t);
      more.mass += count * weight;
      more.upper = kInfinity;
      more.scaled += count * weight * usual;
      more.variance += count * weight * weight * usual * usual;
      more.cut = exp((bins.edge(b) - reference) * inv_t);
    }
    if (bins.counts[b] > 0 && !(law.bound(more) <= 0.9 * allowed)) break;
    sum = more;
    last = b;
  }

  std::vector<Noted> heavy_items(items.size()), light_items(items.size());
  for (int attempt = 0; attempt < 3; ++attempt, last = attempt == 2 ? Histogram::kBins : last + 2) {
    last = std::min(last, Histogram::kBins);
    const double cut = last == Histogram::kBins ? top->doubt.cut
                                                : std::max(top->doubt.cut, bins.edge(last));
    int64_t n_heavy = 0, n_light = 0;
    for (const Noted& item : items) {  // without a branch, which nothing could predict
      const bool heavier = heaviness(query, item.upper, item.scale) >= cut;
      heavy_items[size_t(n_heavy)] = light_items[size_t(n_light)] = item;
      n_heavy += heavier;
      n_light += !heavier;
    }
    double heavy = 0.0;
    for (int64_t first = 0; first < n_heavy; first += kLanes) {
      const int size = int(std::min<int64_t>(kLanes, n_heavy - first));
      const Noted* block = &heavy_items[size_t(first)];
      int64_t positions[kLanes];
      for (int i = 0; i < size; ++i) positions[i] = block[i].position;
      for (int64_t i = kLanes; i < std::min<int64_t>(2 * kLanes, n_heavy - first); ++i)
        prefetch_row(source, block[i].position);
      float scores[kLanes] = {}, weights[kLanes];
      kernels.score_rows(source, positions, size, scores);
      uint32_t lanes = 0;
      for (int i = 0; i < size; ++i) {
        const bool heavier = heaviness(query, scores[i], block[i].scale) >= cut;
        lanes |= uint32_t(heavier) << i;
        light_items[size_t(n_light)] = block[i];
        n_light += !heavier;
      }
      heavy += double(kernels.weigh(scores, lanes, reference, float(inv_t), weights));
    }
    Estimates estimates = {};
    estimate_items(kernels, light_items.data(), n_light, reference, float(inv_t), law.deviation,
                   &estimates);
    const double mass = exact + heavy + light.mass + estimates.mass;
    const double error =
        law.bound({light.mass + estimates.mass, light.upper + estimates.upper,
                   light.scaled + estimates.scaled, light.variance + estimates.variance,
                   exp((cut - reference) * inv_t)}) /
        (mass + 1.0);
    const double bound = error < 0.5 ? -std::log1p(-error) : kInfinity;
    if (getenv("FR_DEBUG")) fprintf(stderr, "  last %d noted %zu scored %ld bound %.3g; light.mass share %.3g noted share %.3g exact %.3g light error alone %.3g\n", last, items.size(), (long)n_heavy, bound, light.mass/(mass+1), noted/(mass+1), exact/(mass+1), law.bound(light)/(mass+1));
    if (bound <= query.tolerance && mass < kInfinity) {
      top->rest.value = mass;
      return bound;
    }
  }
  return kInfinity;
}

class EstimatedJumps final : public Jumps {
 public:
  EstimatedJumps(const Kernels& kernels, const Source& source, double temperature, uint64_t seed,
                 const ChunkLaw& law)
      : Jumps(kernels, source, temperature, seed),
        query_(*source.query_of_codes),
        law_(query_, temperature),
        n_panels_(source.n_panels),
        noted_(size_t(law.noted_room())) {}

  void begin(int64_t chunk, const Outlook* outlook, Partial* out) override {
    Jumps::begin(chunk, outlook, out);
    estimates_ = {};
    reference_ = threshold_.score;
    n_noted_ = 0;
    visited_ = futile_ = 0;
    exact_ = false;
    in_pilot_ = chunk == 0;
    cut_ = outlook ? steer(*outlook) : -kInfinity;  // the pilot's items are all noted
  }

  void walk(Scan walk) override {
    while (!limited_ && next_panel(source_, &walk)) {
      kernels_.score_panel(source_, walk.panel, walk.scores);
      fill(&walk);
      reference_ = threshold_.score;
      settle_scored(&walk);
    }
    if (limited_ && !exact_) walk_codes(&walk);
    visited_ += walk.count;
    if (limited_ && exact_) Jumps::walk(walk);
    if (in_pilot_ && limited_) {
      in_pilot_ = false;
      choose_cut();
    }
  }

  void end() override {
    if (!limited_) return;
    settle_rest();
    rebase();
    const double score = threshold_.score;
    out_->rest = {rest_ + (exact_ ? mass_ : 0.0), score};
    Estimates noted = {};
    estimate(noted_.data(), n_noted_, &noted);
    out_->doubt = {{estimates_.mass, score},
                   {estimates_.upper, score},
                   {estimates_.scaled, score},
                   {estimates_.variance, score},
                   {noted.mass, score},
                   cut_,
                   visited_};
    out_->noted.assign(noted_.begin(), noted_.begin() + n_noted_);
  }

 private:
  void walk_codes(Scan* walk) {
    CodeScan scan = {};
    scan.walk = *walk;
    for (;;) {
      rebase();
      scan.walk.reference = threshold_.score;
      scan.walk.inv_temperature = inv_t_;
      scan.walk.limit = limit_;
      scan.walk.mass = mass_;
      scan.deviation = float(law_.deviation);
      scan.cut = float(cut_);
      scan.estimates = estimates_;
      scan.noted = noted_.data();
      scan.n_noted = n_noted_;
      scan.room = int64_t(noted_.size());
      const bool stopped = kernels_.scan_codes(source_, &scan);
      mass_ = scan.walk.mass;
      estimates_ = scan.estimates;
      n_noted_ = scan.n_noted;
      if (!stopped) break;
      if (!scan.walk.lanes) make_room();
      settle(&scan);
      // Where one check in a dozen items is in vain, float32 rows cost less.
      if (12 * futile_ > (visited_ + scan.walk.visit) * kLanes + 1024) {
        exact_ = true;
        limit_ -= mass_;  // what is left of the budget is an Exp(1) variate again
        mass_ = 0.0;
        break;
      }
    }
    *walk = scan.walk;
    walk->lanes = 0;
  }

  // Lanes whose float32 scores are known: those left in a panel when the heap was full.
  void settle_scored(Scan* walk) {
    settle_rest();
    while (walk->lanes) {
      const int lane = take_lane(walk);
      const float score = walk->scores[lane];
      const double weight = weight_of(score);
      if (mass_ + weight <= limit_) {
        mass_ += weight;
        rest_ += weight;
      } else {
        spend(score, walk->panel * kLanes + lane, weight);
        settle_rest();
      }
    }
  }

  // Goes through the lanes of a panel in which a budget runs out.
  void settle(CodeScan* scan) {
    Scan& walk = scan->walk;
    uint32_t outside = 0;
    while (walk.lanes) {
      const float sum = kernels_.weigh_uppers(scan->uppers, walk.lanes, threshold_.score, inv_t_,
                                              walk.weights);
      if (mass_ + double(sum) <= limit_) {
        mass_ += double(sum);
        outside |= walk.lanes;
        break;
      }
      bool entered = false;
      while (walk.lanes && !entered) {
        const int lane = take_lane(&walk);
        const double next = mass_ + double(walk.weights[lane]);
        if (next <= limit_) {
          mass_ = next;
        } else {
          const int64_t position = walk.panel * kLanes + lane;
          const float score = kernels_.score_row(source_, position);
          entered = spend(score, position, weight_of(score));
          futile_ += !entered;
        }
        if (!entered) outside |= 1u << lane;
      }
    }
    walk.lanes = 0;
    add_outside(walk.panel, walk.scores, scan->uppers, outside);
  }

  double weight_of(double score) const {
    return exp((score - double(threshold_.score)) * order.inv_temperature);
  }

  // The budget has run out on an item's bound: whether it has on its weight, too, and it enters.
  bool spend(float score, int64_t position, double weight) {
    limit_ -= mass_;
    mass_ = 0.0;
    if (limit_ < weight) {
      enter(score, position);
      return true;
    }
    draw_budget();
    return false;
  }

  // ---- The normaliser ---------------------------------------------------------------------

  // Estimates are kept relative to a score of their own, until they are used.
  void rebase() {
    if (reference_ == threshold_.score) return;
    const double factor =
        exp((double(reference_) - double(threshold_.score)) * order.inv_temperature);
    reference_ = threshold_.score;
    for (double* sum : {&estimates_.mass, &estimates_.upper, &estimates_.scaled})
      if (*sum != 0.0) *sum *= factor;
    if (estimates_.variance != 0.0) estimates_.variance *= factor * factor;
  }

  // Items of a panel that did not enter.
  void add_outside(int64_t panel, const float* estimates, const float* uppers, uint32_t lanes) {
    uint32_t light = 0;
    for (uint32_t left = lanes; left; left &= left - 1) {
      const int lane = __builtin_ctz(left);
      const Noted item = {panel * kLanes + lane, estimates[lane], uppers[lane],
                          source_.scales[panel * kLanes + lane]};
      if (heaviness(query_, item.upper, item.scale) < cut_) {
        light |= 1u << lane;
      } else {
        if (n_noted_ == int64_t(noted_.size())) make_room();
        noted_[size_t(n_noted_++)] = item;
      }
    }
    rebase();
    if (light)
      kernels_.add_estimates(estimates, uppers, source_.scales + panel * kLanes, light,
                             threshold_.score, inv_t_, float(law_.deviation), &estimates_);
  }

  void estimate(const Noted* items, int64_t count, Estimates* sums) const {
    estimate_items(kernels_, items, count, threshold_.score, inv_t_, law_.deviation, sums);
  }

  // ---- The cut ----------------------------------------------------------------------------
  //
  // While a chunk goes on the cut only says what is noted: an item that is not noted can no longer be
  // scored, one that is costs a little. So it is set lower than the one that will be needed: by what
  // the pilot shows for chunk 0, and then by what was found so far.

  static constexpr double kAim = 0.75;        // of the tolerance
  static constexpr int64_t kFewestShare = 16;  // note no more than one item in so many

  void choose_cut() {
    cut_ = kInfinity;
    if (n_noted_ > 0) {
      float highest = -std::numeric_limits<float>::infinity();
      double scales = 0.0, squares = 0.0;
      for (int64_t i = 0; i < n_noted_; ++i) {
        const double scale = noted_[size_t(i)].scale;
        highest = std::max(highest, noted_[size_t(i)].estimate);
        scales += scale;
        squares += scale * scale;
      }
      scales /= double(n_noted_);
      squares /= double(n_noted_);
      Histogram items(highest, order.inv_temperature);
      for (int64_t i = 0; i < n_noted_; ++i) items.add(noted_[size_t(i)].estimate);
      constexpr int kBins = Histogram::kBins;
      const double share = double(n_panels_) / double(std::max<int64_t>(1, visited_));
      double weight[kBins], mass[kBins + 1], variance[kBins + 1];
      weight[0] = 1.0;
      for (int b = 1; b < kBins; ++b) weight[b] = weight[b - 1] * 0.7788007830714049;  // e^(-1/4)
      mass[kBins] = variance[kBins] = 0.0;
      for (int b = kBins - 1; b >= 0; --b) {
        const double expected = double(items.counts[b]) * share;
        mass[b] = mass[b + 1] + expected * weight[b];
        variance[b] = variance[b + 1] + expected * weight[b] * weight[b];
      }
      int64_t above = 0;
      for (int b = 0; b < kBins && kFewestShare * above <= n_noted_; ++b) {
        cut_ = items.edge(b);
        const double squared = law_.deviation * law_.deviation * squares;
        const Unscored rest = {mass[b], kInfinity, mass[b] * law_.deviation * scales,
                               variance[b] * squared, weight[b]};
        if (law_.bound(rest) <= kAim * query_.tolerance * mass[0]) break;
        above += items.counts[b];
      }
      cut_ += 3.0 * query_.spread * scales;  // estimates were counted, heaviness will be compared
    }
    drop_below_cut();
  }

  // The last chunks' cut, or one that is better by their sums.
  double steer(const Outlook& outlook) const {
    const Doubt& doubt = outlook.doubt;
    const double inv_t = order.inv_temperature, reference = threshold_.score;
    const double share = double(n_panels_) / double(std::max<int64_t>(1, doubt.panels));
    Unscored rest = unscored(doubt, reference, inv_t);
    const double mass = rest.mass + relative(doubt.noted, reference, inv_t) +
                        relative(outlook.rest, reference, inv_t);
    rest = {rest.mass * share, kInfinity, rest.scaled * share, rest.variance * share, rest.cut};
    const double ratio = law_.bound(rest) / (mass * share * query_.tolerance);
    if (ratio > 1.5 * kAim) return doubt.cut - 0.5 / inv_t;
    if (ratio < 0.7 * kAim) return doubt.cut + 0.25 / inv_t;
    return doubt.cut;
  }

  // There is no room for more: raises the cut until half of what was noted is below it.
  void make_room() {
    std::vector<Noted>::iterator first = noted_.begin(), middle = first + n_noted_ / 2;
    const auto heavier = [&](const Noted& a, const Noted& b) {
      return heaviness(query_, a.upper, a.scale) >
             heaviness(query_, b.upper, b.scale);
    };
    std::nth_element(first, middle, first + n_noted_, heavier);
    cut_ = heaviness(query_, middle->upper, middle->scale);
    rebase();
    estimate(&*middle, n_noted_ - n_noted_ / 2, &estimates_);
    n_noted_ /= 2;
  }

  void drop_below_cut() {
    const auto kept = std::partition(
        noted_.begin(), noted_.begin() + n_noted_, [&](const Noted& item) {
          return heaviness(query_, item.upper, item.scale) >= cut_;
        });
    rebase();
    const int64_t count = kept - noted_.begin();
    estimate(noted_.data() + count, n_noted_ - count, &estimates_);
    n_noted_ = count;
  }

  const CodeQuery& query_;
  const ErrorLaw law_;
  const int64_t n_panels_;
  std::vector<Noted> noted_;
  int64_t n_noted_ = 0;
  Estimates estimates_ = {};
  float reference_ = 0.0f;
  double cut_ = 0.0;
  int64_t visited_ = 0;  // panels
  int64_t futile_ = 0;   // checks of items that did not pass
  bool in_pilot_ = false;
  bool exact_ = false;  // the rest of the chunk goes by float32 rows
};

class EstimatedBest final : public Best {
 public:
  using Best::Best;

  void begin(int64_t chunk, const Outlook* outlook, Partial* out) override {
    Best::begin(chunk, outlook, out);
    visited_ = futile_ = 0;
  }

  void walk(Scan walk) override {
    while (!limited_ && next_panel(source_, &walk)) {
      kernels_.score_panel(source_, walk.panel, walk.scores);
      settle(&walk);
    }
    CodeScan scan = {};
    scan.walk = walk;
    while (limited_ && 12 * futile_ <= (visited_ + scan.walk.visit) * kLanes + 1024) {
      scan.walk.reference = threshold_.score;
      if (!kernels_.scan_codes_above(source_, &scan)) break;
      check(&scan.walk);
    }
    visited_ += walk.count;
    Best::walk(scan.walk);  // what is left of it, if anything
  }

 private:
  void check(Scan* walk) {
    for (uint32_t left = walk->lanes; left; left &= left - 1) {
      const int lane = __builtin_ctz(left);
      walk->scores[lane] = kernels_.score_row(source_, walk->panel * kLanes + lane);
    }
    futile_ += __builtin_popcount(walk->lanes) - settle(walk);
  }

  int64_t visited_ = 0, futile_ = 0;
};

}  // namespace
}  // namespace fastrank
