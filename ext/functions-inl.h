// Functions of scores (kernels.h, "Function"): steps over the panels of a tile, and what is looked at
// of what they made. Part of scan-inl.h.
//
// Every step goes over sixteen panels at a time, whose registers stay in a core's first cache. All
// lanes go the same way, so an item's number does not depend on where a tile begins.
#pragma once

namespace fastrank {
namespace {

// ---- What steps need of registers, besides ---------------------------------------------------

#if defined(__AVX512F__)

inline Reg divide(Reg a, Reg b) { return _mm512_div_ps(a, b); }
inline Reg square_root(Reg a) { return _mm512_sqrt_ps(a); }
inline Reg select_equal(Reg a, Reg b, Reg yes, Reg no) {
  return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), yes);
}
inline Reg magnitude(Reg a) {
  return _mm512_castsi512_ps(
      _mm512_and_epi32(_mm512_castps_si512(a), _mm512_set1_epi32(0x7FFFFFFF)));
}
inline Reg mantissa(Reg a) {  // in [1, 2)
  return _mm512_castsi512_ps(_mm512_or_epi32(
      _mm512_and_epi32(_mm512_castps_si512(a), _mm512_set1_epi32(0x7FFFFF)),
      _mm512_set1_epi32(0x3F800000)));
}
inline Reg biased_exponent(Reg a) {  // of a positive number
  return _mm512_cvtepi32_ps(_mm512_srli_epi32(_mm512_castps_si512(a), 23));
}

#elif defined(__AVX2__)

inline Reg divide(Reg a, Reg b) { return _mm256_div_ps(a, b); }
inline Reg square_root(Reg a) { return _mm256_sqrt_ps(a); }
inline Reg select_equal(Reg a, Reg b, Reg yes, Reg no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_EQ_OQ));
}
inline Reg magnitude(Reg a) {
  return _mm256_castsi256_ps(
      _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(0x7FFFFFFF)));
}
inline Reg mantissa(Reg a) {
  return _mm256_castsi256_ps(_mm256_or_si256(
      _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(0x7FFFFF)),
      _mm256_set1_epi32(0x3F800000)));
}
inline Reg biased_exponent(Reg a) {
  return _mm256_cvtepi32_ps(_mm256_srli_epi32(_mm256_castps_si256(a), 23));
}

#else

inline Reg divide(Reg a, Reg b) { return a / b; }
inline Reg square_root(Reg a) {
  return Reg{__builtin_sqrtf(a[0]), __builtin_sqrtf(a[1]), __builtin_sqrtf(a[2]),
             __builtin_sqrtf(a[3])};
}
inline Reg select_equal(Reg a, Reg b, Reg yes, Reg no) {
  const Bits mask = a == b;
  return Reg((mask & Bits(yes)) | (~mask & Bits(no)));
}
inline Reg magnitude(Reg a) { return Reg(Bits(a) & 0x7FFFFFFF); }
inline Reg mantissa(Reg a) { return Reg((Bits(a) & 0x7FFFFF) | 0x3F800000); }
inline Reg biased_exponent(Reg a) { return __builtin_convertvector(Bits(a) >> 23, Reg); }

#endif

// ---- Logarithms -----------------------------------------------------------------------------

// To 2 ulp (the polynomial of Cephes' logf). -inf of 0, NaN below.
inline Reg log_of(Reg x) {
  const Reg least = set1(0x1p-126f);  // below it numbers are denormal
  const Reg scaled = select_above(least, x, mul(x, set1(0x1p23f)), x);
  Reg k = sub(biased_exponent(scaled), select_above(least, x, set1(150.0f), set1(127.0f)));
  Reg m = mantissa(scaled);
  const Reg root = set1(0x1.6a09e6p+0f);
  k = select_above(m, root, add(k, set1(1.0f)), k);
  m = select_above(m, root, mul(m, set1(0.5f)), m);
  const Reg r = sub(m, set1(1.0f)), r2 = mul(r, r);
  Reg p = set1(7.0376836292e-2f);
  p = fma(p, r, set1(-1.1514610310e-1f));
  p = fma(p, r, set1(1.1676998740e-1f));
  p = fma(p, r, set1(-1.2420140846e-1f));
  p = fma(p, r, set1(1.4249322787e-1f));
  p = fma(p, r, set1(-1.6668057665e-1f));
  p = fma(p, r, set1(2.0000714765e-1f));
  p = fma(p, r, set1(-2.4999993993e-1f));
  p = fma(p, r, set1(3.3333331174e-1f));
  Reg y = mul(mul(p, r), r2);
  y = fma(k, set1(-2.12194440e-4f), y);
  y = fma(r2, set1(-0.5f), y);
  y = fma(k, set1(0.693359375f), add(r, y));
  y = select_above(x, set1(__FLT_MAX__), x, y);
  const Reg other = select_equal(x, set1(0.0f), set1(-__builtin_inff()), set1(__builtin_nanf("")));
  return select_above(x, set1(0.0f), y, other);
}

