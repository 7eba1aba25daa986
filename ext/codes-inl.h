// The scans over int8 codes. Included by scan-inl.h, once for each instruction set.
//
// A panel's codes give an estimate of its 16 scores and an upper bound of what they are in float32.
// The jumps run on the bounds; the estimates are summed for the normaliser. Sums over a panel's
// codes are whole numbers, so every instruction set has the same ones.

namespace fastrank {
namespace {

// ---- Sums of whole numbers -------------------------------------------------------------------

#if defined(__AVX512F__)

inline Lanes as_floats(__m512i a) {
  Lanes b;
  b.reg[0] = _mm512_cvtepi32_ps(a);
  return b;
}

#if defined(__AVX512VNNI__)

inline int32_t four(const int8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, sizeof word);
  return word;
}

inline Lanes sums_of(const Source& source, int64_t panel) {
  const int groups = (source.dim + 3) / 4;
  const uint8_t* code = source.codes + panel * groups * 4 * kLanes;
  const int8_t *q1 = source.quantised.high, *q0 = source.quantised.low;
  __m512i high[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  __m512i low[2] = {_mm512_set1_epi32(source.quantised.offset), _mm512_setzero_si512()};
  int g = 0;
  for (; g + 2 <= groups; g += 2) {
    for (int j = 0; j < 2; ++j) {
      const __m512i c = _mm512_loadu_si512(code + (g + j) * 64);
      high[j] = _mm512_dpbusd_epi32(high[j], c, _mm512_set1_epi32(four(q1 + 4 * (g + j))));
      low[j] = _mm512_dpbusd_epi32(low[j], c, _mm512_set1_epi32(four(q0 + 4 * (g + j))));
    }
  }
  if (g < groups) {
    const __m512i c = _mm512_loadu_si512(code + g * 64);
    high[0] = _mm512_dpbusd_epi32(high[0], c, _mm512_set1_epi32(four(q1 + 4 * g)));
    low[0] = _mm512_dpbusd_epi32(low[0], c, _mm512_set1_epi32(four(q0 + 4 * g)));
  }
  return as_floats(
      _mm512_add_epi32(_mm512_slli_epi32(_mm512_add_epi32(high[0], high[1]), 8),
                       _mm512_add_epi32(low[0], low[1])));
}

#else

inline Lanes sums_of(const Source& source, int64_t panel) {
  const int groups = (source.dim + 3) / 4;
  const uint8_t* code = source.codes + panel * groups * 4 * kLanes;
  const int16_t* q = source.quantised.whole;
  const __m512i bytes = _mm512_set1_epi16(0xFF);
  __m512i even = _mm512_set1_epi32(source.quantised.offset), odd = _mm512_setzero_si512();
  for (int g = 0; g < groups; ++g) {
    const __m512i c = _mm512_loadu_si512(code + g * 64);
    int32_t pair[2];
    __builtin_memcpy(pair, q + 4 * g, sizeof pair);
    even = _mm512_add_epi32(
        even, _mm512_madd_epi16(_mm512_and_si512(c, bytes), _mm512_set1_epi32(pair[0])));
    odd = _mm512_add_epi32(
        odd, _mm512_madd_epi16(_mm512_srli_epi16(c, 8), _mm512_set1_epi32(pair[1])));
  }
  return as_floats(_mm512_add_epi32(even, odd));
}

#endif

#elif defined(__AVX2__)

inline Lanes sums_of(const Source& source, int64_t panel) {
  const int groups = (source.dim + 3) / 4;
  const uint8_t* code = source.codes + panel * groups * 4 * kLanes;
  const int16_t* q = source.quantised.whole;
  const __m256i bytes = _mm256_set1_epi16(0xFF);
  __m256i even[2], odd[2];
  for (int i = 0; i < 2; ++i) {
    even[i] = _mm256_set1_epi32(source.quantised.offset);
    odd[i] = _mm256_setzero_si256();
  }
  for (int g = 0; g < groups; ++g) {
    int32_t pair[2];
    __builtin_memcpy(pair, q + 4 * g, sizeof pair);
    const __m256i q_even = _mm256_set1_epi32(pair[0]), q_odd = _mm256_set1_epi32(pair[1]);
    for (int i = 0; i < 2; ++i) {
      const __m256i c =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(code + g * 64 + i * 32));
      // Not vpmaddubsw: it saturates at 32767, and 255 * 127 * 2 is more.
      even[i] = _mm256_add_epi32(even[i], _mm256_madd_epi16(_mm256_and_si256(c, bytes), q_even));
      odd[i] = _mm256_add_epi32(odd[i], _mm256_madd_epi16(_mm256_srli_epi16(c, 8), q_odd));
    }
  }
  Lanes sums;
  for (int i = 0; i < 2; ++i)
    sums.reg[i] = _mm256_cvtepi32_ps(_mm256_add_epi32(even[i], odd[i]));
  return sums;
}

#else

inline Lanes sums_of(const Source& source, int64_t panel) {
  const int groups = (source.dim + 3) / 4;
  const uint8_t* code = source.codes + panel * groups * 4 * kLanes;
  const int16_t* q = source.quantised.whole;
  uint32_t sums[kLanes];  // unsigned: what is on the way may wrap
  for (int lane = 0; lane < kLanes; ++lane) sums[lane] = uint32_t(source.quantised.offset);
  for (int g = 0; g < groups; ++g, code += 4 * kLanes, q += 4)
    for (int lane = 0; lane < kLanes; ++lane)
      sums[lane] += uint32_t(code[4 * lane] * q[0] + code[4 * lane + 2] * q[1] +
                             code[4 * lane + 1] * q[2] + code[4 * lane + 3] * q[3]);
  float floats[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) floats[lane] = float(int32_t(sums[lane]));
  return load_lanes(floats);
}

#endif

// ---- Registers -------------------------------------------------------------------------------

#if defined(__AVX512F__)
inline Reg absolute(Reg a) { return _mm512_abs_ps(a); }
inline Reg smaller(Reg a, Reg b) { return _mm512_min_ps(a, b); }
inline Reg larger(Reg a, Reg b) { return _mm512_max_ps(a, b); }
inline Reg bits_of_integer(Reg a) { return _mm512_castsi512_ps(_mm512_cvtps_epi32(a)); }
#elif defined(__AVX2__)
inline Reg absolute(Reg a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline Reg smaller(Reg a, Reg b) { return _mm256_min_ps(a, b); }
inline Reg larger(Reg a, Reg b) { return _mm256_max_ps(a, b); }
inline Reg bits_of_integer(Reg a) { return _mm256_castsi256_ps(_mm256_cvtps_epi32(a)); }
#else
inline Reg absolute(Reg a) { return select_above(a, set1(0.0f), a, -a); }
inline Reg smaller(Reg a, Reg b) { return select_above(a, b, b, a); }
inline Reg larger(Reg a, Reg b) { return select_above(a, b, a, b); }
inline Reg bits_of_integer(Reg a) { return Reg(__builtin_convertvector(a, Bits)); }
#endif

// ---- Scores ----------------------------------------------------------------------------------

struct Bounded {
  Lanes estimate, upper;
};

inline Bounded bounded_of(const Source& source, int64_t panel) {
  const QuantisedQuery& q = source.quantised;
  const Lanes sums = sums_of(source, panel);
  const Lanes scales = load_lanes(source.scales + panel * kLanes);
  Bounded b;
  for (int i = 0; i < kRegs; ++i) {
    b.estimate.reg[i] = fma(scales.reg[i], mul(sums.reg[i], set1(q.step)), set1(q.base));
    b.upper.reg[i] = fma(scales.reg[i], set1(q.spread), set1(q.margin));
  }
  if (source.bias || source.call_bias) {
    b.estimate = with_biases(source, panel, b.estimate);
    const float* const parts[2] = {biases_of(source, panel), call_biases_of(source, panel)};
    for (const float* part : parts) {
      if (!part) continue;
      const Lanes bias = load_lanes(part);
      for (int i = 0; i < kRegs; ++i)
        b.upper.reg[i] = fma(absolute(bias.reg[i]), set1(0x1p-21f), b.upper.reg[i]);
    }
  }
  b.upper = add(b.estimate, b.upper);
  return b;
}

// An upper bound of exp((upper - reference) / T), at most 6.2 % above it: exp2 is convex, so its
// chord between whole numbers lies above it, and a chord is the bits of a float read as a number.
inline Lanes upper_weights_of(const Lanes& uppers, uint32_t lanes, float reference, float inv_t) {
  const float per_octave = inv_t * 0x1.715476p+23f;  // 2^23 / log 2
  Lanes w;
  for (int i = 0; i < kRegs; ++i) {
    const Reg x = sub(uppers.reg[i], set1(reference));
    // 127 octaves to 1.0, and 2^-13 of one for the roundings, which are below 2^-14 of one.
    const Reg bits = fma(x, set1(per_octave), set1(0x1.fc002p+29f));
    const Reg clamped = smaller(larger(bits, set1(0.0f)), set1(0x1.fep+30f));
    w.reg[i] = keep(bits_of_integer(clamped), lanes >> (i * kWidth));
  }
  return w;
}

// Estimated weights, rid of the mean of exp(rounding error).
inline Lanes estimated_weights_of(const Lanes& estimates, const Lanes& scales, uint32_t lanes,
                                  float reference, float inv_t, float shrink) {
  Lanes w;
  for (int i = 0; i < kRegs; ++i) {
    const Reg x = mul(sub(estimates.reg[i], set1(reference)), set1(inv_t));
    const Reg a = scales.reg[i];
    w.reg[i] = keep(exp_of(fma(mul(a, a), set1(-shrink), x)), lanes >> (i * kWidth));
  }
  return w;
}

// Sums over several panels, lane by lane.
struct Totals {
  Lanes upper, mass, unscored, variance;
};

inline Totals no_totals() {
  Totals t;
  for (int i = 0; i < kRegs; ++i)
    t.upper.reg[i] = t.mass.reg[i] = t.unscored.reg[i] = t.variance.reg[i] = set1(0.0f);
  return t;
}

inline void add_estimated(const Lanes& estimates, const Lanes& scales, const Lanes& upper_weights,
                          uint32_t lanes, float reference, float inv_t, float shrink, Totals* t) {
  t->mass = add(t->mass,
                estimated_weights_of(estimates, scales, lanes, reference, inv_t, shrink));
  for (int i = 0; i < kRegs; ++i) {
    const Reg upper = keep(upper_weights.reg[i], lanes >> (i * kWidth));
    const Reg scaled = mul(upper, scales.reg[i]);
    t->unscored.reg[i] = add(t->unscored.reg[i], upper);
    t->variance.reg[i] = fma(scaled, scaled, t->variance.reg[i]);
  }
}

inline void keep_totals(const Totals& t, Estimates* sums) {
  sums->mass += double(sum_of(t.mass));
  sums->upper += double(sum_of(t.unscored));
  sums->variance += double(sum_of(t.variance));
}

void add_estimates(const float* estimates, const float* uppers, const float* scales,
                   uint32_t lanes, float reference, float inv_t, float shrink, Estimates* sums) {
  Totals t = no_totals();
  const Lanes weights = upper_weights_of(load_lanes(uppers), lanes, reference, inv_t);
  add_estimated(load_lanes(estimates), load_lanes(scales), weights, lanes, reference, inv_t,
                shrink, &t);
  keep_totals(t, sums);
}

float weigh_uppers(const float* uppers, uint32_t lanes, float reference, float inv_t,
                   float* weights) {
  const Lanes w = upper_weights_of(load_lanes(uppers), lanes, reference, inv_t);
  store_lanes(weights, w);
  return sum_of(w);
}

// ---- Scans -----------------------------------------------------------------------------------

struct Place {
  int64_t visit, offset;
};

inline int64_t next_panel(const Scan& walk, Place* place) {
  const int64_t panel = walk.first + place->offset * walk.step;
  ++place->visit;
  place->offset += walk.stride;
  if (place->offset >= walk.count) place->offset -= walk.count;
  return panel;
}

void note_heavy(const Bounded& b, int64_t panel, uint32_t lanes, CodeScan* scan) {
  float estimates[kLanes], uppers[kLanes];
  store_lanes(estimates, b.estimate);
  store_lanes(uppers, b.upper);
  for (; lanes; lanes &= lanes - 1) {
    const int lane = __builtin_ctz(lanes);
    scan->heavy[scan->n_heavy++] = {panel * kLanes + lane, estimates[lane], uppers[lane]};
  }
}

// Panels are taken in groups of 8 visits, which share one sum and one comparison; where that is
// past the limit, the group is gone through again panel by panel.
constexpr int64_t kGroup = 8;

bool scan_codes(const Source& source, CodeScan* scan) {
  Scan* const walk = &scan->walk;
  const float reference = walk->reference, inv_t = walk->inv_temperature;
  const float cut = scan->cut, shrink = scan->shrink;
  Place place = {walk->visit, walk->offset};
  bool stopped = false;
  walk->lanes = 0;
  while (!stopped && place.visit < walk->count) {
    int64_t end = place.visit / kGroup * kGroup + kGroup;
    if (end > walk->count) end = walk->count;
    if (scan->room - scan->n_heavy < (end - place.visit) * kLanes) {
      stopped = true;
      break;
    }
    const bool whole = place.visit % kGroup == 0;
    const Place start = place;
    const int64_t n_heavy = scan->n_heavy;
    for (int attempt = whole ? 0 : 1; attempt < 2; ++attempt) {
      const bool singly = attempt == 1;
      Totals totals = no_totals();
      while (place.visit < end) {
        const int64_t panel = next_panel(*walk, &place);
        const uint32_t lanes = lanes_of(source, panel);
        if (!lanes) continue;
        const Bounded b = bounded_of(source, panel);
        const Lanes weights = upper_weights_of(b.upper, lanes, reference, inv_t);
        if (singly) {
          const double next = walk->mass + double(sum_of(weights));
          if (!(next <= walk->limit)) {
            walk->panel = panel;
            walk->lanes = lanes;
            store_lanes(walk->scores, b.estimate);
            store_lanes(scan->uppers, b.upper);
            store_lanes(walk->weights, weights);
            stopped = true;
            break;
          }
          walk->mass = next;
        } else {
          totals.upper = add(totals.upper, weights);
        }
        const uint32_t heavy = above(b.upper, cut, true) & lanes;
        if (heavy) note_heavy(b, panel, heavy, scan);
        const Lanes scales = load_lanes(source.scales + panel * kLanes);
        add_estimated(b.estimate, scales, weights, lanes & ~heavy, reference, inv_t, shrink,
                      &totals);
      }
      if (!singly) {
        const double next = walk->mass + double(sum_of(totals.upper));
        if (!(next <= walk->limit)) {
          place = start;
          scan->n_heavy = n_heavy;
          continue;
        }
        walk->mass = next;
      }
      keep_totals(totals, &scan->estimates);
      break;
    }
  }
  walk->visit = place.visit;
  walk->offset = place.offset;
  return stopped;
}

bool scan_codes_above(const Source& source, CodeScan* scan) {
  Scan* const walk = &scan->walk;
  const float reference = walk->reference;
  Place place = {walk->visit, walk->offset};
  walk->lanes = 0;
  while (place.visit < walk->count && !walk->lanes) {
    const int64_t panel = next_panel(*walk, &place);
    const uint32_t lanes = lanes_of(source, panel);
    if (!lanes) continue;
    const Bounded b = bounded_of(source, panel);
    walk->panel = panel;
    walk->lanes = above(b.upper, reference, true) & lanes;
  }
  walk->visit = place.visit;
  walk->offset = place.offset;
  return walk->lanes != 0;
}

}  // namespace
}  // namespace fastrank
