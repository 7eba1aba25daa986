// The normaliser of a ranking drawn over int8 codes: heavy items by their float32 scores, the
// others by estimates, with a bound on the remaining error (docs/explanation/int8-bounds.md, "The
// normaliser"). Included by estimated.h.
#pragma once

#include <cmath>
#include <memory>

#include "chunks.h"
#include "error_law.h"

namespace fastrank {

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
  // The noted items were subtracted again: a rounding error may be left.
  return {std::max(0.0, relative(doubt.mass, reference, inv_temperature)),
          std::max(0.0, relative(doubt.scaled, reference, inv_temperature)),
          std::max(0.0, relative(doubt.variance, reference, 2.0 * inv_temperature)),
          exp((doubt.cut - reference) * inv_temperature)};
}

double heaviness(const CodeQuery& query, float score, float scale) {
  return double(score) + 2.0 * query.spread * scale;
}

// Into the second cache, which has more lines on their way at a time than the first: a row then comes
// in three quarters of the time. No more of a long one than the caches hold.
void prefetch_row(const Source& source, int64_t position) {
  const int64_t stride = (source.dim + 3) / 4 * 4;
  const float* row = row_of(source, position);
  for (int64_t c = 0; c < std::min<int64_t>(stride, 4096); c += 16)
    __builtin_prefetch(row + c, 0, 2);
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

// Rows to prefetch before they are scored: they are anywhere in memory.
constexpr int64_t kFetchAhead = 16;

// Scores the items whose score is not known yet.
void score_missing(const Kernels& kernels, const Source& source, Noted* items, int64_t count) {
  int64_t fetched = 0, waiting = 0;
  int64_t indices[kLanes] = {}, positions[kLanes] = {};
  float scores[kLanes];
  const auto score = [&] {
    kernels.score_rows(source, positions, int(waiting), scores);
    for (int64_t j = 0; j < waiting; ++j) items[indices[j]].score = scores[j];
    waiting = 0;
  };
  for (int64_t i = 0; i < count; ++i) {
    for (; fetched < std::min(count, i + kFetchAhead); ++fetched)
      if (std::isnan(items[fetched].score)) prefetch_row(source, items[fetched].position);
    if (!std::isnan(items[i].score)) continue;
    indices[waiting] = i;
    positions[waiting] = items[i].position;
    if (++waiting == kLanes) score();
  }
  score();
}

// The highest heaviness - window * scale.
float highest_of(const ErrorLaw& law, const Noted* items, int64_t count) {
  const float window = float(law.window);
  float highest = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < count; ++i)
    highest = std::max(highest, items[i].heaviness - window * items[i].scale);
  return highest;
}

// Calls visit(item) for each noted item, in order.
template <class Visit>
void each_noted(const Partial& partial, const Visit& visit) {
  for (const NotedRun& run : partial.noted)
    for (int64_t i = 0; i < run.count; ++i) visit(run.items[i]);
}

// Copies the items that reach the cut to `above`, and the others to `below`, which may be where they
// are; without an unpredictable branch, so both have room for all. Returns how many reach it.
int64_t split(const Noted* items, int64_t count, float cut, Noted* above, Noted* below) {
  int64_t n_above = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Noted item = items[i];
    const bool is_above = item.heaviness >= cut;
    above[n_above] = below[i - n_above] = item;
    n_above += is_above;
  }
  return n_above;
}

// What completing a normaliser works with: memory that one user after another takes again.
class Workspace {
 public:
  Noted *scored = nullptr, *others = nullptr;
  std::vector<Noted> light;
  std::unique_ptr<Noted[]> again;  // what a pass of its own has noted

  void make_room(size_t items) {
    if (items <= room_) return;
    room_ = items + items / 4;
    noted_.reset(new Noted[2 * room_]);
    scored = noted_.get();
    others = scored + room_;
  }

 private:
  size_t room_ = 0;
  std::unique_ptr<Noted[]> noted_;
};

