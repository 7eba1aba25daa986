// The passes over int8 codes: Jumps and Best on upper bounds, corrected by the float32 score, so that
// rankings are exact (docs/explanation/int8-bounds.md, "Rankings"); and what they note for the normaliser.
// Included by rank.cpp, which has those two.
#pragma once

#include "normaliser.h"

namespace fastrank {
namespace {

// Scans that check more than one item in so many in vain do without codes.
constexpr int64_t kFutile = 12;

class EstimatedJumps final : public Jumps {
 public:
  EstimatedJumps(const Kernels& kernels, const Source& source, double temperature, uint64_t seed,
                 const ChunkLaw& law, Arena* arena)
      : Jumps(kernels, source, temperature, seed),
        query_(*source.query_of_codes),
        law_(query_, temperature),
        bound_(source, law_, temperature),
        n_panels_(source.n_panels),
        room_(law.noted_room(source)),
        arena_(arena),
        noted_(arena->take<Noted>(room_)) {}

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
    looked_at_ = 0;
    n_ahead_ = 0;
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

  int rows_ahead(const float** rows) override {
    const float sure = float(cut_ + kSure / order.inv_temperature);
    for (; looked_at_ < n_noted_ && n_ahead_ < kRowsAhead; ++looked_at_) {
      const Noted& item = noted_[looked_at_];
      rows[n_ahead_] = row_of(source_, item.position);
      ahead_[n_ahead_] = looked_at_;
      n_ahead_ += item.heaviness >= sure;
    }
    return n_ahead_;
  }

  void score_ahead() override {
    int64_t positions[kRowsAhead];
    float scores[kRowsAhead];
    for (int i = 0; i < n_ahead_; ++i) positions[i] = noted_[ahead_[i]].position;
    kernels_.score_rows(source_, positions, n_ahead_, scores);
    for (int i = 0; i < n_ahead_; ++i) noted_[ahead_[i]].score = scores[i];
    n_ahead_ = 0;
  }

  void end() override {
    n_ahead_ = 0;
    if (!limited_) return;
    settle_rest();
    rebase();
    const double score = threshold_.score;
    out_->rest = {rest_ + (exact_ ? mass_ : 0.0), score};
    Estimates noted = {};
    estimate(noted_, n_noted_, &noted);
    out_->doubt = {{estimates_.mass, score},
                   {estimates_.scaled, score},
                   {estimates_.variance, score},
                   {noted.mass, score},
                   highest_cut_,
                   visited_,
                   costly_,
                   estimated_};
    if (n_noted_ == 0) return;
    Noted* const kept = arena_->take<Noted>(n_noted_);
    std::copy_n(noted_, n_noted_, kept);
    out_->noted.push_back({kept, n_noted_, highest_of(law_, kept, n_noted_)});
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
      scan.noted = noted_;
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
                          source_.scales[panel * kLanes + lane], float(kNaN)};
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
    score_missing(kernels_, source_, noted_, n_noted_);
    for (int64_t first = 0; first < n_noted_; first += kLanes) {
      const int count = int(std::min<int64_t>(kLanes, n_noted_ - first));
      float scores[kLanes] = {}, weights[kLanes];
      for (int i = 0; i < count; ++i) scores[i] = noted_[first + i].score;
      rest_ += double(
          kernels_.weigh(scores, (1u << count) - 1, threshold_.score, inv_t_, weights));
    }
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
  Arena* const arena_;
  Noted* const noted_;  // pages that nothing is written to cost nothing
  int64_t n_noted_ = 0;
  // Noted items that will be scored, as far as can be told: which of those looked at last have their
  // rows on their way. Only when they are scored depends on that.
  int64_t looked_at_ = 0, ahead_[kRowsAhead];
  int n_ahead_ = 0;
  static constexpr double kSure = 0.3;  // so far above the present cut, in log-weights
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
