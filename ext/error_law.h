// What the errors of int8 codes can do: to a normaliser (ErrorLaw), to a weight (WeightBound).
// docs/explanation/int8-bounds.md proves it; comments name its sections and use its letters.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "elementary.h"
#include "quantise.h"

namespace fastrank {

// log(3 / 1e-9): "With what probability".
constexpr double kLogOdds = 21.9;

// Sums over items whose weight w is estimated, as Estimates, and at what weight the cut is.
struct Unscored {
  double mass, scaled, variance, cut;
};

class ErrorLaw {
 public:
  ErrorLaw(const CodeQuery& query, double temperature)
      : deviation(std::min(0.5 * query.norm / temperature, 1e38)),
        largest_deviation_(deviation * query.max_scale),
        n_items_(double(query.n_items)) {
    // "What is not random", for a weight whose logarithm has a deviation of 1.
    const double unit = query.norm > 0.0 ? 2.0 / query.norm : 0.0;
    residue_ = unit * query.residue * std::sqrt(query.code_moment);
    per_deviation_ = unit * (query.code_norm * query.residue + query.own_rounding);
    rounding_ = unit * query.own_rounding;
    // And rough_exp's error. In range, so that it is nothing of nothing.
    constant_ = expm1_in_range((query.own_constant + query.bias_rounding) / temperature + 4e-6);
    const double eta = unit * query.largest_value;
    const double most = std::min(1.0, largest_deviation_);
    skew_ = 0.046 * eta * most * most + 0x1p-16 * std::sqrt(double(query.dim));
    // A light item is light by its float32 score, which may be rounded downwards.
    float32_ = 1.0 + expm1_in_range((query.constant + query.bias_rounding) / temperature + 4e-6);

    certain_ = query.certain * query.max_scale / temperature;
    small_ = largest_deviation_ <= kSmall && certain_ <= 2.0;
    const double per_deviation = 1.001 * (kWindow * 0.5 * query.norm + query.per_scale);
    window = small_ ? std::min(query.spread, per_deviation) : query.spread;
    noting = 2.0 * query.spread + window;
    if (small_) {
      prepare_small(query, eta);
    } else {
      prepare_large(query, temperature, eta);
    }
  }

  // How far the sum of the estimates can be from that of the weights. `n_heavy`: of how many heavy
  // items the weights were taken.
  double bound(const Unscored& sum, int64_t n_heavy) const {
    const double random = small_ ? small_errors(sum, double(n_heavy)) : large_errors(sum);
    // Over all items, or item by item.
    const double residue = residue_ * std::sqrt(sum.variance) + rounding_ * sum.scaled;
    const double fixed = std::min(residue, per_deviation_ * sum.scaled) + sum.scaled * skew_ +
                         sum.mass * constant_;
    return random + fixed;
  }

  const double deviation;  // standard deviation of an estimated log-weight, per unit of scale
  // An item is noted if estimate + noting * scale + margin reaches the cut: if it would be heavy with
  // an error of -window * scale.
  double noting, window;

 private:
  static constexpr double kSmall = 0.125;
  static constexpr double kWindow = 5.0;  // deviations
  static constexpr double kTail = 7.0;    // deviations

  static double expm1_in_range(double x) { return exp(std::min(x, kExpInRange)) - 1.0; }

  // ---- "Small errors": D <= 1/8, and none that could pass 2 ----------------------------------

  void prepare_small(const CodeQuery& query, double eta) {
    const double d = largest_deviation_;
    tail_ = std::min(kTail, d > 0.0 ? certain_ / d : kTail);
    cut_off_ = d > 0.0 ? (exp(tail_ * d) - 1.0) / (tail_ * d) : 1.0;
    variance_ = d > 1e-4 ? (exp(d * d * (1.0 + 0.44 * eta * d)) - 1.0) / (d * d) : 1.001;
    third_ = 0.26 * eta + (3.3 + 3.0 * eta * eta) * d;
    const double root = cut_off_ * std::sqrt(std::sqrt(3.0 + 0.25 * eta * eta)) + 0.55 * d;
    fourth_ = root * root * root * root;
    chord_ = certain_ > 1e-4 ? (exp(certain_) - 1.0) / certain_ : 1.001;
    // The largest d exp(-b d) of a light item, whose weight is below cut * exp(-b d).
    const double b = query.norm > 0.0 ? 4.0 * query.spread / query.norm : 0.0;
    reach_ = float32_ * (b * d <= 1.0 ? d * exp(-b * d) : 1.0 / (2.718281828459045 * b));
  }

