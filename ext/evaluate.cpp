// The propensities of a given ranking, in one pass.

#include <limits>
#include <new>
#include <optional>

#include "quantise.h"
#include "sampling.h"

namespace fastrank {
namespace {

// Sums the weights of eligible items with a running reference, the highest score so far.
class Sum {
 public:
  Sum(const Kernels& kernels, const Source& source, double temperature, Interrupt* interrupt)
      : kernels_(kernels),
        source_(source),
        inv_temperature_(1.0 / temperature),
        interrupt_(interrupt) {}

  // Panels [first, last), whole.
  void add_run(int64_t first, int64_t last) {
    for (; first < last; first += kPiece) {
      interrupt_->check(std::min(kPiece, last - first));
      add_pieces(first, std::min(first + kPiece, last));
    }
  }

  void add_lanes(const float* scores, uint32_t lanes) {
    if (!lanes) return;
    float highest = -std::numeric_limits<float>::infinity();
    for (uint32_t rest = lanes; rest; rest &= rest - 1)
      highest = std::max(highest, scores[__builtin_ctz(rest)]);
    float weights[kLanes];
    const float sum = kernels_.weigh(scores, lanes, highest, float(inv_temperature_), weights);
    add(&mass_, {double(sum), double(highest)}, inv_temperature_);
  }

  Mass mass() const { return mass_; }

 private:
  static constexpr int64_t kPiece = 512;

  void add_pieces(int64_t first, int64_t last) {
    if (!wants_tile(source_)) return add_piece(source_, first, last);
    alignas(64) float room[kTilePanels * kLanes];
    for (; first < last; first += kTilePanels) {
      const int64_t end = std::min(first + kTilePanels, last);
      add_piece(filled(kernels_, source_, first, end - first, room), first, end);
    }
  }

  void add_piece(const Source& source, int64_t first, int64_t last) {
    Scan scan = {};
    scan.first = first;
    scan.step = scan.stride = 1;
    scan.count = last - first;
    scan.inv_temperature = float(inv_temperature_);
    for (;;) {
      scan.reference = mass_.value == 0.0 ? -std::numeric_limits<float>::infinity()
                                          : float(mass_.reference);
      scan.mass = mass_.value;
      const bool stopped = kernels_.scan_sum(source, &scan);
      mass_.value = scan.mass;
      if (!stopped) return;
      add_lanes(scan.scores, scan.lanes);
    }
  }

  const Kernels& kernels_;
  const Source& source_;
  const double inv_temperature_;
  Interrupt* const interrupt_;
  Mass mass_ = {0.0, 0.0};
};

// Adds the items of one panel, each to the mass of its label. labels: those of the panel's items.
void add_to_labels(const Kernels& kernels, const float* scores, uint32_t lanes,
                   const int32_t* labels, double inv_t, LabelMass* masses) {
  uint32_t labelled = 0;
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    if (labels[lane] < 0) continue;
    labelled |= 1u << lane;
    LabelMass& mass = masses[labels[lane]];
    const double score = double(scores[lane]);
    if (++mass.count == 1) {
      mass.reference = score;
    } else if (score > mass.reference) {
      mass.value *= exp((mass.reference - score) * inv_t);
      mass.reference = score;
    }
  }
  // Now none of the panel's is above its label's reference.
  float logs[kLanes] = {}, weights[kLanes];
  for (uint32_t rest = labelled; rest; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    logs[lane] = float((double(scores[lane]) - masses[labels[lane]].reference) * inv_t);
  }
  kernels.weigh(logs, labelled, 0.0f, 1.0f, weights);
  for (uint32_t rest = labelled; rest; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    masses[labels[lane]].value += double(weights[lane]);
  }
}

// In the order that is asked for.
void score_each(const Kernels& kernels, const Source& source, const int64_t* positions,
                int64_t count, Interrupt* interrupt, float* out) {
  if (source.vectors) {
    for (int64_t i = 0; i < count; i += kLanes) {
      interrupt->check(1);
      const int size = int(std::min<int64_t>(kLanes, count - i));
      kernels.score_rows(source, positions + i, size, out + i);
    }
    return;
  }
  int64_t panel = -1;
  float scores[kLanes];
  for (int64_t i = 0; i < count; ++i) {
    if (positions[i] / kLanes != panel) {
      interrupt->check(1);
      panel = positions[i] / kLanes;
      kernels.score_panel(source, panel, scores);
    }
    out[i] = scores[positions[i] % kLanes];
  }
}

}  // namespace