// Completes the mass of the items that are not ranked: scores the noted items that are heavy.
// Returns a bound on the error of log(mass + weight of the last ranked item). Infinite if it cannot
// be kept within the tolerance; *excess is then about the factor by which it is missed.
double complete(const Kernels& kernels, const Source& source, const ErrorLaw& law,
                double temperature, Partial* top, double* excess, Workspace* work) {
  const CodeQuery& query = *source.query_of_codes;
  const double inv_t = 1.0 / temperature;
  const float reference = top->items.back().score;
  int64_t n_items = 0;
  for (const NotedRun& run : top->noted) n_items += run.count;
  const Unscored light = unscored(top->doubt, reference, inv_t);
  const double exact = relative(top->rest, reference, inv_t);
  const double noted = relative(top->doubt.noted, reference, inv_t);
  if (!top->doubt.estimated && n_items == 0) {
    top->rest = {exact, double(reference)};
    return 0.0;
  }

  // Choose the cut from the estimated uncertainty that lighter items leave.
  const float window = float(law.window);
  float highest = -std::numeric_limits<float>::infinity();
  for (const NotedRun& run : top->noted) highest = std::max(highest, run.highest);
  Histogram bins(highest, inv_t);
  each_noted(*top, [&](const Noted& item) { bins.add(item.heaviness - window * item.scale); });
  const double usual =
      light.mass > 0.0 ? light.scaled / light.mass : law.deviation * query.max_scale;
  const double reach = law.deviation > 0.0 ? 2.0 * query.spread * usual / law.deviation : 0.0;
  const double allowed = query.tolerance * (exact + light.mass + noted + 1.0);
  const double least = law.bound(light, n_items);
  if (!(least <= allowed)) {  // whatever is scored
    *excess = least / allowed;
    return kInfinity;
  }
  // Sums over the light items if the bins before one are heavy. The allowed mass is from estimates,
  // which a few items can dominate.
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

  // Lower and lower, if the sums turn out worse.
  work->make_room(size_t(n_items));
  Noted *const scored = work->scored, *const others = work->others;
  std::vector<Noted>& light_ones = work->light;
  int64_t n_scored = 0, n_others = 0;
  for (int step = 1 + int(Histogram::kPerUnit * std::min(4.0, usual));; step *= 2) {
    double cut = top->doubt.cut;
    if (last < bins.used) cut = std::max(cut, bins.edge(last));
    Noted* const more = scored + n_scored;
    int64_t n_more = 0;
    if (n_scored + n_others == 0) {
      for (const NotedRun& run : top->noted) {
        const int64_t n = split(run.items, run.count, float(cut), more + n_more, others + n_others);
        n_more += n;
        n_others += run.count - n;
      }
    } else {
      n_more = split(others, n_others, float(cut), more, others);
      n_others -= n_more;
    }
    score_missing(kernels, source, more, n_more);
    n_scored += n_more;
    light_ones.clear();
    double heavy_mass = 0.0;
    int64_t n_heavy = 0;
    for (int64_t first = 0; first < n_scored; first += kLanes) {
      const int count = int(std::min<int64_t>(kLanes, n_scored - first));
      uint32_t heavy = 0;
      float scores[kLanes] = {};
      for (int i = 0; i < count; ++i) {
        const Noted& item = scored[first + i];
        scores[i] = item.score;
        if (heaviness(query, item.score, item.scale) >= cut) {
          heavy |= 1u << i;
        } else {
          light_ones.push_back(item);
        }
      }
      n_heavy += __builtin_popcount(heavy);
      float weights[kLanes];
      heavy_mass += double(
          kernels.weigh(scores, heavy, reference, float(inv_t), weights));
    }
    Estimates estimates = {};
    estimate_items(kernels, others, n_others, reference, float(inv_t), law.deviation,
                   &estimates);
    estimate_items(kernels, light_ones.data(), int64_t(light_ones.size()), reference,
                   float(inv_t), law.deviation, &estimates);
    const double mass = exact + heavy_mass + light.mass + estimates.mass;
    const Unscored rest = {light.mass + estimates.mass, light.scaled + estimates.scaled,
                           light.variance + estimates.variance, exp((cut - reference) * inv_t)};
    const bool estimated = top->doubt.estimated || n_others > 0 || !light_ones.empty();
    // Sums are float32 over 8 panels, and the noted items are subtracted from them.
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

// Notes again, in a pass over the codes only, the items that reach a cut; the ranked items stay.
// Returns whether these were few enough to be scored.
bool note_again(const Kernels& kernels, const Source& source, const ErrorLaw& law,
                double temperature, double cut, Partial* top, Workspace* work) {
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
  work->again.reset();  // before there is another
  work->again.reset(new Noted[size_t(room)]);
  Noted* const noted = work->again.get();
  CodeScan scan = {};
  scan.walk.step = scan.walk.stride = 1;
  scan.walk.count = source.n_panels;
  scan.walk.reference = reference;
  scan.walk.inv_temperature = float(1.0 / temperature);
  scan.walk.limit = kInfinity;  // no budget is spent: weights are bounded by nothing, linearly
  scan.linear = true;
  scan.deviation = float(law.deviation);
  scan.noting = float(law.noting);
  // Heaviness then excludes the part of the biases, and the cut compensates for that.
  scan.cut = float(cut - 4.0 * source.query_of_codes->bias_rounding);
  scan.noted = noted;
  scan.room = room;
  if (kernels.scan_codes(others, &scan)) return false;
  top->noted.assign(1, {noted, scan.n_noted, highest_of(law, noted, scan.n_noted)});
  Estimates sums = {};
  estimate_items(kernels, noted, scan.n_noted, reference, scan.walk.inv_temperature,
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

// A lower cut, from the factor by which the bound is missed and the noted items near the old cut.
double lower_cut(const ErrorLaw& law, double temperature, const Partial& top, double excess) {
  const double inv_t = 1.0 / temperature, cut = top.doubt.cut;
  const Unscored light = unscored(top.doubt, cut, inv_t);
  const double usual = light.mass > 0.0 ? light.scaled / light.mass : 0.0;
  double near = 0.0;
  each_noted(top, [&](const Noted& item) {
    near += (double(item.heaviness) - cut) * inv_t < 0.5;
  });
  const double weight =
      usual * (law.deviation > 0.0 ? exp(-law.noting * usual / law.deviation * inv_t) : 1.0);
  // The bound is proportional to the root of the variance, to which an item at the cut adds
  // weight^2.
  const double slope = light.variance > 0.0 ? near * weight * weight / light.variance : 0.0;
  // Less steep further down; noting more items costs less than another pass.
  const double lower = log(1.2 * std::max(excess, 1.0)) / std::max(0.5 * slope, 0.05);
  return cut - std::clamp(lower, 0.25, 8.0) * temperature;
}

// Like `complete`, repeated once or twice after a near miss; infinite if everything has to be
// summed in float32.
double finish(const Kernels& kernels, const Source& source, double temperature, Partial* top,
              Workspace* work) {
  const ErrorLaw law(*source.query_of_codes, temperature);
  double excess = kInfinity;
  double bound = complete(kernels, source, law, temperature, top, &excess, work);
  for (int again = 0; again < 2 && bound == kInfinity && excess < 8.0 && !top->doubt.costly;
       ++again) {
    const double cut = lower_cut(law, temperature, *top, excess);
    if (!note_again(kernels, source, law, temperature, cut, top, work)) break;
    bound = complete(kernels, source, law, temperature, top, &excess, work);
  }
  return bound;
}

}  // namespace
}  // namespace fastrank