// What 1 + x lost of x is added again (Kahan).
inline Reg log1p_of(Reg x) {
  const Reg u = add(set1(1.0f), x);
  const Reg lost = divide(sub(sub(u, set1(1.0f)), x), u);
  const Reg y = sub(log_of(u), lost);
  return select_above(magnitude(u), set1(__FLT_MAX__), log_of(u),
                      select_equal(u, set1(0.0f), set1(-__builtin_inff()), y));
}

// ---- Steps ----------------------------------------------------------------------------------

constexpr int64_t kBlockPanels = 16;

struct Operand {
  const float* at;
  bool is_one;  // number for all items
};

inline Reg load(const Operand& x, int64_t i) { return load(x.is_one ? x.at : x.at + i * kWidth); }

// NaN where either is: a comparison alone would drop that of the second.
inline Reg or_nan(Reg x, Reg b) { return select_equal(b, b, x, b); }

template <class Make>
inline void each(int64_t count, float* to, const Make& make) {
  for (int64_t i = 0; i < count; ++i) store(to + i * kWidth, make(i));
}

// exp of what `make` gives, and then what `finish` makes of it.
template <class Make, class Finish>
inline void each_exp(int64_t count, float* to, const Make& make, const Finish& finish) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    Reg x[4] = {make(i), make(i + 1), make(i + 2), make(i + 3)};
    exp_all<4>(x);
    for (int j = 0; j < 4; ++j) store(to + (i + j) * kWidth, finish(i + j, x[j]));
  }
  for (; i < count; ++i) {
    Reg x[1] = {make(i)};
    exp_all<1>(x);
    store(to + i * kWidth, finish(i, x[0]));
  }
}

inline void take_step(int32_t op, const Operand& a, const Operand& b, const Operand& c,
                      int64_t count, float* to) {
  const Reg zero = set1(0.0f), one = set1(1.0f);
  switch (op) {
    case kCopy: return each(count, to, [&](int64_t i) { return load(a, i); });
    case kNegate: return each(count, to, [&](int64_t i) { return mul(load(a, i), set1(-1.0f)); });
    case kAbs: return each(count, to, [&](int64_t i) { return magnitude(load(a, i)); });
    case kSqrt: return each(count, to, [&](int64_t i) { return square_root(load(a, i)); });
    case kExp:
      return each_exp(
          count, to, [&](int64_t i) { return load(a, i); }, [](int64_t, Reg x) { return x; });
    case kLog: return each(count, to, [&](int64_t i) { return log_of(load(a, i)); });
    case kLog1p: return each(count, to, [&](int64_t i) { return log1p_of(load(a, i)); });
    case kSigmoid:
      return each_exp(
          count, to, [&](int64_t i) { return mul(load(a, i), set1(-1.0f)); },
          [&](int64_t, Reg x) { return divide(one, add(one, x)); });
    case kNot: return each(count, to, [&](int64_t i) { return sub(one, load(a, i)); });
    case kAdd: return each(count, to, [&](int64_t i) { return add(load(a, i), load(b, i)); });
    case kSubtract: return each(count, to, [&](int64_t i) { return sub(load(a, i), load(b, i)); });
    case kMultiply: return each(count, to, [&](int64_t i) { return mul(load(a, i), load(b, i)); });
    case kDivide:
      return each(count, to, [&](int64_t i) { return divide(load(a, i), load(b, i)); });
    case kPower:
      return each_exp(
          count, to, [&](int64_t i) { return mul(load(b, i), log_of(load(a, i))); },
          [&](int64_t i, Reg x) { return select_equal(load(b, i), zero, one, x); });
    case kMin:
      return each(count, to, [&](int64_t i) {
        const Reg x = load(a, i), y = load(b, i);
        return or_nan(select_above(x, y, y, x), y);
      });
    case kMax:
      return each(count, to, [&](int64_t i) {
        const Reg x = load(a, i), y = load(b, i);
        return or_nan(select_above(y, x, y, x), y);
      });
    case kLess:
      return each(count, to,
                  [&](int64_t i) { return select_above(load(b, i), load(a, i), one, zero); });
    case kLessEqual:
      return each(count, to, [&](int64_t i) {
        const Reg x = load(a, i), y = load(b, i);
        return select_equal(x, y, one, select_above(y, x, one, zero));
      });
    case kEqual:
      return each(count, to,
                  [&](int64_t i) { return select_equal(load(a, i), load(b, i), one, zero); });
    case kNotEqual:
      return each(count, to,
                  [&](int64_t i) { return select_equal(load(a, i), load(b, i), zero, one); });
    case kAnd:
      return each(count, to, [&](int64_t i) { return mul(load(a, i), load(b, i)); });
    case kOr:
      return each(count, to,
                  [&](int64_t i) { return select_equal(load(a, i), zero, load(b, i), one); });
    case kSelect:
      return each(count, to, [&](int64_t i) {
        return select_equal(load(a, i), zero, load(c, i), load(b, i));
      });
  }
}

