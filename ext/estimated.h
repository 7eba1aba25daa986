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
// and leave a bias. A scan sees bounds, so it notes a few too many; their estimates are put back.
#pragma once

#include <cmath>

#include "chunks.h"
#include "quantise.h"

namespace fastrank {

// With probability 1 - 1e-9 over the dither of the codes the sum is within its bound.
constexpr double kLogOdds = 21.4;  // log(2 / 1e-9)

// How far the estimated part of a sum of weights can be off: Bernstein's inequality for what is
// random, and the sum of what is not. Or, if less, the sum of the upper bounds.
struct ErrorLaw {
  ErrorLaw(const CodeQuery& query, double temperature)
      : deviation(0.5 * query.norm / temperature),
        largest(std::min(1.0, 2.0 * query.spread * query.max_scale / temperature)),
        per_scale(query.per_scale / temperature),
        constant(query.constant / temperature),
        skew(0.4 * deviation * deviation * query.largest_value / temperature) {
    // Var exp(e) / Var e, and room for estimating it; items with a deviation of more weigh nothing.
    inflation = 1.1 * std::min(2.0, std::exp(square(deviation * query.max_scale)));
  }

  static double square(double x) { return x * x; }

  // mass, scaled, variance: sums of w, w * scale, (w * scale)^2; cut: a bound on w; upper: of all w.
  double bound(double mass, double scaled, double variance, double cut, double upper) const {
    if (upper == 0.0) return 0.0;
    const double scale = mass > 0.0 ? scaled / mass : 0.0;
    const double random = deviation * std::sqrt(2.0 * kLogOdds * inflation * variance) +
                          kLogOdds / 3.0 * cut * largest;
    const double fixed = scaled * per_scale + mass * (constant + skew * scale * scale * scale);
    const double sum = random + fixed;
    return sum < upper ? sum : upper;  // also where the sum is not a number
  }

  double deviation;  // standard deviation of a log-weight, per unit of scale
  double largest;    // |w (X - 1)| <= cut * largest for an estimate w X of a weight that is not heavy
  double per_scale, constant, skew, inflation;
};

// Bound on the error of log(mass of the rest + mass of the ranked items from the last on).
inline double log_norm_error(const Partial& top, const CodeQuery& query, double temperature) {
  const double inv_t = 1.0 / temperature;
  const Doubt& doubt = top.doubt;
  if (doubt.upper.value == 0.0) return 0.0;
  const double reference = top.rest.reference;
  const auto at = [&](const Mass& m, double power) {
    return m.value == 0.0 ? 0.0 : m.value * exp((m.reference - reference) * inv_t * power);
  };
  const double cut = exp((doubt.cut - reference) * inv_t);
  const double error =
      ErrorLaw(query, temperature)
          .bound(at(doubt.mass, 1.0), at(doubt.scaled, 1.0), at(doubt.variance, 2.0), cut,
                 at(doubt.upper, 1.0));
  double mass = top.rest.value;
  if (!top.items.empty()) mass += exp((top.items.back().score - reference) * inv_t);
  const double relative = error / mass;
  return relative < 0.5 ? -std::log1p(-relative) : kInfinity;
}

namespace {

class EstimatedJumps final : public Jumps {
 public:
  EstimatedJumps(const Kernels& kernels, const Source& source, double temperature, uint64_t seed,
                 const ChunkLaw& law)
      : Jumps(kernels, source, temperature, seed),
        query_(*source.query_of_codes),
        law_(query_, temperature),
        tolerance_(query_.tolerance),
        n_panels_(source.n_panels),
        shrink_(float(0.5 * law_.deviation * law_.deviation)),
        heavy_(size_t(std::max<int64_t>(1024, law.pilot * kLanes + kLanes))) {}