Mass rest_mass(const Kernels& kernels, const Source& source, double temperature,
               std::vector<int64_t> shown, Interrupt* interrupt) {
  std::sort(shown.begin(), shown.end());
  Sum sum(kernels, source, temperature, interrupt);
  int64_t next = 0;
  for (size_t i = 0; i < shown.size();) {
    const int64_t panel = shown[i] / kLanes;
    uint32_t lanes = lanes_of(source, panel);
    for (; i < shown.size() && shown[i] / kLanes == panel; ++i)
      lanes &= ~(1u << (shown[i] % kLanes));
    sum.add_run(next, panel);
    interrupt->check(1);
    float scores[kLanes];
    kernels.score_panel(source, panel, scores);
    sum.add_lanes(scores, lanes);
    next = panel + 1;
  }
  sum.add_run(next, source.n_panels);
  return sum.mass();
}

Code log_propensities(const Catalog& catalog, const Request& request, const Policy& policy,
                      const int64_t* positions, int64_t count, const Poll& poll, double* out,
                      int64_t* where) {
  Interrupt interrupt(poll);
  Largest largest = {};
  const Code code = check_request(catalog, request, where, &largest);
  if (code != kOk) return code;
  try {
    const Kernels& kernels = fastrank::kernels();
    int64_t fault = kNoFault;
    Source source = make_source(catalog, request, &fault);
    // The places that can be judged: known, eligible, not shown before.
    std::vector<int64_t> shown, place;
    FlatMap<bool> seen{size_t(count)};
    for (int64_t j = 0; j < count; ++j) {
      interrupt.check(1);
      const int64_t p = positions[j];
      out[j] = -kInfinity;
      if (p < 0 || !(lanes_of(source, p / kLanes) >> (p % kLanes) & 1) || seen.contains(p))
        continue;
      seen[p] = true;
      shown.push_back(p);
      place.push_back(j);
    }
    const int64_t m = int64_t(shown.size());
    if (m == 0) return kOk;

    if (policy.kind == kGumbel || policy.kind == kSequential || policy.kind == kTable) {
      std::vector<float> scores;
      for (const int64_t p : shown) {
        interrupt.check(1);
        scores.push_back(score_of(kernels, source, p));
      }
      std::vector<double> conditionals(shown.size());
      const Mass rest = rest_mass(kernels, source, policy.temperature, shown, &interrupt);
      conditional(scores.data(), m, rest, policy.temperature, conditionals.data());
      for (size_t i = 0; i < shown.size(); ++i) out[place[i]] = conditionals[i];
    } else if (policy.kind == kUniform) {
      for (int64_t i = 0; i < m; ++i)
        out[place[size_t(i)]] = 0.0 - log(double(request.n_eligible - i));
    } else {
      const double epsilon = policy.kind == kEpsilonGreedy ? policy.epsilon : 0.0;
      std::optional<CodeQuery> query;
      if (catalog.quantised.codes && !request.function) {
        query.emplace(catalog, request, largest);
        if (query->usable) use_codes(catalog, *query, &source);
      }
      const Partial best = best_items(kernels, source, catalog.n_items, m, m, &interrupt);
      FlatMap<bool> gone{size_t(m)};
      size_t next_best = 0;
      for (int64_t i = 0; i < m; ++i) {
        while (gone.contains(best.items[next_best].position)) ++next_best;
        const bool greedy = shown[size_t(i)] == best.items[next_best].position;
        out[place[size_t(i)]] = epsilon_greedy(greedy, epsilon, request.n_eligible - i);
        gone[shown[size_t(i)]] = true;
      }
    }
    return code_of_fault(fault, where);
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  } catch (const Interrupted&) {
    return kInterrupted;
  }
}

