// A flat tail below candidates (kernels.h): rankings and propensities.

#include <cmath>
#include <limits>
#include <new>
#include <optional>

#include "pool.h"
#include "quantise.h"

namespace fastrank {
namespace {

constexpr int64_t kBlock = 64;   // candidates that share a sum
constexpr double kLow = 1e-200;  // weights are relative to another score where all that is left is less

// What candidates weigh, and each item of the tail, as long as they are left.
class Weights {
 public:
  Weights(const Kernels& kernels, std::vector<double> scores, int64_t n_tail, double temperature,
          double factor, Interrupt* interrupt)
      : kernels_(kernels),
        inv_t_(1.0 / temperature),
        interrupt_(interrupt),
        scores_(std::move(scores)),
        n_tail_(n_tail),
        weights_((scores_.size() + kAhead - 1) / kAhead * kAhead),
        sums_((scores_.size() + kBlock - 1) / kBlock) {
    if (!scores_.empty())
      tail_ = *std::min_element(scores_.begin(), scores_.end()) + log(factor) * temperature;
    refer();
  }

  double tail_score() const { return tail_; }
  double tail_log_weight() const { return tail_ * inv_t_; }

  // Of all that is left.
  Mass mass() {
    if (!(total() >= kLow)) refer();
    return {total(), reference_};
  }

  // The candidate whose turn it is, or -1 for one of the tail; which is left no longer.
  int64_t take(double uniform) {
    double budget = uniform * mass().value;
    if (n_tail_ > 0 && !(budget < own())) {  // the tail lies behind all candidates
      --n_tail_;
      return -1;
    }
    const int64_t block = pick(sums_.data(), int64_t(sums_.size()), &budget);
    const int64_t first = block * kBlock;
    const int64_t i =
        first + pick(&weights_[size_t(first)], std::min(kBlock, count() - first), &budget);
    scores_[size_t(i)] = -kInfinity;
    weights_[size_t(i)] = 0.0;
    add_up(block);
    return i;
  }

 private:
  int64_t count() const { return int64_t(scores_.size()); }

  // Of the candidates that are left.
  double own() const { return sum_of(sums_.data(), int64_t(sums_.size())); }

  double total() const { return own() + (n_tail_ > 0 ? double(n_tail_) * tail_weight_ : 0.0); }

  // Weights relative to the highest score that is left: sums of positive terms, so what is gone took
  // nothing of their precision with it.
  void refer() {
    reference_ = n_tail_ > 0 ? tail_ : -kInfinity;
    for (const double score : scores_) reference_ = std::max(reference_, score);
    if (reference_ == -kInfinity) return;  // nothing is left
    for (int64_t first = 0; first < count(); first += kAhead) {
      if (first % (kAhead * kBlock) == 0) interrupt_->check(kBlock);
      double* weights = &weights_[size_t(first)];
      for (int64_t i = 0; i < kAhead; ++i) {
        const double score = first + i < count() ? scores_[size_t(first + i)] : -kInfinity;
        weights[i] = std::max((score - reference_) * inv_t_, -kExpInRange);
      }
      kernels_.exps(weights);
      for (int64_t i = 0; i < kAhead && first + i < count(); ++i)
        if (!((scores_[size_t(first + i)] - reference_) * inv_t_ > -kExpInRange)) weights[i] = 0.0;
    }
    for (size_t block = 0; block < sums_.size(); ++block) add_up(int64_t(block));
    tail_weight_ = exp((tail_ - reference_) * inv_t_);
  }

  void add_up(int64_t block) {
    const int64_t first = block * kBlock;
    sums_[size_t(block)] =
        sum_of(&weights_[size_t(first)], std::min(kBlock, count() - first));
  }

