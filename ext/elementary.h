// exp, log and log1p in float64, from nothing but IEEE addition, multiplication and
// division: a ranking's bits must not depend on the C library it meets. Truncated series on the
// reduced argument, within 2 ulp of the truth (tests/test_elementary.py). Only entries and
// normalisers come through here, never the n items of a scan. Each file keeps its own copies: those
// made for a newer CPU must not be picked by the linker for the rest of the program.
#pragma once

#include <cstdint>

namespace fastrank {

constexpr double kLog2High = 0x1.62e42fefp-1;  // 33 bits: k * kLog2High is exact for |k| < 2^20
constexpr double kLog2Low = 0x1.473de6af278edp-34;
constexpr double kInfinity = __builtin_inf();

static inline uint64_t bits_of(double x) {
  uint64_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

static inline double double_of(uint64_t bits) {
  double x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

// 2^k for -1022 <= k <= 1023.
static inline double power_of_two(int64_t k) { return double_of(uint64_t(k + 1023) << 52); }

// An integer of [0, 2^52) as a double: vectors of 64-bit integers have no conversion of their own.
static inline double whole(uint64_t k) { return double_of(k | 0x4330000000000000u) - 0x1p52; }

// Strictly inside (0, 1), from 64 random bits.
static inline double uniform_of(uint64_t bits) { return (whole(bits >> 12) + 0.5) * 0x1p-52; }

// x = k log 2 + r with |r| <= log(2) / 2; needs |x| < 1000.
struct Reduced {
  int32_t k;
  double r;
};

static inline Reduced reduce(double x) {
  // The half takes the sign of x without a branch, which noise of either sign would mispredict.
  const double half = double_of(bits_of(0.5) | (bits_of(x) & 0x8000000000000000u));
  const int32_t k = int32_t(x * 0x1.71547652b82fep+0 + half);
  return {k, (x - double(k) * kLog2High) - double(k) * kLog2Low};
}

// exp(r) - 1 for |r| <= 0.35: the Taylor series to r^13 / 13!, odd and even terms side by side.
static inline double exp_minus_1_series(double r) {
  const double r2 = r * r;
  const double even =
      1.0 / 2 + r2 * (1.0 / 24 + r2 * (1.0 / 720 + r2 * (1.0 / 40320 + r2 * (1.0 / 3628800 +
      r2 * (1.0 / 479001600)))));
  const double odd =
      1.0 / 6 + r2 * (1.0 / 120 + r2 * (1.0 / 5040 + r2 * (1.0 / 362880 + r2 * (1.0 / 39916800 +
      r2 * (1.0 / 6227020800)))));
  return r + r2 * (even + r * odd);
}

// exp(x) for |x| <= kExpInRange, without a branch.
constexpr double kExpInRange = 700.0;

static inline double exp_in_range(double x) {
  const Reduced reduced = reduce(x);
  // In two steps, so that neither factor leaves the range of normal numbers.
  const int32_t half = reduced.k / 2;
  const double value = 1.0 + exp_minus_1_series(reduced.r);
  return value * power_of_two(half) * power_of_two(reduced.k - half);
}

static inline double exp(double x) {
  if (!(x <= 709.79 && x >= -745.14)) return x != x ? x : x > 0.0 ? kInfinity : 0.0;
  return exp_in_range(x);
}

// x = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)); log(1 + f) from s = f / (2 + f) as
// 2 artanh(s) = 2 s + 2 s^3 / 3 + ..., arranged so that f, exact, is the leading term. For normal
// x > 0 and finite, without a branch; the result is log(x 2^scale).
static inline double log_of_normal(double x, double scale = 0.0) {
  // Adding the distance from sqrt(1/2) to 1 makes the exponent field step at sqrt(2).
  const uint64_t bits = bits_of(x) + (0x3ff0000000000000u - 0x3fe6a09e667f3bcdu);
  const double k = whole(bits >> 52) - 1023.0 + scale;
  const double f = double_of((bits & 0x000fffffffffffffu) + 0x3fe6a09e667f3bcdu) - 1.0;
  const double s = f / (2.0 + f);
  const double s2 = s * s, s4 = s2 * s2;
  const double odd = s2 * (2.0 / 3 + s4 * (2.0 / 7 + s4 * (2.0 / 11 + s4 * (2.0 / 15 +
                     s4 * (2.0 / 19)))));
  const double even = s4 * (2.0 / 5 + s4 * (2.0 / 9 + s4 * (2.0 / 13 + s4 * (2.0 / 17 +
                      s4 * (2.0 / 21)))));
  const double half_square = 0.5 * f * f;
  const double tail = s * (half_square + (odd + even)) + k * kLog2Low;
  return k * kLog2High - ((half_square - tail) - f);
}

static inline double log(double x) {
  if (x >= 0x1p-1022 && x < kInfinity) return log_of_normal(x);
  if (x == 0.0) return -kInfinity;
  if (!(x > 0.0)) return __builtin_nan("");
  if (x == kInfinity) return x;
  return log_of_normal(x * 0x1p54, -54.0);
}

static inline double log1p(double x) {
  if (x == kInfinity) return x;
  const double u = 1.0 + x;
  if (u == 1.0) return x;
  if (u == 0.0) return -kInfinity;
  return log(u) + (x - (u - 1.0)) / u;
}

// log(1 + e^x).
static inline double softplus(double x) {
  const double tail = log1p(exp(x > 0.0 ? -x : x));
  return x > 0.0 ? x + tail : tail;
}

}  // namespace fastrank