Code score_all(const Catalog& catalog, const Request& request, const Poll& poll, float* out,
               int64_t* where) {
  Interrupt interrupt(poll);
  Largest largest = {};
  const Code code = check_request(catalog, request, where, &largest);
  if (code != kOk) return code;
  const Kernels& kernels = fastrank::kernels();
  int64_t fault = kNoFault;
  const Source source = make_source(catalog, request, &fault);
  alignas(64) float room[kTilePanels * kLanes], last[kLanes];
  for (int64_t first = 0; first < source.n_panels; first += kTilePanels) {
    const int64_t panels = std::min(kTilePanels, source.n_panels - first);
    if (interrupt.stop(panels)) return kInterrupted;
    const Source piece =
        wants_tile(source) ? filled(kernels, source, first, panels, room) : source;
    for (int64_t panel = first; panel < first + panels; ++panel) {
      float* const to = panel < source.n_panels - 1 ? out + panel * kLanes : last;
      kernels.score_panel(piece, panel, to);
    }
  }
  std::copy(last, last + (catalog.n_items - (source.n_panels - 1) * kLanes),
            out + (source.n_panels - 1) * kLanes);
  return code_of_fault(fault, where);
}

Code scores_at(const Catalog& catalog, const Request& request, const int64_t* positions,
               int64_t count, const Poll& poll, float* out, int64_t* where) {
  Interrupt interrupt(poll);
  Largest largest = {};
  const Code code = check_request(catalog, request, where, &largest);
  if (code != kOk) return code;
  try {
    const Kernels& kernels = fastrank::kernels();
    int64_t fault = kNoFault;
    Source source = make_source(catalog, request, &fault);
    score_each(kernels, source, positions, count, &interrupt, out);
    if (fault != kNoFault && !source.vectors) {
      // It may be of another item in one of their panels, which need not have a score.
      std::vector<uint16_t> asked(size_t(source.n_panels));
      make_filter(catalog.n_items, positions, count, nullptr, 0, asked.data());
      source.eligible = asked.data();
      fault = kNoFault;
      score_each(kernels, source, positions, count, &interrupt, out);
    }
    return code_of_fault(fault, where);
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  } catch (const Interrupted&) {
    return kInterrupted;
  }
}

Code label_masses(const Catalog& catalog, const Request& request, double temperature,
                  const int32_t* labels, int64_t n_labels, const Poll& poll, LabelMass* out,
                  int64_t* where) {
  Interrupt interrupt(poll);
  Largest largest = {};
  const Code code = check_request(catalog, request, where, &largest);
  if (code != kOk) return code;
  const Kernels& kernels = fastrank::kernels();
  int64_t fault = kNoFault;
  const Source source = make_source(catalog, request, &fault);
  std::fill_n(out, n_labels, LabelMass{0.0, 0.0, 0});
  alignas(64) float room[kTilePanels * kLanes], scores[kLanes];
  for (int64_t first = 0; first < source.n_panels; first += kTilePanels) {
    const int64_t panels = std::min(kTilePanels, source.n_panels - first);
    if (interrupt.stop(panels)) return kInterrupted;
    const Source piece =
        wants_tile(source) ? filled(kernels, source, first, panels, room) : source;
    for (int64_t panel = first; panel < first + panels; ++panel) {
      const uint32_t lanes = lanes_of(source, panel);
      if (!lanes) continue;
      kernels.score_panel(piece, panel, scores);
      add_to_labels(kernels, scores, lanes, labels + panel * kLanes, 1.0 / temperature, out);
    }
  }
  return code_of_fault(fault, where);
}

Code values_of(const Function& function, int64_t n_items, const Poll& poll, float* out,
               int64_t* where) {
  Interrupt interrupt(poll);
  int64_t fault = kNoFault;
  Source source = {};
  source.function = &function;
  source.fault = &fault;
  source.n_panels = panel_count(n_items);
  source.last_lanes = uint16_t((1u << (n_items - (source.n_panels - 1) * kLanes)) - 1);
  alignas(64) float room[kTilePanels * kLanes];
  for (int64_t first = 0; first < source.n_panels; first += kTilePanels) {
    const int64_t panels = std::min(kTilePanels, source.n_panels - first);
    if (interrupt.stop(panels)) return kInterrupted;
    std::fill_n(room, panels * kLanes, 0.0f);
    kernels().apply(source, first, panels, room);
    const int64_t items = std::min(panels * kLanes, n_items - first * kLanes);
    std::copy_n(room, items, out + first * kLanes);
  }
  return code_of_fault(fault, where);
}

}  // namespace fastrank
