// The passes over int8 codes: Jumps and Best on upper bounds, corrected by the float32 score.
// Included by rank.cpp, which has those two.
//
// Jumps. An item's budget is spent on an upper bound of its weight. Where that runs out, the item's
// float32 score is computed, and it enters if the budget runs out on its true weight too: the
// remainder, an Exp(1) variate given that it is below the bound, is then one given that it is below
// the true weight. If not, the item does not pass, and the next budget is a fresh one. So rankings
// follow the law of the float32 scores exactly, whatever the bounds are.
//
// The normaliser. The heaviest items add their true weights, all others estimates (error_law.h). A
// scan sees estimates, so it notes more items than are heavy; when all are known, the cut is set
// where the error of what is estimated is within the tolerance, and those above are scored. Where a
// scan noted too few, a second one over the codes alone notes more.
#pragma once

#include <cmath>

#include "chunks.h"
#include "error_law.h"

namespace fastrank {

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
        least + query.certain * query.max_scale / temperature + 0.5 * deviation * deviation;
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

// Items by the logarithm of a weight, in steps of 1/16 below the largest.
class Histogram {
 public:
  static constexpr int kBins = 1024;
  static constexpr double kPerUnit = 16.0;

  Histogram(float highest, double inv_temperature)
      : highest_(highest), per_bin_(float(kPerUnit * inv_temperature)) {}

  // A NaN, which damaged scales can bring, counts in the last bin: `min` takes its first argument.
  void add(float score) {
    const int bin = int(std::min(float(kBins - 1), (highest_ - score) * per_bin_));
    ++counts[bin];
    used = std::max(used, bin + 1);
  }

  double edge(int bin) const { return highest_ - double(bin) / per_bin_; }  // a bin's upper end
  double middle(int bin) const { return highest_ - (double(bin) + 0.5) / per_bin_; }