  double small_errors(const Unscored& sum, double n_heavy) const {
    const double largest = sum.cut * reach_;
    const double d = largest_deviation_;
    const double variance =  // V
        (sum.variance + 2335.0 * d * d * largest * largest) / (0.98 - d * d);
    if (variance == 0.0) return 0.0;
    const double most = 0.5 / largest;
    // Chernoff's l, about the best one.
    double rate = std::min(std::sqrt(2.0 * kLogOdds / variance), most);
    rate = std::min(std::sqrt(2.0 * kLogOdds / (variance * inflation(rate * largest))), most);
    const double u = rate * largest;
    const double beyond =  // n tau(u)
        tail_ < kTail
            ? 0.0
            : 4.0 * n_items_ * exp(1.1 * u * chord_ * kTail - kTail * kTail / (2.0 * kSubGaussian));
    // "Missed items".
    const double missed = (1.01 * n_heavy + 10.0) *
                          exp(5.1 * u - kWindow * kWindow / (2.0 * kSubGaussian));
    return (kLogOdds + beyond + missed) / rate + 0.5 * rate * variance * inflation(u);
  }

  // I(u).
  double inflation(double u) const {
    const double y = u * cut_off_ * tail_;
    const double g = y < 0.3 ? 1.0 + y / 5.0 + y * y / 25.0
                             : 24.0 * (exp(y) - 1.0 - y - y * y / 2.0 - y * y * y / 6.0) /
                                   (y * y * y * y);
    return 1.001 * (variance_ + u * third_ / 3.0 + u * u * fourth_ * g / 12.0);
  }

  // ---- "Large errors": Bernstein's inequality -------------------------------------------------

  void prepare_large(const CodeQuery& query, double temperature, double eta) {
    // An estimate is within e^(+-x) of its weight, and that is below cut * e^(-2 x).
    const double x = std::min(0.6931471805599453, query.spread * query.max_scale / temperature);
    largest_ = float32_ * exp(-x) - exp(-2.0 * x);
    const double most = std::min(1.0, largest_deviation_);
    // Var exp(e) / Var e, with room for estimating it.
    variance_ = 1.05 * std::min(2.0, exp(most * most));
    if (largest_deviation_ > 1.0) {
      const double c = query.spread / query.norm;
      beyond_ = (c > 0.75 ? exp(-4.0 * c) : 1.0) *
                (0.046 * eta * n_items_ +
                 std::sqrt(2.0 * kLogOdds * 2.7182818284590452 * n_items_));
    }
  }

  double large_errors(const Unscored& sum) const {
    return std::sqrt(2.0 * kLogOdds * variance_ * sum.variance) +
           sum.cut * (kLogOdds / 3.0 * largest_ + beyond_);
  }

  const double largest_deviation_, n_items_;  // D
  bool small_;
  double residue_, per_deviation_, rounding_, constant_, skew_, float32_;
  double certain_;          // no |Z| is larger
  double variance_ = 0.0;   // of exp(Z), over d^2
  double tail_ = 0.0, cut_off_ = 0.0, third_ = 0.0, fourth_ = 0.0, chord_ = 0.0;  // Y, z, s, f
  double reach_ = 0.0;
  double largest_ = 0.0;    // error of a light item's weight, as a share of the cut's
  double beyond_ = 0.0;     // what deviates by more than 1, beside the cut
};

// How a pass bounds weights by codes (kernels.h, CodeScan): "Weights".
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

}  // namespace fastrank