void run_steps(const Function& function, int64_t first, int64_t count, float* scores) {
  alignas(64) float registers[kRegisters][kBlockPanels * kLanes];
  alignas(64) float unpacked[3][kBlockPanels * kLanes];
  for (int64_t done = 0; done < count; done += kBlockPanels) {
    const int64_t panels = count - done < kBlockPanels ? count - done : kBlockPanels;
    const int64_t panel = first + done;
    float* const out = scores + done * kLanes;
    const auto operand = [&](int32_t x, int place) -> Operand {
      const int32_t number = x & 0xFFFF;
      switch (x >> 16) {
        case kRegister: return {registers[number], false};
        case kDot: return {out, false};
        case kConstant: return {function.constants + number * kLanes, true};
        case kColumn: return {function.columns[number] + panel * kLanes, false};
        default: {
          const uint16_t* words = function.flags[number] + panel;
          for (int64_t p = 0; p < panels; ++p)
            for (int i = 0; i < kRegs; ++i)
              store(unpacked[place] + p * kLanes + i * kWidth,
                    keep(set1(1.0f), uint32_t(words[p]) >> (i * kWidth)));
          return {unpacked[place], false};
        }
      }
    };
    for (int64_t s = 0; s < function.n_steps; ++s) {
      const Step& step = function.steps[s];
      take_step(step.op, operand(step.a, 0), operand(step.b, 1), operand(step.c, 2),
                panels * kRegs, step.to < 0 ? out : registers[step.to]);
    }
  }
}

// ---- What they made -------------------------------------------------------------------------

inline void note_fault(const Source& source, int64_t position, float score) {
  const int64_t kind = score != score ? kIsNaN : score > 0.0f ? kIsAbove : kIsBelow;
  const int64_t fault = 4 * position + kind;
  int64_t least = __atomic_load_n(source.fault, __ATOMIC_RELAXED);
  while (fault < least &&
         !__atomic_compare_exchange_n(source.fault, &least, fault, true, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
}

inline bool in_range(float score) { return score <= kLargestMade && score >= -kLargestMade; }

// Notes what is wrong with items in these lanes of a panel; what is wrong in any lane becomes 0, so that
// nobody meets it.
inline void mend(const Source& source, int64_t panel, uint32_t lanes, float* scores) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (in_range(scores[lane])) continue;
    if (lanes >> lane & 1) note_fault(source, panel * kLanes + lane, scores[lane]);
    scores[lane] = 0.0f;
  }
}

inline void run_function(const Source& source, int64_t first, int64_t count, float* scores) {
  const Function& function = *source.function;
  if (function.run) {
    const int64_t spare = first + count < source.n_panels
                              ? 0 : kLanes - __builtin_popcount(source.last_lanes);
    function.run(function.context, first * kLanes, count * kLanes - spare, scores);
  } else {
    run_steps(function, first, count, scores);
  }
}

void apply(const Source& source, int64_t first, int64_t count, float* scores) {
  run_function(source, first, count, scores);
  uint32_t strange = 0;
  for (int64_t i = 0; i < count * kRegs; ++i) {
    const Reg x = add(load(scores + i * kWidth), set1(0.0f));  // 0.0 of a -0.0, as of vectors
    store(scores + i * kWidth, x);
    strange |= ~above(set1(kLargestMade), magnitude(x)) & ((1u << kWidth) - 1);  // of a NaN, too
  }
  if (!strange) return;
  for (int64_t p = 0; p < count; ++p)
    mend(source, first + p, lanes_of(source, first + p), scores + p * kLanes);
}

// Of one item, eligible or not.
inline float apply_to_row(const Source& source, int64_t position, float dot) {
  alignas(64) float scores[kLanes] = {};
  const int64_t lane = position % kLanes;
  scores[lane] = dot;
  run_function(source, position / kLanes, 1, scores);
  const float score = scores[lane] + 0.0f;
  if (in_range(score)) return score;
  note_fault(source, position, score);
  return 0.0f;
}

}  // namespace
}  // namespace fastrank