  int64_t counts[kBins] = {};
  int used = 0;  // bins; the others are empty

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
  for (int64_t c = 0; c < std::min<int64_t>(stride, 64); c += 16) __builtin_prefetch(row + c);
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

// Calls visit(first, scores) for each 16 items, or what is left of them.
template <class Visit>
void score_items(const Kernels& kernels, const Source& source, const Noted* items, int64_t count,
                 const Visit& visit) {
  for (int64_t i = 0; i < std::min(count, kFetchAhead); ++i) prefetch_row(source, items[i].position);
  for (int64_t first = 0; first < count; first += kLanes) {
    const int size = int(std::min<int64_t>(kLanes, count - first));
    int64_t positions[kLanes];
    for (int i = 0; i < size; ++i) positions[i] = items[first + i].position;
    for (int64_t i = first + kFetchAhead; i < std::min(count, first + kFetchAhead + kLanes); ++i)
      prefetch_row(source, items[i].position);
    float scores[kLanes] = {};
    kernels.score_rows(source, positions, size, scores);
    visit(first, scores);
  }
}

// Moves the items that reach the cut to `above`, without a branch, which nothing could predict; both
// have room for all. Returns how many.
int64_t take_above(Noted* items, int64_t* count, float cut, Noted* above) {
  int64_t n_above = 0, n_below = 0;
  for (int64_t i = 0; i < *count; ++i) {
    const Noted item = items[i];
    const bool is_above = item.heaviness >= cut;
    above[n_above] = items[n_below] = item;
    n_above += is_above;
    n_below += !is_above;
  }
  *count = n_below;
  return n_above;
}

// Scans that check more than one item in so many in vain do without codes.
constexpr int64_t kFutile = 12;

// Completes the mass of the items that are not ranked: scores those of the noted that are heavy.
// Returns a bound on the error of log(mass + weight of the last item that is ranked). Infinite if
// it cannot be kept within the tolerance; *excess is then by what factor it is missed, about.
double complete(const Kernels& kernels, const Source& source, const ErrorLaw& law,
                double temperature, Partial* top, double* excess) {
  const CodeQuery& query = *source.query_of_codes;
  const double inv_t = 1.0 / temperature;
  const float reference = top->items.back().score;
  const std::vector<Noted>& items = top->noted;
  const Unscored light = unscored(top->doubt, reference, inv_t);
  const double exact = relative(top->rest, reference, inv_t);
  const double noted = relative(top->doubt.noted, reference, inv_t);
  if (!top->doubt.estimated && items.empty()) {
    top->rest = {exact, double(reference)};
    return 0.0;
  }

  // Where to set the cut, by what estimates say of the doubt that lighter items leave.
  const float window = float(law.window);
  float highest = -std::numeric_limits<float>::infinity();
  for (const Noted& item : items)
    highest = std::max(highest, item.heaviness - window * item.scale);
  Histogram bins(highest, inv_t);
  for (const Noted& item : items) bins.add(item.heaviness - window * item.scale);
  const double usual =
      light.mass > 0.0 ? light.scaled / light.mass : law.deviation * query.max_scale;
  const double reach = law.deviation > 0.0 ? 2.0 * query.spread * usual / law.deviation : 0.0;
  const double allowed = query.tolerance * (exact + light.mass + noted + 1.0);
  const int64_t n_items = int64_t(items.size());
  const double least = law.bound(light, n_items);
  if (!(least <= allowed)) {  // whatever is scored
    *excess = least / allowed;
    return kInfinity;
  }
  // Sums over what is light if the bins before one are heavy. The mass allowed for is by estimates,
  // which a few items can decide.
  Unscored sums[Histogram::kBins + 1];
  sums[bins.used] = light;
  for (int b = bins.used - 1; b >= 0; --b) {
    const double count = double(bins.counts[b]);
    const double weight = count > 0.0 ? exp((bins.middle(b) - reach - reference) * inv_t) : 0.0;
    const Unscored& before = sums[b + 1];
    sums[b] = {before.mass + count * weight, before.scaled + count * weight * usual,
               before.variance + count * weight * weight * usual * usual, 0.0};
  }
  const double aim = exp(-std::min(1.0, 0.5 * usual)) * allowed;
  int last = 0;
  for (int high = bins.used; last < high;) {
    const int middle = (last + high) / 2;
    sums[middle].cut = exp((bins.edge(middle) - reference) * inv_t);
    if (law.bound(sums[middle], n_items) <= aim) {
      high = middle;
    } else {
      last = middle + 1;
    }
  }

  // Lower and lower, should the sums turn out worse.
  const size_t room = items.size() + kLanes;  // whole registers are read
  const std::unique_ptr<Noted[]> scored(new Noted[room]), others(new Noted[room]);
  const std::unique_ptr<float[]> scores(new float[room]);
  std::copy(items.begin(), items.end(), others.get());
  std::vector<Noted> light_ones;
  int64_t n_scored = 0, n_others = n_items;
  for (int step = 1 + int(Histogram::kPerUnit * std::min(4.0, usual));; step *= 2) {
    double cut = top->doubt.cut;
    if (last < bins.used) cut = std::max(cut, bins.edge(last));
    Noted* const more = scored.get() + n_scored;
    const int64_t n_more = take_above(others.get(), &n_others, float(cut), more);
    score_items(kernels, source, more, n_more, [&](int64_t first, const float* some) {
      std::copy_n(some, kLanes, &scores[size_t(n_scored + first)]);
    });
    n_scored += n_more;
    light_ones.clear();
    double heavy_mass = 0.0;
    int64_t n_heavy = 0;
    for (int64_t first = 0; first < n_scored; first += kLanes) {
      const int count = int(std::min<int64_t>(kLanes, n_scored - first));
      uint32_t heavy = 0;
      for (int i = 0; i < count; ++i) {
        const Noted& item = scored[size_t(first + i)];
        if (heaviness(query, scores[size_t(first + i)], item.scale) >= cut) {
          heavy |= 1u << i;
        } else {
          light_ones.push_back(item);
        }
      }
      n_heavy += __builtin_popcount(heavy);
      float weights[kLanes];
      heavy_mass += double(
          kernels.weigh(&scores[size_t(first)], heavy, reference, float(inv_t), weights));
    }
    Estimates estimates = {};
    estimate_items(kernels, others.get(), n_others, reference, float(inv_t), law.deviation,
                   &estimates);
    estimate_items(kernels, light_ones.data(), int64_t(light_ones.size()), reference,
                   float(inv_t), law.deviation, &estimates);
    const double mass = exact + heavy_mass + light.mass + estimates.mass;
    const Unscored rest = {light.mass + estimates.mass, light.scaled + estimates.scaled,
                           light.variance + estimates.variance, exp((cut - reference) * inv_t)};
    const bool estimated = top->doubt.estimated || n_others > 0 || !light_ones.empty();
    // Sums are float32 over 8 panels, and what was noted is taken off them.
    const double error =
        estimated ? (law.bound(rest, n_heavy) + 4e-7 * mass) / (mass + 1.0) : 0.0;
    const double bound = error < 0.5 ? -log1p(-error) : kInfinity;
    if (bound <= query.tolerance && mass < kInfinity) {
      top->rest = {mass, double(reference)};
      return bound;
    }
    *excess = error / query.tolerance;
    if (last == bins.used) return kInfinity;  // all were scored
    last = std::min(last + step, bins.used);
  }
}

// Notes again, in a pass over the codes alone, what reaches a cut; what is ranked stays. Whether it
// was few enough items to be scored.
bool note_again(const Kernels& kernels, const Source& source, const ErrorLaw& law,
                double temperature, double cut, Partial* top) {
  const int64_t n_items = source.n_panels * kLanes;
  std::vector<uint16_t> lanes(static_cast<size_t>(source.n_panels), uint16_t(0xFFFF));
  if (source.eligible) {
    std::copy_n(source.eligible, source.n_panels, lanes.begin());
  } else {
    lanes.back() = source.last_lanes;
  }
  for (const Candidate& item : top->items)
    lanes[size_t(item.position / kLanes)] &= uint16_t(~(1u << (item.position % kLanes)));
  Source others = source;
  others.eligible = lanes.data();
  const float reference = top->items.back().score;
  const int64_t room = 3 * n_items / (2 * costly_share(source)) + 1024;
  const std::unique_ptr<Noted[]> noted(new Noted[size_t(room)]);
  CodeScan scan = {};
  scan.walk.step = scan.walk.stride = 1;
  scan.walk.count = source.n_panels;
  scan.walk.reference = reference;
  scan.walk.inv_temperature = float(1.0 / temperature);
  scan.walk.limit = kInfinity;  // no budget is spent: weights are bounded by nothing, linearly
  scan.linear = true;
  scan.deviation = float(law.deviation);
  scan.noting = float(law.noting);
  // Then heaviness does without the part of the biases, which the cut makes up for.
  scan.cut = float(cut - 4.0 * source.query_of_codes->bias_rounding);
  scan.noted = noted.get();
  scan.room = room;
  if (kernels.scan_codes(others, &scan)) return false;
  top->noted.assign(noted.get(), noted.get() + scan.n_noted);
  Estimates sums = {};
  estimate_items(kernels, noted.get(), scan.n_noted, reference, scan.walk.inv_temperature,
                 law.deviation, &sums);
  top->rest = {0.0, double(reference)};
  top->doubt = {{scan.estimates.mass, reference},
                {scan.estimates.scaled, reference},
                {scan.estimates.variance, reference},
                {sums.mass, reference},
                cut,
                source.n_panels,
                false,
                true};
  return true;
}

// A cut that is lower by what the bound is missed by, as the noted items near the old one tell.
double lower_cut(const ErrorLaw& law, double temperature, const Partial& top, double excess) {
  const double inv_t = 1.0 / temperature, cut = top.doubt.cut;
  const Unscored light = unscored(top.doubt, cut, inv_t);
  const double usual = light.mass > 0.0 ? light.scaled / light.mass : 0.0;
  double near = 0.0;
  for (const Noted& item : top.noted)
    near += (double(item.heaviness) - cut) * inv_t < 0.5;
  const double weight =
      usual * (law.deviation > 0.0 ? exp(-law.noting * usual / law.deviation * inv_t) : 1.0);
  // The bound goes with the root of the variance, which an item at the cut adds weight^2 to.
  const double slope = light.variance > 0.0 ? near * weight * weight / light.variance : 0.0;
  // Less steep further down, and to note more costs less than to pass once more.
  const double lower = log(1.2 * std::max(excess, 1.0)) / std::max(0.5 * slope, 0.05);
  return cut - std::clamp(lower, 0.25, 8.0) * temperature;
}

// As `complete`, and on a miss that is near once or twice more; infinite if all has to be summed in
// float32.
double finish(const Kernels& kernels, const Source& source, double temperature, Partial* top) {
  const ErrorLaw law(*source.query_of_codes, temperature);
  double excess = kInfinity;
  double bound = complete(kernels, source, law, temperature, top, &excess);
  for (int again = 0; again < 2 && bound == kInfinity && excess < 8.0 && !top->doubt.costly;
       ++again) {
    const double cut = lower_cut(law, temperature, *top, excess);
    if (!note_again(kernels, source, law, temperature, cut, top)) break;
    bound = complete(kernels, source, law, temperature, top, &excess);
  }
  return bound;
}

class EstimatedJumps final : public Jumps {
 public:
  EstimatedJumps(const Kernels& kernels, const Source& source, double temperature, uint64_t seed,
                 const ChunkLaw& law)
      : Jumps(kernels, source, temperature, seed),
        query_(*source.query_of_codes),
        law_(query_, temperature),
        bound_(source, law_, temperature),
        n_panels_(source.n_panels),
        room_(law.noted_room(source)),
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
    scan.noting = float(law_.noting);
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
      if (kFutile * futile_ > (visited_ + scan.walk.visit) * kLanes + 1024) go_exactly();
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