  const Kernels& kernels_;
  const double inv_t_;
  Interrupt* const interrupt_;
  std::vector<double> scores_;  // -inf: gone
  int64_t n_tail_;
  std::vector<double> weights_, sums_;
  double tail_ = 0.0;  // a score of the tail's weight
  double reference_ = 0.0, tail_weight_ = 0.0;
};

bool is_eligible(const Source& source, int64_t position) {
  return lanes_of(source, position / kLanes) >> (position % kLanes) & 1;
}

// The items that are neither candidates nor shown, to draw from uniformly: where they are many, by looks
// at the map of both.
class Tail {
 public:
  Tail(const Source& source, const Request& request, const Candidates& candidates, int64_t places,
       FlatMap<int64_t>* gone, Interrupt* interrupt)
      : source_(source),
        request_(request),
        candidates_(candidates),
        places_(candidates.count + places),
        gone_(*gone),
        interrupt_(interrupt) {}

  // One of them, which is shown from now on.
  int64_t take(Stream* stream) {
    if (!eligible_) begin();
    if (pool_) {
      const int64_t position = pool_->draw(stream);
      pool_->remove(position);
      return position;
    }
    for (;;) {
      interrupt_->check(1);
      const int64_t position =
          eligible_->position(int64_t(stream->below(uint64_t(request_.n_eligible))));
      if (gone_.insert(position, candidates_.count)) return position;
    }
  }

 private:
  void begin() {
    eligible_.emplace(source_, request_.n_eligible);
    if (2 * places_ < request_.n_eligible) return;
    pool_.emplace(*eligible_, places_, interrupt_);
    for (int64_t i = 0; i < candidates_.count; ++i) pool_->remove(candidates_.positions[i]);
  }

