// How far a normaliser can be off that is summed up from int8 codes. Included by estimated.h.
//
// Heavy items add their true weights w, the others, the light ones, estimates. An item is heavy if
// score + 2 * spread * scale reaches a cut: its true score decides, and no error of a code. A choice
// by estimates would take out those that erred upwards and leave a bias.
//
// An estimate is w exp(Z - d^2 / 2). Z, the error of its logarithm, is the sum of a_c e_c over the
// coordinates: a_c is the query's coordinate times scale / T, and e_c, the error of a code, has mean
// 0 and variance 1/4 (quantise.cpp), independent of all others. So d^2, the variance of Z, is the
// sum of a_c^2 / 4, and d is `deviation` times the scale. D is the largest d of all items; A, the
// largest |a_c|, is at most eta * d with eta = 2 max |q_c| / |q| <= 2.
//
// The dither has 16 bits, so the mean of e is 0 within 2^-17, and that of Z within 2 d sqrt(dim) 2^-17.
// That stands in the bound as a bias; all else is about a dither without steps.
//
// What is known of e, for any fraction of a code and any a (tests/test_error_law.py computes it):
//   (1)  |log E exp(a e) - a^2 / 8| <= 0.011 |a|^3
//   (2)  log E exp(a e) <= k a^2 / 8, with k = kSubGaussian
//   (3)  E e^4 <= 1/4
//   (4)  |log E exp(a e) - a^2 / 8 - m a^3 / 6| <= 0.0053 a^4, |a| <= 1; m = E e^3, |m| <= 0.0482
// Summed over the coordinates:
//   (1)  E exp(Z - d^2 / 2) = exp(delta), |delta| <= 0.044 A d^2
//   (2)  E exp(t Z) <= exp(k t^2 d^2 / 2): Z is sub-Gaussian, and P(Z > z d) <= exp(-z^2 / (2 k))
//   (3)  E Z^4 <= (3 + eta^2 / 4) d^4
//   (4)  log E exp(t Z) = t^2 d^2 / 2 + t^3 M / 6 + R, |M| <= 0.193 eta d^3, |R| <= 0.0212 t^4 eta^2
//        d^4, for |t| A <= 1
//
// `spread` is what no item's error passes but with a chance of 1e-9 / 3 for all together, by (2),
// or what none can pass, whichever is less (CodeQuery).
//
// The bound holds with a probability of 1 - 1e-9 over the dither of the codes, for any one query and
// cut that do not depend on it. That dither is no secret: a query along the mean error of the codes
// makes all estimates err one way, and passes the bound. A cut is chosen by sums over thousands of
// estimates, so it hardly depends on the error of any one; of the hundred or so that it could be,
// all hold with a probability of 1 - 1e-7.
//
// What it bounds is the error that codes bring. The float32 score of a row is rounded, too, from
// int8 storage as from float32 storage: that is kept apart, as it is there.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "elementary.h"
#include "quantise.h"

namespace fastrank {

// log(3 / 1e-9). Small errors: a sum too large or too small, or a variance that seems too small.
// Large ones: a sum too large or too small, or an item beyond `spread`.
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
    // What is not random, for a weight whose logarithm has a deviation of 1.
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
    // The query's own residue r moves log-weights by r . code * scale / T: by Cauchy and Schwarz on
    // the sum over items, or item by item.
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

