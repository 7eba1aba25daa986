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
// are heavy hangs on true scores alone: a choice by estimates would take out those that erred
// upwards and leave a bias. A scan sees bounds, so it notes more items than that; when all are
// known, the cut is set where the error of what is estimated is within the tolerance, and those
// above are scored.
#pragma once

#include <cmath>

#include "chunks.h"
#include "quantise.h"

namespace fastrank {

// With probability 1 - 1e-9 over the dither of the codes a sum is within its bound, for any one
// query that does not depend on the dither. That is no secret (quantise.cpp): a query along the
// mean error of the codes makes all estimates err one way, and passes the bound.
constexpr double kLogOdds = 21.4;  // log(2 / 1e-9)

// Sums over items whose weight w is estimated, and the largest weight at the cut.
struct Unscored {
  double mass, scaled, variance, cut;  // as Estimates
};

// How far the estimated part of a sum of weights can be off: Bernstein's inequality for what is
// random, and the sum of what is not.
//
// The logarithm of an estimate errs by the sum of a_c e_c over the coordinates, less half its
// variance d^2: a_c is the query's coordinate times scale / T, and e_c, the error of a code, has
// mean 0 and variance 1/4. So d^2 is the sum of a_c^2 / 4, and d is `deviation` times the scale.
//
// Bias. |log E exp(a e) - a^2 / 8| is at most 0.044 |a|^3 / 4, for any a and fraction of a code:
// that is the third cumulant with all that come after it (tests/test_int8.py). Summed over the
// coordinates it is at most 0.044 A d^2, A the largest |a_c|. Where d <= 1 that is below 0.09, for
// A <= 2 d, and the mean of an estimate is off by at most 0.046 A d^2 of the weight.
//
// Items that deviate by d > 1. A light item's weight is below cut * exp(-2 spread * scale / T) =
// cut * exp(-4 c d), c = spread / norm of the query, which no item's errors are longer than. Its
// bias and its standard deviation, exp(d^2 / 2) of the weight, fall beside the cut from d = 1 on
// where c > 3/4, for they cannot pass exp(2 c d) of the weight either. So n such items have at most
// n times the bias and the variance of d = 1.
class ErrorLaw {
 public:
  ErrorLaw(const CodeQuery& query, double temperature)
      : deviation(std::min(0.5 * query.norm / temperature, 1e38)) {
    // What is not random, for a weight whose logarithm has a deviation of 1.
    const double unit = query.norm > 0.0 ? 2.0 / query.norm : 0.0;
    residue_ = unit * query.residue * std::sqrt(query.code_moment);
    per_deviation_ = unit * query.per_scale;
    rounding_ = unit * query.rounding;
    // And rough_exp's error. In range, so that it is nothing of nothing.
    const double off = (query.constant + query.bias_rounding) / temperature + 4e-6;
    constant_ = exp(std::min(off, kExpInRange)) - 1.0;
    // An estimate is within e^(+-x) of its weight, and that is below cut * e^(-2 x).
    const double x = std::min(0.6931471805599453, query.spread * query.max_scale / temperature);
    largest_ = (1.0 + constant_) * exp(-x) - exp(-2.0 * x);
    const double most = std::min(1.0, deviation * query.max_scale);
    // Var exp(e) / Var e, with room for estimating it.
    inflation_ = 1.05 * std::min(2.0, exp(most * most));
    const double per_square = 0.046 * unit * query.largest_value;  // A is per deviation, too
    skew_ = per_square * most * most;
    if (deviation * query.max_scale > 1.0) {
      const double c = query.spread / query.norm, n = double(query.n_items);
      beyond_ = (c > 0.75 ? exp(-4.0 * c) : 1.0) *
                (per_square * n + std::sqrt(2.0 * kLogOdds * 2.7182818284590452 * n));
    }
  }