  void begin(int64_t chunk, const Outlook* outlook, Partial* out) override {
    Jumps::begin(chunk, outlook, out);
    estimates_ = {};
    reference_ = threshold_.score;
    n_heavy_ = 0;
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
    visited_ -= walk.visit;  // counted anew below
    if (limited_ && !exact_) walk_codes(&walk);
    visited_ += walk.count;
    if (limited_ && exact_) Jumps::walk(walk);
    if (in_pilot_ && limited_) {
      in_pilot_ = false;
      cut_ = choose_cut();
      flush();
    }
  }

  void end() override {
    if (!limited_) return;
    flush();
    rebase();
    const double score = threshold_.score;
    out_->rest = {rest_ + (exact_ ? mass_ : 0.0) + estimates_.mass, score};
    out_->doubt = {{estimates_.mass, score},   {estimates_.upper, score},
                   {estimates_.scaled, score}, {estimates_.variance, score},
                   cut_,                       visited_};
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
      scan.shrink = shrink_;
      scan.cut = float(cut_);
      scan.estimates = estimates_;
      scan.heavy = heavy_.data();
      scan.n_heavy = n_heavy_;
      scan.room = int64_t(heavy_.size());
      const bool stopped = kernels_.scan_codes(source_, &scan);
      mass_ = scan.walk.mass;
      estimates_ = scan.estimates;
      n_heavy_ = scan.n_heavy;
      if (!stopped) break;
      if (!scan.walk.lanes) flush();
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
    while (walk->lanes) {
      const int lane = take_lane(walk);
      const float score = walk->scores[lane];
      const double weight = weight_of(score);
      if (mass_ + weight <= limit_) {
        mass_ += weight;
        rest_ += weight;
      } else {
        spend(score, walk->panel * kLanes + lane, weight);
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

  double heaviness(float score, int64_t position) const {
    return double(score) + 2.0 * query_.spread * source_.scales[position];
  }

  // Items of a panel that did not enter: notes the heavy ones and estimates the others.
  void add_outside(int64_t panel, const float* estimates, const float* uppers, uint32_t lanes) {
    const float* scales = source_.scales + panel * kLanes;
    uint32_t light = 0;
    for (uint32_t left = lanes; left; left &= left - 1) {
      const int lane = __builtin_ctz(left);
      const int64_t position = panel * kLanes + lane;
      if (heaviness(uppers[lane], position) < cut_) {
        light |= 1u << lane;
      } else {
        if (n_heavy_ == int64_t(heavy_.size())) flush();
        heavy_[size_t(n_heavy_++)] = {position, estimates[lane], uppers[lane]};
      }
    }
    rebase();
    if (light)
      kernels_.add_estimates(estimates, uppers, scales, light, threshold_.score, inv_t_, shrink_,
                             &estimates_);
  }

  // Scores the items that were noted and adds them to the normaliser.
  void flush() {
    rebase();
    float estimates[kLanes], uppers[kLanes], scales[kLanes];
    int count = 0;
    const auto add = [&] {
      kernels_.add_estimates(estimates, uppers, scales, (1u << count) - 1, threshold_.score, inv_t_,
                             shrink_, &estimates_);
      count = 0;
    };
    for (int64_t i = 0; i < n_heavy_; ++i) {
      const Heavy& item = heavy_[size_t(i)];
      if (heaviness(item.upper, item.position) >= cut_) {
        if (i + 8 < n_heavy_) prefetch(heavy_[size_t(i + 8)].position);
        const float score = kernels_.score_row(source_, item.position);
        if (heaviness(score, item.position) >= cut_) {
          rest_ += weight_of(score);
          continue;
        }
      }
      estimates[count] = item.estimate;
      uppers[count] = item.upper;
      scales[count] = source_.scales[item.position];
      if (++count == kLanes) add();
    }
    if (count) add();
    n_heavy_ = 0;
  }

  void prefetch(int64_t position) const {
    const int64_t stride = (source_.dim + 3) / 4 * 4;
    const float* row = source_.rows + position * stride;
    for (int64_t c = 0; c < stride; c += 16) __builtin_prefetch(row + c);
  }

  // ---- The cut ----------------------------------------------------------------------------
  //
  // A high cut scores few items in float32, a low one leaves little to be estimated. Chunk 0 aims at
  // a part of the tolerance by what its pilot shows; later chunks correct it by what was found so
  // far. Whether the bound was reached is seen at the end.

  static constexpr double kAim = 0.4;
  static constexpr int kBins = 256;

  double choose_cut() const {
    float highest = -std::numeric_limits<float>::infinity();
    double scales = 0.0, squares = 0.0;
    for (int64_t i = 0; i < n_heavy_; ++i) {
      const double scale = source_.scales[heavy_[size_t(i)].position];
      highest = std::max(highest, heavy_[size_t(i)].estimate);
      scales += scale;
      squares += scale * scale;
    }
    if (n_heavy_ == 0) return -kInfinity;
    // Items by log-weight, in steps of 1/4 below the highest.
    double counts[kBins] = {};
    const double per_bin = 4.0 * order.inv_temperature;
    for (int64_t i = 0; i < n_heavy_; ++i) {
      const double below =
          (double(highest) - double(heavy_[size_t(i)].estimate)) * per_bin;
      counts[below < kBins - 1 ? int(below) : kBins - 1] += 1.0;
    }
    const double share = double(n_panels_) / double(std::max<int64_t>(1, visited_));
    const double step = 0.7788007830714049;  // exp(-1/4)
    double weight[kBins], mass[kBins + 1], variance[kBins + 1];
    weight[0] = 1.0;
    for (int b = 1; b < kBins; ++b) weight[b] = weight[b - 1] * step;
    mass[kBins] = variance[kBins] = 0.0;
    for (int b = kBins - 1; b >= 0; --b) {
      mass[b] = mass[b + 1] + counts[b] * share * weight[b];
      variance[b] = variance[b + 1] + counts[b] * share * weight[b] * weight[b];
    }
    scales /= double(n_heavy_);
    squares /= double(n_heavy_);
    double heavier = 0.0;
    for (int b = 0; b < kBins; ++b) {
      const double error = law_.bound(mass[b], mass[b] * scales, variance[b] * squares, weight[b],
                                      kInfinity);
      if (error <= kAim * tolerance_ * mass[0])
        return double(highest) - double(b) / per_bin;
      heavier += counts[b];
      if (12.0 * heavier > double(n_heavy_)) break;
    }
    return kInfinity;  // it would cost more than to sum up in float32 afterwards
  }

  // The last chunks' cut, or one that is better by their sums.
  double steer(const Outlook& outlook) const {
    const Doubt& doubt = outlook.doubt;
    if (!(doubt.cut < kInfinity)) return doubt.cut;
    const double inv_t = order.inv_temperature, reference = outlook.rest.reference;
    const auto at = [&](const Mass& m, double power) {
      return m.value == 0.0 ? 0.0 : m.value * exp((m.reference - reference) * inv_t * power);
    };
    const double share = double(n_panels_) / double(std::max<int64_t>(1, doubt.panels));
    const double error =
        law_.bound(at(doubt.mass, 1.0) * share, at(doubt.scaled, 1.0) * share,
                   at(doubt.variance, 2.0) * share, exp((doubt.cut - reference) * inv_t), kInfinity);
    const double relative = error / (outlook.rest.value * share * tolerance_);
    if (relative > 2.0 * kAim) return doubt.cut - 0.75 / inv_t;
    if (relative > 1.25 * kAim) return doubt.cut - 0.25 / inv_t;
    if (relative < 0.4 * kAim) return doubt.cut + 0.25 / inv_t;
    return doubt.cut;
  }

  const CodeQuery& query_;
  const ErrorLaw law_;
  const double tolerance_;
  const int64_t n_panels_;
  const float shrink_;
  std::vector<Heavy> heavy_;
  int64_t n_heavy_ = 0;
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
