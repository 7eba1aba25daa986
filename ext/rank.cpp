// The policies that scan: one pass over the chunks, partials merged into the k best.

#include <cmath>
#include <limits>
#include <new>

#include "chunks.h"

namespace fastrank {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

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

// The masses by label of what a chunk's pass does not keep. Weights are relative to the threshold of
// their time, sums to an earlier one, so that a new threshold changes a unit, and sums only where it is
// far from that.
class LabelSums {
 public:
  LabelSums(const Kernels& kernels, const Source& source, double inv_temperature)
      : kernels_(kernels),
        source_(source),
        inv_temperature_(inv_temperature),
        copies_(source.n_labels <= kFewLabels ? kLabelCopies : 1),
        sums_(size_t(source.n_labels * copies_)),
        weighed_(std::make_unique<Weighed>()) {
    weighed_->sums = sums_.data();
    weighed_->copies = copies_;
  }

  void begin(const Candidate& threshold) {
    base_ = highest_ = double(threshold.score);
    weighed_->unit = 1.0;
    weighed_->count = 0;
    std::fill(sums_.begin(), sums_.end(), 0.0);
  }

  // scan_mass, whose weights are added, too.
  bool scan(const Kernels& kernels, const Source& source, Scan* scan) {
    scan->weighed = weighed_.get();
    return kernels.scan_labels(source, scan);
  }

  // Some lanes of the panel that a scan is at.
  void add(const Scan& scan, uint32_t lanes) {
    for (; lanes; lanes &= lanes - 1) {
      const int lane = __builtin_ctz(lanes);
      add(scan.panel * kLanes + lane, double(scan.weights[lane]));
    }
  }

  // The threshold, of which `gone` leaves the heap, gives way to another.
  void move(double gone, const Candidate& threshold, const Candidate& next) {
    kernels_.add_weighed(source_, weighed_.get());
    add(threshold.position, gone);
    const double score = double(next.score);
    if ((score - base_) * inv_temperature_ > LabelMasses::kFar) {
      const double factor = exp((base_ - score) * inv_temperature_);
      for (double& sum : sums_) sum *= factor;
      base_ = score;
    }
    weighed_->unit = exp((score - base_) * inv_temperature_);
    highest_ = std::max(highest_, score);
  }

  void end(LabelMasses* out) {
    kernels_.add_weighed(source_, weighed_.get());
    const double factor = exp((base_ - highest_) * inv_temperature_);
    const double* sums = sums_.data();
    for (double& value : out->values) {
      value = factor * (copies_ == 1 ? sums[0] : (sums[0] + sums[1]) + (sums[2] + sums[3]));
      sums += copies_;
    }
    out->reference = highest_;
  }

 private:
  static constexpr int64_t kFewLabels = 4096;  // whose copies a core's second cache holds

  void add(int64_t position, double weight) {
    sums_[size_t(source_.labels[position] * copies_)] += weight * weighed_->unit;
  }

  const Kernels& kernels_;
  const Source& source_;
  const double inv_temperature_;
  const int64_t copies_;
  std::vector<double> sums_;
  std::unique_ptr<Weighed> weighed_;
  double base_ = 0.0, highest_ = 0.0;  // scores of thresholds
};

// Where no masses by label are wanted.
struct NoLabels {
  NoLabels(const Kernels&, const Source&, double) {}
  void begin(const Candidate&) {}
  bool scan(const Kernels& kernels, const Source& source, Scan* scan) {
    return kernels.scan_mass(source, scan);
  }
  void add(const Scan&, uint32_t) {}
  void move(double, const Candidate&, const Candidate&) {}
  void end(LabelMasses*) {}
};

// The order of the keys score / T + Gumbel is a Plackett-Luce ranking (Yellott 1977). With t the
// k-th best key so far, item i passes it with probability 1 - exp(-lambda_i), lambda_i =
// exp(score_i / T - t), so an Exp(1) budget E is spent on the lambdas: the item at which it runs
// out enters, all before do not (exponential jumps: Efraimidis and Spirakis, "Weighted random
// sampling with a reservoir", 2006). What is left of the budget before the entrant is distributed
// as an Exp(1) variate below its lambda, which is the law of the exponential in its key, given that
// it passes: so the remainder is that exponential, and an entry costs one number.
// The threshold t is kept as an item: weights are relative to its score, lambda = weight *
// exponential, and both are exact at any scale.
template <class Labels>
class JumpsWith : public Pass {
 public:
  JumpsWith(const Kernels& kernels, const Source& source, double temperature, uint64_t seed)
      : Pass({1.0 / temperature, source.rows}),
        kernels_(kernels),
        source_(source),
        inv_t_(float(1.0 / temperature)),
        seed_(seed),
        labels_(kernels, source, 1.0 / temperature) {}

