// Cached Plackett-Luce: draws walk down a tree of masses. The leaves are the panels (16 items
// each); node i has children 2 i and 2 i + 1, node 1 is the root, leaf p is node leaves + p.
// Running sums of weights over the whole catalog would not do: a head 40 above the rest rounds
// everyone else to nothing. Here every choice is between two masses with a common reference.

#include <limits>
#include <new>

#include "sampling.h"

namespace fastrank {
namespace {

int64_t leaf_count(int64_t n_items) {
  int64_t leaves = 1;
  while (leaves < panel_count(n_items)) leaves *= 2;
  return leaves;
}

Mass sum_of(Mass a, const Mass& b, double inv_temperature) {
  add(&a, b, inv_temperature);
  return a;
}

uint32_t all_lanes(int64_t n_items, int64_t panel) {
  return (1u << std::min<int64_t>(kLanes, n_items - panel * kLanes)) - 1;
}

// Mass of some lanes of a panel, relative to the highest score among them.
Mass leaf_mass(const float* scores, uint32_t lanes, double inv_temperature) {
  if (!lanes) return {0.0, 0.0};
  float highest = -std::numeric_limits<float>::infinity();
  for (uint32_t rest = lanes; rest; rest &= rest - 1)
    highest = std::max(highest, scores[__builtin_ctz(rest)]);
  double sum = 0.0;
  for (uint32_t rest = lanes; rest; rest &= rest - 1)
    sum += exp((double(scores[__builtin_ctz(rest)]) - double(highest)) * inv_temperature);
  return {sum, double(highest)};
}

// The shared tree under the changes of one call.
class Overlay {
 public:
  Overlay(const float* scores, const Mass* nodes, int64_t n_items, double temperature,
          bool start_empty, size_t expected, Interrupt* interrupt)
      : scores_(scores),
        nodes_(nodes),
        n_items_(n_items),
        leaves_(leaf_count(n_items)),
        inv_temperature_(1.0 / temperature),
        start_empty_(start_empty),
        interrupt_(interrupt),
        changed_(std::min(expected, size_t(2 * leaves_))),
        lanes_(std::min(expected, size_t(leaves_))) {}

  // Changes many items at once: marks their panels, then their ancestors level by level.
  void set(const int64_t* positions, int64_t count, bool present) {
    std::vector<int64_t> touched;
    for (int64_t j = 0; j < count; ++j) {
      const int64_t panel = positions[j] / kLanes;
      const uint32_t bit = 1u << (positions[j] % kLanes);
      const uint32_t lanes = lanes_of(panel);
      lanes_[panel] = present ? lanes | bit : lanes & ~bit;
      if (touched.empty() || touched.back() != leaves_ + panel) touched.push_back(leaves_ + panel);
    }
    for (const int64_t node : touched) {
      interrupt_->check(1);
      changed_[node] = leaf_mass(panel_scores(node), lanes_of(node - leaves_), inv_temperature_);
    }
    while (!touched.empty() && touched.front() > 1) {
      size_t kept = 0;
      for (const int64_t node : touched) {
        const int64_t parent = node / 2;
        if (kept && touched[kept - 1] == parent) continue;
        touched[kept++] = parent;
      }
      touched.resize(kept);
      for (const int64_t node : touched) {
        interrupt_->check(1);
        changed_[node] = sum_of(mass(2 * node), mass(2 * node + 1), inv_temperature_);
      }
    }
  }