  // ---- Small errors: D <= 1/8, and none that could pass 2 ------------------------------------
  //
  // Chernoff: P(S > t) <= exp(-l t + sum of psi_i), S the sum over light items of w X', X' =
  // exp(delta) X, X = exp(Z - d^2 / 2 - delta) - 1, of mean 0; psi the logarithm of E exp(theta X),
  // theta = l w exp(delta) for one tail and the negative for the other. With u = l times the largest
  // w d exp(delta) of a light item, and Y = kTail (less if no error can be that large):
  //
  //   psi <= theta^2 d^2 / 2 * I(u) + tau(u)
  //   I(u) = v + u s / 3 + u^2 f g(u z Y) / 12
  //     v d^2 = exp(d^2 (1 + 0.44 A)) - 1 >= E X^2, by (1)
  //     s d^3 = (0.26 eta + (3.3 + 3 eta^2) d) d^3 >= |E X^3|, by (4): with p the logarithm of
  //             E exp(3 log(1 + X)) and r that of E exp(2 log(1 + X)), E X^3 = exp(p) - 3 exp(r) + 2
  //     f d^4 = (z (3 + eta^2 / 4)^(1/4) + 0.55 d)^4 d^4 >= E X^4 where |Z| <= Y d, by (3), since
  //             |X| <= z |Z| + 0.55 d^2 there with z = (exp(Y D) - 1) / (Y D)
  //     g(y) = 24 (exp(y) - 1 - y - y^2 / 2 - y^3 / 6) / y^4: exp(x) <= 1 + x + x^2 / 2 + x^3 / 6 +
  //             g(y) x^4 / 24 for all x <= y
  //   tau(u) = 4 exp(1.1 u Y (exp(c) - 1) / c - Y^2 / (2 k)): what |Z| > Y d adds, c the largest
  //             that |Z| can be; exp is below its chord up to there, and (2) gives the rest
  //
  // All but tau shrinks with d, so D stands for each d. The variance V, the sum of (w d)^2, is known
  // by estimates: exp(2 Z - d^2) >= 1 + 2 Z - d^2, so by (2) V is at most their sum, D^2 V, and the
  // root of 2 odds * 4 k D^2 (largest w d)^2 V, which is below 0.02 V + 2335 (D * largest w d)^2.
  //
  // A heavy item is missed if its error is below -kWindow * d or, if it is heavier by x d, below
  // -(kWindow + x) d; then it is estimated with the light ones. Sums become too small by that, and
  // psi of such an item is at most exp(5.1 u - kWindow^2 / (2 k)), x = 0 being the worst.
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
    const double variance =
        (sum.variance + 2335.0 * d * d * largest * largest) / (0.98 - d * d);
    if (variance == 0.0) return 0.0;
    const double most = 0.5 / largest;
    double rate = std::min(std::sqrt(2.0 * kLogOdds / variance), most);
    rate = std::min(std::sqrt(2.0 * kLogOdds / (variance * inflation(rate * largest))), most);
    const double u = rate * largest;
    const double beyond =
        tail_ < kTail
            ? 0.0
            : 4.0 * n_items_ * exp(1.1 * u * chord_ * kTail - kTail * kTail / (2.0 * kSubGaussian));
    const double missed = (1.01 * n_heavy + 10.0) *
                          exp(5.1 * u - kWindow * kWindow / (2.0 * kSubGaussian));
    return (kLogOdds + beyond + missed) / rate + 0.5 * rate * variance * inflation(u);
  }

  double inflation(double u) const {
    const double y = u * cut_off_ * tail_;
    const double g = y < 0.3 ? 1.0 + y / 5.0 + y * y / 25.0
                             : 24.0 * (exp(y) - 1.0 - y - y * y / 2.0 - y * y * y / 6.0) /
                                   (y * y * y * y);
    return 1.001 * (variance_ + u * third_ / 3.0 + u * u * fourth_ * g / 12.0);
  }

  // ---- Large errors: Bernstein's inequality for what is random -------------------------------
  //
  // Where d <= 1, |delta| is below 0.09, for A <= 2 d, and the mean of an estimate is off by at most
  // 0.046 A d^2 of the weight. No error passes `spread`, and no heavy item is missed.
  //
  // Items that deviate by d > 1. A light item's weight is below cut * exp(-2 spread * scale / T) =
  // cut * exp(-4 c d), c = spread / norm of the query. Its bias and its standard deviation,
  // exp(d^2 / 2) of the weight, fall beside the cut from d = 1 on where c > 3/4, for they cannot
  // pass exp(2 c d) of the weight either. So n such items have at most n times the bias and the
  // variance of d = 1.
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

}  // namespace fastrank
