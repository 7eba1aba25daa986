// exp, log and log1p in float64, from nothing but IEEE addition, multiplication and
// division: a ranking's bits must not hang on the C library it meets. Truncated series on the
// reduced argument, within 2 ulp of the truth (tests/test_elementary.py). Only entries and
// normalisers come through here, never the n items of a scan.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

namespace fastrank {

constexpr double kLog2High = 0x1.62e42fefp-1;  // 33 bits: k * kLog2High is exact for |k| < 2^20
constexpr double kLog2Low = 0x1.473de6af278edp-34;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

inline uint64_t bits_of(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline double double_of(uint64_t bits) {
  double x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// 2^k for -1022 <= k <= 1023.
inline double power_of_two(int64_t k) { return double_of(uint64_t(k + 1023) << 52); }

// x = k log 2 + r with |r| <= log(2) / 2; needs |x| < 1000.
struct Reduced {
  int64_t k;
  double r;
};

inline Reduced reduce(double x) {
  const double shifted = x * 0x1.71547652b82fep+0 + (x < 0 ? -0.5 : 0.5);
  const int64_t k = int64_t(shifted);
  return {k, (x - double(k) * kLog2High) - double(k) * kLog2Low};
}

// exp(r) - 1 for |r| <= 0.35: the Taylor series to r^13 / 13!, odd and even terms side by side.
inline double exp_minus_1_series(double r) {
  const double r2 = r * r;
  const double even =
      1.0 / 2 + r2 * (1.0 / 24 + r2 * (1.0 / 720 + r2 * (1.0 / 40320 + r2 * (1.0 / 3628800 +
      r2 * (1.0 / 479001600)))));
  const double odd =
      1.0 / 6 + r2 * (1.0 / 120 + r2 * (1.0 / 5040 + r2 * (1.0 / 362880 + r2 * (1.0 / 39916800 +
      r2 * (1.0 / 6227020800)))));
  return r + r2 * (even + r * odd);
}

inline double exp(double x) {
  if (x > 709.79) return kInfinity;
  if (x < -745.14) return 0.0;
  if (x != x) return x;
  const Reduced reduced = reduce(x);
  // In two steps, so that neither factor leaves the range of normal numbers.
  const int64_t half = reduced.k / 2;
  const double value = 1.0 + exp_minus_1_series(reduced.r);
  return value * power_of_two(half) * power_of_two(reduced.k - half);
}

// x = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)); log(1 + f) from s = f / (2 + f) as
// 2 artanh(s) = 2 s + 2 s^3 / 3 + ..., arranged so that f, exact, is the leading term.
inline double log(double x) {
  if (x == 0.0) return -kInfinity;
  if (!(x > 0.0)) return std::numeric_limits<double>::quiet_NaN();
  if (x == kInfinity) return x;
  int64_t k = 0;
  if (x < 0x1p-1022) {
    x *= 0x1p54;
    k = -54;
  }
  // Adding the distance from sqrt(1/2) to 1 makes the exponent field step at sqrt(2).
  const uint64_t bits = bits_of(x) + (0x3ff0000000000000u - 0x3fe6a09e667f3bcdu);
  k += int64_t(bits >> 52) - 1023;
  const double f = double_of((bits & 0x000fffffffffffffu) + 0x3fe6a09e667f3bcdu) - 1.0;
  const double s = f / (2.0 + f);
  const double s2 = s * s, s4 = s2 * s2;
  const double odd = s2 * (2.0 / 3 + s4 * (2.0 / 7 + s4 * (2.0 / 11 + s4 * (2.0 / 15 +
                     s4 * (2.0 / 19)))));
  const double even = s4 * (2.0 / 5 + s4 * (2.0 / 9 + s4 * (2.0 / 13 + s4 * (2.0 / 17 +
                      s4 * (2.0 / 21)))));
  const double half_square = 0.5 * f * f;
  const double tail = s * (half_square + (odd + even)) + double(k) * kLog2Low;
  return double(k) * kLog2High - ((half_square - tail) - f);
}

inline double log1p(double x) {
  if (x == kInfinity) return x;
  const double u = 1.0 + x;
  if (u == 1.0) return x;
  if (u == 0.0) return -kInfinity;
  return log(u) + (x - (u - 1.0)) / u;
}

// log(1 + e^x).
inline double softplus(double x) { return x > 0.0 ? x + log1p(exp(-x)) : log1p(exp(x)); }

}  // namespace fastrank