  // -1 where scores that are not finite leave nothing to choose by.
  int64_t draw(Stream* stream) const {
    int64_t node = 1;
    while (node < leaves_) {
      const Mass left = mass(2 * node), right = mass(2 * node + 1);
      node *= 2;
      if (left.value == 0.0) {
        ++node;
      } else if (right.value != 0.0) {
        const double highest = std::max(left.reference, right.reference);
        const double a = left.value * exp((left.reference - highest) * inv_temperature_);
        const double b = right.value * exp((right.reference - highest) * inv_temperature_);
        if (stream->uniform() * (a + b) >= a) ++node;
      }
    }
    const Mass leaf = mass(node);
    const float* scores = panel_scores(node);
    double budget = stream->uniform() * leaf.value;
    int chosen = -1;
    for (uint32_t rest = lanes_of(node - leaves_); rest && budget >= 0.0; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      const double weight =
          exp((double(scores[lane]) - leaf.reference) * inv_temperature_);
      if (weight == 0.0) continue;
      chosen = lane;  // the last lane with weight, should rounding leave a remainder
      budget -= weight;
    }
    return chosen < 0 ? -1 : (node - leaves_) * kLanes + chosen;
  }

  Mass root() const { return mass(1); }

 private:
  Mass mass(int64_t node) const {
    if (const Mass* found = changed_.find(node)) return *found;
    return start_empty_ ? Mass{0.0, 0.0} : nodes_[node];
  }

  uint32_t lanes_of(int64_t panel) const {
    if (const uint32_t* found = lanes_.find(panel)) return *found;
    return start_empty_ ? 0u : all_lanes(n_items_, panel);
  }

  const float* panel_scores(int64_t node) const { return scores_ + (node - leaves_) * kLanes; }

  const float* scores_;
  const Mass* nodes_;
  const int64_t n_items_, leaves_;
  const double inv_temperature_;
  const bool start_empty_;
  Interrupt* const interrupt_;
  FlatMap<Mass> changed_;     // by node
  FlatMap<uint32_t> lanes_;   // by panel: the items that are there
};

}  // namespace

int64_t tree_size(int64_t n_items) { return 2 * leaf_count(n_items); }

Code tree_build(const float* scores, int64_t n_items, double temperature, const Poll& poll,
                Mass* nodes) {
  Interrupt interrupt(poll);
  const double inv_t = 1.0 / temperature;
  const int64_t leaves = leaf_count(n_items), n_panels = panel_count(n_items);
  nodes[0] = {0.0, 0.0};
  for (int64_t panel = 0; panel < leaves; ++panel) {
    if (interrupt.stop(1)) return kInterrupted;
    nodes[leaves + panel] =
        panel < n_panels ? leaf_mass(scores + panel * kLanes, all_lanes(n_items, panel), inv_t)
                         : Mass{0.0, 0.0};
  }
  for (int64_t node = leaves - 1; node > 0; --node) {
    if (interrupt.stop(1)) return kInterrupted;
    nodes[node] = sum_of(nodes[2 * node], nodes[2 * node + 1], inv_t);
  }
  return kOk;
}

Code tree_rank(const float* scores, const Mass* nodes, int64_t n_items, const Policy& policy,
               const int64_t* allowed, int64_t n_allowed, const int64_t* excluded,
               int64_t n_excluded, int64_t k, const Poll& poll, Ranking* out) {
  Interrupt interrupt(poll);
  try {
    const int64_t drawn = std::min(k, allowed ? n_allowed : n_items);
    Overlay overlay(scores, nodes, n_items, policy.temperature, allowed != nullptr,
                    size_t(8 * drawn + n_allowed + n_excluded), &interrupt);
    if (allowed) overlay.set(allowed, n_allowed, true);
    if (n_excluded) overlay.set(excluded, n_excluded, false);
    Stream stream(policy.seed, 0, kTreeDraws);
    out->count = 0;
    while (out->count < drawn && overlay.root().value > 0.0) {
      const int64_t position = overlay.draw(&stream);
      if (position < 0) break;
      out->positions[out->count] = position;
      out->scores[out->count] = scores[position];
      ++out->count;
      overlay.set(&position, 1, false);
    }
    out->log_norm = conditional(out->scores, out->count, overlay.root(), policy.temperature,
                                out->log_propensities);
    return kOk;
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  } catch (const Interrupted&) {
    return kInterrupted;
  }
}

}  // namespace fastrank