  const Source& source_;
  const Request& request_;
  const Candidates& candidates_;
  const int64_t places_;  // that can be gone
  FlatMap<int64_t>& gone_;
  Interrupt* const interrupt_;
  std::optional<Eligible> eligible_;
  std::optional<Pool> pool_;  // where half of the eligible items may be gone
};

// What a score is made of, into the first cache: it is far from what was read before.
void fetch(const Source& source, int64_t position) {
  if (source.vectors) {
    for (int32_t i = 0; i < source.dim; i += kLanes)
      __builtin_prefetch(row_of(source, position) + i);
  } else if (source.panels) {
    for (int32_t i = 0; i < source.dim; ++i)
      __builtin_prefetch(source.panels + (position / kLanes * source.dim + i) * kLanes);
  }
}

// The candidates' scores, and where each stands among them; *where as kNoCandidate says.
Code look_at(const Kernels& kernels, const Source& source, const Candidates& candidates,
             Interrupt* interrupt, FlatMap<int64_t>* place, std::vector<double>* scores,
             int64_t* where) {
  scores->reserve(size_t(candidates.count));
  for (int64_t i = 0; i < candidates.count; ++i) {
    interrupt->check(1);
    const int64_t position = candidates.positions[i];
    float score = candidates.scores ? candidates.scores[i] : score_of(kernels, source, position);
    if (!std::isfinite(score)) score = -std::numeric_limits<float>::max();  // of a damaged catalog
    *where = i;
    if (!is_eligible(source, position) || !place->insert(position, i)) return kNoCandidate;
    scores->push_back(double(score));
  }
  return kOk;
}

// A call's candidates, looked at.
struct Looked {
  const Kernels& kernels;
  const Source& source;
  const std::vector<double>& scores;
  FlatMap<int64_t>* place;
  Interrupt* interrupt;
};

template <class Body>
Code with_candidates(const Catalog& catalog, const Request& request, const Candidates& candidates,
                     const Poll& poll, int64_t* where, Body body) {
  Interrupt interrupt(poll);
  Largest largest = {};
  Code code = check_request(catalog, request, where, &largest);
  if (code != kOk) return code;
  try {
    const Kernels& kernels = fastrank::kernels();
    const Source source = make_source(catalog, request, nullptr);
    FlatMap<int64_t> place{size_t(candidates.count)};
    std::vector<double> scores;
    code = look_at(kernels, source, candidates, &interrupt, &place, &scores, where);
    if (code == kOk) body(Looked{kernels, source, scores, &place, &interrupt});
    return code;
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  } catch (const Interrupted&) {
    return kInterrupted;
  }
}

}  // namespace

Code rank_flat_tail(const Catalog& catalog, const Request& request, const Candidates& candidates,
                    double temperature, uint64_t seed, int64_t k, const Poll& poll, Ranking* out,
                    FlatTail* tail, int64_t* where) {
  return with_candidates(catalog, request, candidates, poll, where, [&](const Looked& found) {
    const auto& [kernels, source, scores, place, interrupt] = found;
    Weights weights(kernels, scores, request.n_eligible - candidates.count, temperature,
                    candidates.factor, interrupt);
    tail->log_weight = weights.tail_log_weight();
    out->count = std::min(k, request.n_eligible);
    out->n_scored = candidates.count;
    out->log_norm_error = 0.0;
    out->from_table = false;
    Stream stream(seed, 0, kFlatTailDraws);
    Tail others(source, request, candidates, out->count, place, interrupt);
    std::vector<double> shown;
    for (int64_t j = 0; j < out->count; ++j) {
      interrupt->check(1);
      const int64_t i = weights.take(stream.uniform());
      tail->is_candidate[j] = i >= 0;
      if (i >= 0) {
        out->positions[j] = candidates.positions[i];
        out->scores[j] = float(scores[size_t(i)]);
        shown.push_back(scores[size_t(i)]);
        continue;
      }
      const int64_t position = others.take(&stream);
      out->positions[j] = position;
      ++out->n_scored;
      shown.push_back(weights.tail_score());
      fetch(source, position);
    }
    for (int64_t j = 0; j < out->count; ++j)
      if (!tail->is_candidate[j]) out->scores[j] = score_of(kernels, source, out->positions[j]);
    out->log_norm = conditional(shown.data(), out->count, weights.mass(), temperature,
                                out->log_propensities);
  });
}

Code flat_tail_log_propensities(const Catalog& catalog, const Request& request,
                                const Candidates& candidates, double temperature,
                                const int64_t* positions, int64_t count, const Poll& poll,
                                double* out, int64_t* where) {
  return with_candidates(catalog, request, candidates, poll, where, [&](const Looked& found) {
    const auto& [kernels, source, scores, place, interrupt] = found;
    std::vector<double> left = scores;
    // The places that can be judged: known, eligible, not shown before.
    std::vector<int64_t> judged;
    std::vector<const int64_t*> as_candidate;
    int64_t n_tail = request.n_eligible - candidates.count;
    FlatMap<bool> seen{size_t(count)};
    for (int64_t j = 0; j < count; ++j) {
      interrupt->check(1);
      const int64_t position = positions[j];
      out[j] = -kInfinity;
      if (position < 0 || !is_eligible(source, position) || seen.contains(position)) continue;
      seen[position] = true;
      const int64_t* i = place->find(position);
      judged.push_back(j);
      as_candidate.push_back(i);
      if (i) {
        left[size_t(*i)] = -kInfinity;
      } else {
        --n_tail;
      }
    }
    Weights all(kernels, scores, 0, temperature, candidates.factor, interrupt);
    std::vector<double> shown, conditionals(judged.size());
    for (const int64_t* i : as_candidate) shown.push_back(i ? scores[size_t(*i)] : all.tail_score());
    Mass rest = {0.0, 0.0};
    for (const double score : left)
      if (score > -kInfinity) add(&rest, {1.0, score}, 1.0 / temperature);
    if (n_tail > 0) add(&rest, {double(n_tail), all.tail_score()}, 1.0 / temperature);
    conditional(shown.data(), int64_t(judged.size()), rest, temperature, conditionals.data());
    for (size_t i = 0; i < judged.size(); ++i) out[judged[i]] = conditionals[i];
  });
}

}  // namespace fastrank