  static constexpr double kAim = 0.75;  // of the tolerance, by a few items

  // By the items noted, all of those in so many panels but the best.
  void choose_cut(int64_t visited) {
    undecided_ = false;
    const double share = double(n_panels_) / double(std::max<int64_t>(1, visited));
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
    // The best are those in the heap. To take each for many like it would make much of a few, to
    // leave them out, too little of the mass: they count as the heaviest of the others. What is too
    // dear then is so only if it is by their own weights, too; they may be rare, so the cut is lower.
    const auto choose = [&](float most) {
      float top = highest;
      for (const Candidate& best : out_->items) top = std::max(top, std::min(most, best.score));
      Histogram items(top, order.inv_temperature);
      for (int64_t i = 0; i < n_noted_; ++i) items.add(noted_[i].estimate);
      for (const Candidate& best : out_->items) items.add(std::min(most, best.score));
      return find_cut(items, share, scales, squares, &costly_);
    };
    double cut = choose(highest);
    if (costly_) {
      const double rare = choose(std::numeric_limits<float>::infinity());
      cut = std::max(cut, rare - 2.0 / order.inv_temperature);
    }
    cut_ = cut + 2.0 * query_.spread * scales;  // estimates were counted, heaviness is compared
    highest_cut_ = std::max(highest_cut_, cut_);
    if (costly_) {
      score_noted();
      go_exactly();
    } else {
      drop_up_to_cut();
    }
  }