  double bound(const Unscored& sum) const {
    const double random = std::sqrt(2.0 * kLogOdds * inflation_ * sum.variance) +
                          sum.cut * (kLogOdds / 3.0 * largest_ + beyond_);
    // The query's own residue r moves log-weights by r . code * scale / T: by Cauchy and Schwarz on
    // the sum over items, or item by item.
    const double residue = residue_ * std::sqrt(sum.variance) + rounding_ * sum.scaled;
    const double fixed = std::min(residue, per_deviation_ * sum.scaled) +
                         sum.scaled * skew_ + sum.mass * constant_;
    return random + fixed;
  }

  const double deviation;  // standard deviation of an estimated log-weight, per unit of scale

 private:
  double residue_, per_deviation_, rounding_, constant_, skew_, largest_, inflation_;
  double beyond_ = 0.0;  // what deviates by more than 1, beside the cut
};

// How a pass bounds weights by codes (kernels.h, CodeScan).
struct WeightBound {
  bool linear;
  float intercept = 0.0f, slope = 0.0f;

  WeightBound(const Source& source, const ErrorLaw& law, double temperature) {
    const CodeQuery& query = *source.query_of_codes;
    // log of a weight's bound over its estimate, at scales 0 and max_scale; 2^-13 for roundings.
    const double deviation = law.deviation * query.max_scale;
    const double least = query.margin() / temperature + 0x1p-13;
    const double most =
        least + query.spread * query.max_scale / temperature + 0.5 * deviation * deviation;
    linear = most < 2.0 && deviation > 1e-30 && !source.bias && !source.call_bias;
    if (!linear) return;
    intercept = float(exp(least));
    slope = float((exp(most) - exp(least)) / deviation);
  }

  void give(CodeScan* scan) const {
    scan->linear = linear;
    scan->intercept = intercept;
    scan->slope = slope;
  }
};

// Items by the logarithm of a weight, in steps of 1/4 below the largest.
class Histogram {
 public:
  static constexpr int kBins = 256;

  Histogram(float highest, double inv_temperature)
      : highest_(highest), per_bin_(float(4.0 * inv_temperature)) {}

  // A NaN, which damaged scales can bring, counts in the last bin: `min` takes its first argument.
  void add(float score) {
    ++counts[int(std::min(float(kBins - 1), (highest_ - score) * per_bin_))];
  }

  double edge(int bin) const { return highest_ - double(bin) / per_bin_; }  // a bin's upper end

  int64_t counts[kBins] = {};