  void begin(int64_t chunk, const Outlook* outlook, Partial* out) override {
    chunk_ = uint32_t(chunk);
    drawn_ = 0;
    out_ = out;
    mass_ = rest_ = 0.0;
    limited_ = outlook != nullptr;
    if (outlook) {
      threshold_ = outlook->floor;
      labels_.begin(threshold_);
      draw_budget();
    }
  }

  void walk(Scan scan) override {
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
      const bool stopped = limited_ && labels_.scan(kernels_, source_, &scan);
      mass_ = scan.mass;
      if (!stopped) return;
      find_entrant(&scan);
      settle(&scan);
    }
  }

  void end() override {
    settle_rest();
    if (limited_) out_->rest = {rest_ + mass_, threshold_.score};
    if (limited_) labels_.end(&out_->labels);
  }

 protected:
  // Until there are k items each gets a plain Gumbel key.
  void fill(Scan* scan) {
    while (scan->lanes && !limited_) {
      const int lane = take_lane(scan);
      out_->push(
          perturbed(scan->scores[lane], scan->panel * kLanes + lane, next_exponential()));
      if (out_->full()) {
        limited_ = true;
        threshold_ = out_->worst();
        labels_.begin(threshold_);
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
        labels_.add(*scan, scan->lanes);
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
      labels_.add(*scan, 1u << lane);
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
    labels_.move(gone, threshold_, next);
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
  Labels labels_;
};

using Jumps = JumpsWith<NoLabels>;

// ---- Deterministic: the same walk with key = score ------------------------------------------

class Best : public Pass {
 public:
  Best(const Kernels& kernels, const Source& source)
      : Pass({1.0, source.rows}), kernels_(kernels), source_(source) {}

  void begin(int64_t, const Outlook* outlook, Partial* out) override {
    out_ = out;
    limited_ = outlook != nullptr;
    if (outlook) threshold_ = outlook->floor;
  }

  void walk(Scan scan) override {
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

  void end() override {}

 protected:
  // Returns how many items were taken.
  int settle(Scan* scan) {
    int taken = 0;
    while (scan->lanes) {
      const int lane = take_lane(scan);
      const Candidate item = {0.0, 1.0, scan->panel * kLanes + lane, scan->scores[lane]};
      if (limited_ && !order.better(item, threshold_)) continue;
      ++taken;
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
    return taken;
  }

  const Kernels& kernels_;
  const Source& source_;
  Partial* out_ = nullptr;
  bool limited_ = false;
  Candidate threshold_ = {};
};

}  // namespace
}  // namespace fastrank

#include "estimated.h"
#include "pool.h"
#include "table.h"

namespace fastrank {
namespace {

void rank_uniform(const Kernels& kernels, const Source& source, const Request& request,
                  uint64_t seed, Interrupt* interrupt, Ranking* out) {
  const Eligible eligible(source, request.n_eligible);
  Pool pool(eligible, out->count, interrupt);
  Stream stream(seed, 0, kUniformDraws);
  for (int64_t j = 0; j < out->count; ++j) {
    interrupt->check(1);
    const int64_t position = pool.draw(&stream);
    out->positions[j] = position;
    out->scores[j] = score_of(kernels, source, position);
    out->log_propensities[j] = 0.0 - log(double(pool.left()));
    pool.remove(position);
  }
}

void rank_epsilon_greedy(const Kernels& kernels, const Source& source, const Request& request,
                         const Policy& policy, const Partial& best, Interrupt* interrupt,
                         Ranking* out) {
  const Eligible eligible(source, request.n_eligible);
  Pool pool(eligible, out->count, interrupt);
  Stream coins(policy.seed, 0, kCoins), draws(policy.seed, 0, kExploration);
  FlatMap<bool> shown(size_t(out->count));
  size_t next_best = 0;
  for (int64_t j = 0; j < out->count; ++j) {
    interrupt->check(1);
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
                     Interrupt* interrupt, Ranking* out) {
  const double inv_t = 1.0 / policy.temperature;
  std::vector<int64_t> left;  // eligible positions, ascending, and their scores
  std::vector<float> scores;
  for (int64_t panel = 0; panel < source.n_panels; ++panel) {
    interrupt->check(1);
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
      if (i % 1024 == 0) interrupt->check(64);
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

// ---- Users ----------------------------------------------------------------------------------

// Users who pass together: their filters, passes and heaps exist at the same time.
constexpr int64_t kBlockUsers = 64;
// From so many users a thread on, each thread has users of its own and waits for nobody.
constexpr int64_t kUsersApart = 8;

// Of so few eligible items the float32 rows cost no more than the codes.
constexpr int64_t kFewItems = 2048;

Forced forced_by_tests;

int64_t few_items() {
  const int64_t few = forced()->few_items.load(std::memory_order_relaxed);
  return few ? few : kFewItems;
}

bool scans(const Policy& policy) {
  return policy.kind == kGumbel || policy.kind == kDeterministic || policy.kind == kEpsilonGreedy;
}

// Ranks for users[0], ..., users[count - 1], at most kBlockUsers, in one pass.
void rank_block(const Catalog& catalog, const Kernels& kernels, User* users, int64_t count,
                int64_t k, int64_t threads, Interrupt* interrupt) {
  std::vector<std::vector<uint16_t>> filters(static_cast<size_t>(count));
  std::vector<Request> requests;
  std::vector<Source> sources;
  sources.reserve(size_t(count));  // what draws from tables refers to them
  std::vector<std::unique_ptr<FromTable>> tables(static_cast<size_t>(count));
  std::deque<CodeQuery> queries;
  for (int64_t i = 0; i < count; ++i) {
    User& user = users[i];
    Request request = user.request;
    if (user.allowed || user.excluded) {
      interrupt->check(panel_count(catalog.n_items + user.n_allowed + user.n_excluded) / 16);
      std::vector<uint16_t>& bits = filters[size_t(i)];
      bits.resize(size_t(panel_count(catalog.n_items)));
      request.n_eligible = make_filter(catalog.n_items, user.allowed, user.n_allowed,
                                       user.excluded, user.n_excluded, bits.data());
      request.eligible = bits.data();
      user.request.n_eligible = request.n_eligible;
    }
    requests.push_back(request);
    user.fault = kNoFault;
    sources.push_back(make_source(catalog, request, &user.fault));
    const bool has_codes = catalog.quantised.codes && !request.function;
    if (user.policy.kind == kTable) {
      tables[size_t(i)] = from_table(kernels, sources.back(), user.table, user.policy,
                                     std::min(k, request.n_eligible), has_codes, interrupt);
      if (!tables[size_t(i)]) user.policy.kind = kGumbel;
    }
    user.out.n_scored = request.n_eligible;
    user.out.from_table = user.policy.kind == kTable;
    const bool sums = user.policy.kind == kGumbel;
    if (has_codes && scans(user.policy) && request.n_eligible >= few_items() &&
        !(sums && catalog.quantised.tolerance == 0.0)) {
      queries.emplace_back(catalog, request, user.largest);
      if (queries.back().usable) use_codes(catalog, queries.back(), &sources.back());
    }
    user.out.label_reference = 0.0;
    if (request.labels) std::fill_n(user.out.label_masses, request.n_labels, 0.0);
    user.out.log_norm_error = 0.0;
    user.out.count = std::min(k, request.n_eligible);
    const bool plackett_luce = user.policy.kind == kGumbel ||
                               user.policy.kind == kSequential || user.policy.kind == kTable;
    user.out.log_norm = plackett_luce && user.out.count == 0 ? -kInfinity : kNaN;
  }

  std::vector<SharedPass::Member> scanning;
  for (int64_t i = 0; i < count; ++i)
    if (scans(users[i].policy) && users[i].out.count > 0)
      scanning.push_back({&sources[size_t(i)], &users[i].policy, users[i].out.count});
  const ChunkLaw law(catalog.n_items, k);
  threads = std::min(threads, law.widest_group());
  SharedPass shared(kernels, law, scanning, threads, interrupt);
  if (!scanning.empty())
    on_threads(threads, interrupt, [&](int64_t worker) { shared.work(worker); });

  size_t scanned = 0;
  Workspace work;
  for (int64_t i = 0; i < count; ++i) {
    const Source& source = sources[size_t(i)];
    const Policy& policy = users[i].policy;
    Ranking* out = &users[i].out;
    if (out->count == 0) continue;
    switch (policy.kind) {
      case kDeterministic:
        take(shared.result(scanned++), out);
        break;
      case kGumbel: {
        Partial& top = shared.result(scanned++);
        take(top, out);
        Mass rest = top.rest;
        if (source.codes) {
          out->log_norm_error = finish(kernels, source, policy.temperature, &top, &work);
          rest = top.rest;
          if (out->log_norm_error == kInfinity) {
            out->log_norm_error = 0.0;
            rest = rest_mass(kernels, source, policy.temperature,
                             {out->positions, out->positions + out->count}, interrupt);
          }
        }
        out->log_norm = conditional(out->scores, out->count, rest, policy.temperature,
                                    out->log_propensities);
        if (source.labels && top.labels.reference != -kInfinity) {
          std::copy(top.labels.values.begin(), top.labels.values.end(), out->label_masses);
          out->label_reference = top.labels.reference;
        }
        break;
      }
      case kSequential:
        rank_sequential(kernels, source, policy, interrupt, out);
        break;
      case kEpsilonGreedy:
        rank_epsilon_greedy(kernels, source, requests[size_t(i)], policy, shared.result(scanned++),
                            interrupt, out);
        break;
      case kUniform:
        rank_uniform(kernels, source, requests[size_t(i)], policy.seed, interrupt, out);
        break;
      case kTable:
        tables[size_t(i)]->rank(out);
        break;
    }
  }
}

}  // namespace

std::unique_ptr<Pass> make_pass(const Kernels& kernels, const Source& source,
                                const Policy& policy, const ChunkLaw& law, Arena* arena) {
  if (policy.kind != kGumbel) {
    if (source.codes) return std::make_unique<EstimatedBest>(kernels, source);
    return std::make_unique<Best>(kernels, source);
  }
  if (source.codes)
    return std::make_unique<EstimatedJumps>(kernels, source, policy.temperature, policy.seed, law,
                                            arena);
  if (source.labels)
    return std::make_unique<JumpsWith<LabelSums>>(kernels, source, policy.temperature, policy.seed);
  return std::make_unique<Jumps>(kernels, source, policy.temperature, policy.seed);
}

Partial best_items(const Kernels& kernels, const Source& source, int64_t n_items, int64_t k,
                   int64_t capacity, Interrupt* interrupt) {
  const Policy policy = {kDeterministic, 1.0, 0.0, 0};
  SharedPass shared(kernels, ChunkLaw(n_items, k), {{&source, &policy, capacity}}, 1, interrupt);
  shared.work(0);
  return shared.result(0);
}

Code rank(const Catalog& catalog, User* users, int64_t count, int64_t k, int64_t threads,
          const Poll& poll, int64_t* row, int64_t* where) {
  Interrupt interrupt(poll);
  for (*row = 0; *row < count; ++*row) {
    const bool reads_all = users[*row].request.bias || scores_are_given(catalog);
    if (interrupt.stop(reads_all ? panel_count(catalog.n_items) / 16 : 1))
      return kInterrupted;
    const Code code = check_request(catalog, users[*row].request, where, &users[*row].largest);
    if (code != kOk) return code;
  }
  const Kernels& kernels = fastrank::kernels();
  k = std::min(k, catalog.n_items);
  const bool apart = count / kUsersApart >= threads;
  // Equal blocks, as many as the threads can share equally.
  const int64_t share = apart ? threads : 1;
  const int64_t blocks = share * ((count + share * kBlockUsers - 1) / (share * kBlockUsers));
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  const auto work = [&](int64_t) {
    try {
      for (int64_t i; !failed && (i = next.fetch_add(1)) < blocks;) {
        const int64_t first = count * i / blocks, last = count * (i + 1) / blocks;
        rank_block(catalog, kernels, users + first, last - first, k, apart ? 1 : threads,
                   &interrupt);
      }
    } catch (const std::bad_alloc&) {
      failed = true;
    } catch (const Interrupted&) {
    }
  };
  on_threads(share, &interrupt, work);
  if (interrupt.stopped()) return kInterrupted;
  if (failed) return kOutOfMemory;
  for (*row = 0; *row < count; ++*row)
    if (const Code code = code_of_fault(users[*row].fault, where); code != kOk) return code;
  return kOk;
}

Forced* forced() { return &forced_by_tests; }

}  // namespace fastrank