  // The highest estimate down to which items are to be scored, if each stands for `share` others;
  // or down to which so many are as may be.
  double find_cut(const Histogram& items, double share, double scales, double squares,
                  bool* costly) const {
    const double per_bin = exp(-1.0 / Histogram::kPerUnit);
    double mass = 0.0, variance = 0.0, weight = 1.0;  // by a bin's upper end
    int64_t count = 0;
    for (int b = 0; b < items.used; ++b, weight *= per_bin) {
      const double expected = double(items.counts[b]) * share;
      count += items.counts[b];
      mass += expected * weight;
      variance += expected * weight * weight;
    }
    const double allowed = kAim * query_.tolerance * mass;
    const double heavier = exp(2.0 * query_.spread * scales * order.inv_temperature);
    int64_t above = 0;
    int b = 0;
    for (weight = 1.0; b < items.used && costly_share(source_) * above <= count; ++b, weight *= per_bin) {
      const Unscored rest = {mass, mass * law_.deviation * scales,
                             variance * law_.deviation * law_.deviation * squares,
                             weight * heavier};
      if (law_.bound(rest, int64_t(double(above) * share)) <= allowed) break;
      const double expected = double(items.counts[b]) * share;
      mass = std::max(0.0, mass - expected * weight);
      variance = std::max(0.0, variance - expected * weight * weight);
      above += items.counts[b];
    }
    *costly = costly_share(source_) * above > count;
    return items.edge(b);
  }

  void score_noted() {
    settle_rest();
    score_items(kernels_, source_, noted_.get(), n_noted_, [&](int64_t first, const float* scores) {
      const int count = int(std::min<int64_t>(kLanes, n_noted_ - first));
      float weights[kLanes];
      rest_ += double(
          kernels_.weigh(scores, (1u << count) - 1, threshold_.score, inv_t_, weights));
    });
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
    const double ratio = law_.bound(rest, 0) / (mass * share * query_.tolerance);
    const double aim = 0.7;  // of the tolerance
    if (ratio > 1.0) return doubt.cut - 0.5 / inv_t;
    if (!(ratio < aim)) return doubt.cut;
    return doubt.cut + std::min(50.0, 0.5 * log(aim / ratio)) / inv_t;
  }

  // There is no room for more: chooses the cut, or raises it to the median of what was noted.
  void make_room(int64_t visited) {
    if (undecided_) return choose_cut(visited);
    // Of a sample: the items stay where they are, for sums depend on their order, and the order in
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
    while (limited_ && kFutile * futile_ <= (visited_ + scan.walk.visit) * kLanes + 1024) {
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