 private:
  float highest_, per_bin_;
};

namespace {

double relative(const Mass& mass, double reference, double inv_temperature) {
  return mass.value == 0.0
             ? 0.0
             : mass.value * exp((mass.reference - reference) * inv_temperature);
}

Unscored unscored(const Doubt& doubt, double reference, double inv_temperature) {
  // What was noted was taken off again: a rounding may be left.
  return {std::max(0.0, relative(doubt.mass, reference, inv_temperature)),
          std::max(0.0, relative(doubt.scaled, reference, inv_temperature)),
          std::max(0.0, relative(doubt.variance, reference, 2.0 * inv_temperature)),
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
void estimate_items(const Kernels& kernels, const Noted* items, int64_t count,
                    float reference, float inv_temperature, double deviation,
                    Estimates* sums) {
  float estimates[kLanes] = {}, scales[kLanes] = {};
  for (int64_t first = 0; first < count; first += kLanes) {
    const int size = int(std::min<int64_t>(kLanes, count - first));
    for (int i = 0; i < size; ++i) {
      const Noted& item = items[first + i];
      estimates[i] = item.estimate;
      scales[i] = item.scale;
    }
    kernels.add_estimates(estimates, scales, (1u << size) - 1, reference, inv_temperature,
                          float(deviation), sums);
  }
}

// Rows to ask for before they are scored: they lie anywhere in memory.
constexpr int64_t kFetchAhead = 64;

// Adds the weights of up to 16 items by their float32 scores, those in the lanes that `pick` takes.
template <class Pick>
double scored_mass(const Kernels& kernels, const Source& source, const Noted* items, int count,
                   float reference, float inv_temperature, const Pick& pick) {
  int64_t positions[kLanes];
  for (int i = 0; i < count; ++i) positions[i] = items[i].position;
  float scores[kLanes] = {}, weights[kLanes];
  kernels.score_rows(source, positions, count, scores);
  uint32_t lanes = 0;
  for (int i = 0; i < count; ++i) lanes |= uint32_t(pick(items[i], scores[i])) << i;
  return double(kernels.weigh(scores, lanes, reference, inv_temperature, weights));
}

// Completes the mass of the items that are not ranked: scores those of the noted that are heavy.
// Returns a bound on the error of log(mass + weight of the last item that is ranked), infinite if
// it cannot be kept within the tolerance.
double finish(const Kernels& kernels, const Source& source, double temperature, Partial* top) {
  const CodeQuery& query = *source.query_of_codes;
  const ErrorLaw law(query, temperature);
  const double inv_t = 1.0 / temperature;
  const float reference = top->items.back().score;
  const std::vector<Noted>& items = top->noted;
  const Unscored light = unscored(top->doubt, reference, inv_t);
  const double exact = relative(top->rest, reference, inv_t);
  const double noted = relative(top->doubt.noted, reference, inv_t);
  top->rest = {exact, double(reference)};
  if (!top->doubt.estimated && items.empty()) return 0.0;

  // How many of the noted items to score, by what estimates say of the doubt that others leave.
  float highest = -std::numeric_limits<float>::infinity();
  for (const Noted& item : items) highest = std::max(highest, item.heaviness);
  Histogram bins(highest, inv_t);
  for (const Noted& item : items) bins.add(item.heaviness);
  const double usual =
      light.mass > 0.0 ? light.scaled / light.mass : law.deviation * query.max_scale;
  const double reach = law.deviation > 0.0 ? 3.0 * query.spread * usual / law.deviation : 0.0;
  const double allowed = query.tolerance * (exact + light.mass + noted + 1.0);
  if (!(law.bound(light) <= allowed)) return kInfinity;  // whatever is scored
  Unscored sum = light;
  int last = Histogram::kBins;  // bins before it are scored
  for (; last > 0; --last) {
    const int b = last - 1;
    if (bins.counts[b] == 0) continue;
    const double count = double(bins.counts[b]);
    const double weight = exp((bins.edge(b) - reach - reference) * inv_t);
    sum.mass += count * weight;
    sum.scaled += count * weight * usual;
    sum.variance += count * weight * weight * usual * usual;
    sum.cut = exp((bins.edge(b) - reference) * inv_t);
    if (!(law.bound(sum) <= 0.97 * allowed)) break;
  }

  std::vector<Noted> above(items.size()), below(items.size());
  for (int attempt = 0; attempt < 3; ++attempt, last = attempt == 2 ? Histogram::kBins : last + 2) {
    last = std::min(last, Histogram::kBins);
    double cut = top->doubt.cut;
    if (last < Histogram::kBins) cut = std::max(cut, bins.edge(last));
    int64_t n_above = 0, n_below = 0;
    for (const Noted& item : items) {  // without a branch, which nothing could predict
      const bool heavy = item.heaviness >= cut;
      above[size_t(n_above)] = below[size_t(n_below)] = item;
      n_above += heavy;
      n_below += !heavy;
    }
    double heavy_mass = 0.0;
    for (int64_t first = 0; first < n_above; first += kLanes) {
      for (int64_t i = first == 0 ? 0 : first + kFetchAhead - kLanes;
           i < std::min(n_above, first + kFetchAhead); ++i)
        prefetch_row(source, above[size_t(i)].position);
      const int count = int(std::min<int64_t>(kLanes, n_above - first));
      heavy_mass += scored_mass(kernels, source, &above[size_t(first)], count, reference,
                                float(inv_t), [&](const Noted& item, float score) {
                                  const bool heavy = heaviness(query, score, item.scale) >= cut;
                                  below[size_t(n_below)] = item;
                                  n_below += !heavy;
                                  return heavy;
                                });
    }
    Estimates estimates = {};
    estimate_items(kernels, below.data(), n_below, reference, float(inv_t), law.deviation,
                   &estimates);
    const double mass = exact + heavy_mass + light.mass + estimates.mass;
    const Unscored rest = {light.mass + estimates.mass, light.scaled + estimates.scaled,
                           light.variance + estimates.variance, exp((cut - reference) * inv_t)};
    // Sums are float32 over 8 panels, and what was noted is taken off them.
    const double error = top->doubt.estimated || n_below > 0
                             ? (law.bound(rest) + 4e-7 * mass) / (mass + 1.0)
                             : 0.0;
    const double bound = error < 0.5 ? -log1p(-error) : kInfinity;
    if (bound <= query.tolerance && mass < kInfinity) {
      top->rest.value = mass;
      return bound;
    }
  }
  return kInfinity;
}

// Where more than one item in so many has to be scored, float32 vectors cost less than codes.
constexpr int64_t kCostly = 12;

class EstimatedJumps final : public Jumps {
 public:
  EstimatedJumps(const Kernels& kernels, const Source& source, double temperature, uint64_t seed,
                 const ChunkLaw& law)
      : Jumps(kernels, source, temperature, seed),
        query_(*source.query_of_codes),
        law_(query_, temperature),
        bound_(source, law_, temperature),
        n_panels_(source.n_panels),
        room_(law.noted_room()),
        noted_(new Noted[size_t(room_)]) {}

  void begin(int64_t chunk, const Outlook* outlook, Partial* out) override {
    Jumps::begin(chunk, outlook, out);
    estimates_ = {};
    reference_ = threshold_.score;
    n_noted_ = 0;
    visited_ = futile_ = 0;
    costly_ = estimated_ = false;
    exact_ = outlook && outlook->doubt.costly;
    undecided_ = chunk == 0;
    cut_ = outlook ? steer(*outlook) : -kInfinity;  // the pilot's items are all noted
    highest_cut_ = cut_;
  }

  void walk(Scan walk) override {
    const bool pilot = chunk_ == 0 && visited_ == 0;
    while (!limited_ && next_panel(source_, &walk)) {
      kernels_.score_panel(source_, walk.panel, walk.scores);
      fill(&walk);
      reference_ = threshold_.score;
      settle_scored(&walk);
    }
    if (limited_ && !exact_) walk_codes(&walk);
    visited_ += walk.count;
    if (limited_ && exact_) Jumps::walk(walk);
    // A pilot that is longer than there is room for, or of which k or a filter leaves nothing to
    // judge by, has the cut chosen when room runs out. Not where a walk ends: a run comes in any
    // number of pieces, which must not show.
    if (pilot && undecided_ && n_noted_ > 0) choose_cut(visited_);
  }

  void end() override {
    if (!limited_) return;
    settle_rest();
    rebase();
    const double score = threshold_.score;
    out_->rest = {rest_ + (exact_ ? mass_ : 0.0), score};
    Estimates noted = {};
    estimate(noted_.get(), n_noted_, &noted);
    out_->doubt = {{estimates_.mass, score},
                   {estimates_.scaled, score},
                   {estimates_.variance, score},
                   {noted.mass, score},
                   highest_cut_,
                   visited_,
                   costly_,
                   estimated_};
    out_->noted.assign(noted_.get(), noted_.get() + n_noted_);
  }

 private:
  void walk_codes(Scan* walk) {
    CodeScan scan = {};
    scan.walk = *walk;
    scan.walk.inv_temperature = inv_t_;
    scan.deviation = float(law_.deviation);
    bound_.give(&scan);
    for (;;) {
      rebase();
      scan.walk.reference = threshold_.score;
      scan.walk.limit = limit_;
      scan.walk.mass = mass_;
      scan.cut = float(cut_);
      scan.estimates = estimates_;
      scan.noted = noted_.get();
      scan.n_noted = n_noted_;
      scan.room = room_;
      const bool stopped = kernels_.scan_codes(source_, &scan);
      mass_ = scan.walk.mass;
      estimated_ |= cut_ > -kInfinity;
      estimates_ = scan.estimates;
      n_noted_ = scan.n_noted;
      if (!stopped) break;
      if (!scan.walk.lanes) make_room(visited_ + scan.walk.visit);
      settle(&scan);
      if (kCostly * futile_ > (visited_ + scan.walk.visit) * kLanes + 1024) go_exactly();
      if (exact_) break;
    }
    *walk = scan.walk;
    walk->lanes = 0;
  }

  // From here on float32 vectors.
  void go_exactly() {
    if (exact_) return;  // `mass_` counts by now
    exact_ = true;
    limit_ -= mass_;  // what is left of the budget is an Exp(1) variate again
    mass_ = 0.0;
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
      walk.reference = threshold_.score;
      const float sum = kernels_.weigh_codes(source_, scan);
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
    add_outside(*scan, outside);
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
    for (double* sum : {&estimates_.mass, &estimates_.scaled})
      if (*sum != 0.0) *sum *= factor;
    if (estimates_.variance != 0.0) estimates_.variance *= factor * factor;
  }

  // Items of a panel that did not enter.
  void add_outside(const CodeScan& scan, uint32_t lanes) {
    const int64_t panel = scan.walk.panel;
    const float* estimates = scan.walk.scores;
    uint32_t light = 0;
    for (uint32_t left = lanes; left; left &= left - 1) {
      const int lane = __builtin_ctz(left);
      const Noted item = {panel * kLanes + lane, estimates[lane], scan.heaviness[lane],
                          source_.scales[panel * kLanes + lane]};
      if (!(item.heaviness >= cut_)) {  // so that a NaN is never noted
        light |= 1u << lane;
      } else {
        if (n_noted_ == room_) make_room(visited_ + scan.walk.visit);
        noted_[n_noted_++] = item;
      }
    }
    rebase();
    estimated_ |= light != 0;
    if (light)
      kernels_.add_estimates(estimates, source_.scales + panel * kLanes, light, threshold_.score,
                             inv_t_, float(law_.deviation), &estimates_);
  }

  void estimate(const Noted* items, int64_t count, Estimates* sums) const {
    estimate_items(kernels_, items, count, threshold_.score, inv_t_, law_.deviation, sums);
  }

  // ---- The cut ----------------------------------------------------------------------------
  //
  // While a chunk goes on the cut only says what is noted: an item that is not noted can no longer
  // be scored, one that is costs a little. So it is set lower than the one that will be needed: by
  // what the pilot shows for chunk 0, and then by what was found so far.

  static constexpr double kAim = 0.75;  // of the tolerance

  // By the items noted, all of those in so many panels but the best.
  void choose_cut(int64_t visited) {
    undecided_ = false;
    float highest = -std::numeric_limits<float>::infinity();
    double scales = 0.0, squares = 0.0;
    for (int64_t i = 0; i < n_noted_; ++i) {
      const double scale = noted_[i].scale;
      highest = std::max(highest, noted_[i].estimate);
      scales += scale;
      squares += scale * scale;
    }
    scales /= double(n_noted_);
    squares /= double(n_noted_);
    Histogram items(highest, order.inv_temperature);
    for (int64_t i = 0; i < n_noted_; ++i) items.add(noted_[i].estimate);
    constexpr int kBins = Histogram::kBins;
    const double share = double(n_panels_) / double(std::max<int64_t>(1, visited));
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
    for (int b = 0; b < kBins && kCostly * above <= n_noted_; ++b) {
      cut_ = items.edge(b);
      const Unscored rest = {mass[b], mass[b] * law_.deviation * scales,
                             variance[b] * law_.deviation * law_.deviation * squares, weight[b]};
      if (law_.bound(rest) <= kAim * query_.tolerance * mass[0]) break;
      above += items.counts[b];
    }
    cut_ += 3.0 * query_.spread * scales;  // estimates were counted, heaviness will be compared
    costly_ = kCostly * above > n_noted_;
    highest_cut_ = std::max(highest_cut_, cut_);
    if (costly_) {
      score_noted();
      go_exactly();
    } else {
      drop_up_to_cut();
    }
  }

  void score_noted() {
    settle_rest();
    for (int64_t first = 0; first < n_noted_; first += kLanes)
      rest_ += scored_mass(kernels_, source_, &noted_[first],
                           int(std::min<int64_t>(kLanes, n_noted_ - first)), threshold_.score,
                           inv_t_, [](const Noted&, float) { return true; });
    n_noted_ = 0;
  }

  // The last chunks' cut, or one that is better by their sums.
  double steer(const Outlook& outlook) const {
    const Doubt& doubt = outlook.doubt;
    const double inv_t = order.inv_temperature, reference = threshold_.score;
    const double share = double(n_panels_) / double(std::max<int64_t>(1, doubt.panels));
    Unscored rest = unscored(doubt, reference, inv_t);
    const double mass = rest.mass + relative(doubt.noted, reference, inv_t) +
                        relative(outlook.rest, reference, inv_t);
    rest = {rest.mass * share, rest.scaled * share, rest.variance * share, rest.cut};
    const double ratio = law_.bound(rest) / (mass * share * query_.tolerance);
    if (ratio > 1.5 * kAim) return doubt.cut - 0.5 / inv_t;
    if (ratio < 0.7 * kAim) return doubt.cut + 0.25 / inv_t;
    return doubt.cut;
  }

  // There is no room for more: chooses the cut, or raises it to the median of what was noted.
  void make_room(int64_t visited) {
    if (undecided_) return choose_cut(visited);
    // Of a sample: the items stay where they are, for sums hang on their order, and the order in
    // which nth_element would leave them on the library.
    float sample[256];
    const int64_t step = n_noted_ / 256 + 1;
    int64_t count = 0;
    for (int64_t i = 0; i < n_noted_; i += step) sample[count++] = noted_[i].heaviness;
    std::nth_element(sample, sample + count / 2, sample + count);
    cut_ = double(sample[count / 2]);
    highest_cut_ = std::max(highest_cut_, cut_);
    drop_up_to_cut();
  }

  // Estimates those of the noted that are not above the cut.
  void drop_up_to_cut() {
    rebase();
    Noted light[kLanes];
    int n_light = 0;
    int64_t n_kept = 0;
    for (int64_t i = 0; i < n_noted_; ++i) {
      const Noted item = noted_[i];
      if (item.heaviness > cut_) {
        noted_[n_kept++] = item;
        continue;
      }
      light[n_light++] = item;
      if (n_light < kLanes) continue;
      estimate(light, n_light, &estimates_);
      n_light = 0;
    }
    estimate(light, n_light, &estimates_);
    estimated_ |= n_kept < n_noted_;
    n_noted_ = n_kept;
  }

  const CodeQuery& query_;
  const ErrorLaw law_;
  const WeightBound bound_;
  const int64_t n_panels_;
  const int64_t room_;
  const std::unique_ptr<Noted[]> noted_;  // pages that nothing is written to cost nothing
  int64_t n_noted_ = 0;
  Estimates estimates_ = {};
  float reference_ = 0.0f;
  double cut_ = 0.0, highest_cut_ = 0.0;  // the present one, and any of this chunk
  int64_t visited_ = 0;  // panels
  int64_t futile_ = 0;   // checks of items that did not pass
  bool undecided_ = false;  // the cut is still to be chosen: no item is light
  bool estimated_ = false;  // of an item no more is kept than an estimate
  bool costly_ = false;  // too many items would have to be scored
  bool exact_ = false;   // the rest of the chunk goes by float32 vectors
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
    while (limited_ && kCostly * futile_ <= (visited_ + scan.walk.visit) * kLanes + 1024) {
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
