// The scans over int8 codes. Included by scan-inl.h, once for each instruction set.
//
// A panel's codes give an estimate of its 16 scores and an upper bound of what they are in float32.
// The jumps run on the bounds; the estimates are summed for the normaliser. Sums over a panel's
// codes are whole numbers, so every instruction set has the same ones.

namespace fastrank {
namespace {

// ---- Sums of whole numbers -------------------------------------------------------------------

// Sums of products over one panel, for several users at once: those of user u into
// sums[u * stride ...], as floats. Parts of a sum may wrap; the whole fits 32 bits (quantise.cpp).
#if defined(__AVX512F__)

inline __m512i word(const void* p) {
  int32_t value;
  __builtin_memcpy(&value, p, sizeof value);
  return _mm512_set1_epi32(value);
}

template <int users>
inline void code_sums(const Source* const* sources, int64_t panel, float* sums, int64_t stride) {
  const int groups = (sources[0]->dim + 3) / 4;
  const uint8_t* code = sources[0]->codes + panel * groups * 4 * kLanes;
  constexpr int kSums = users == 1 ? 2 : 1;  // enough of them to hide their latency
  __m512i a[users][kSums], b[users][kSums];
  for (int u = 0; u < users; ++u) {
    for (int j = 0; j < kSums; ++j) a[u][j] = b[u][j] = _mm512_setzero_si512();
    b[u][0] = _mm512_set1_epi32(sources[u]->quantised.offset);
  }
  const auto add_group = [&](int g, int j) {
    const __m512i c = _mm512_loadu_si512(code + g * 4 * kLanes);
#if defined(__AVX512VNNI__)
    for (int u = 0; u < users; ++u) {
      const QuantisedQuery& q = sources[u]->quantised;
      a[u][j] = _mm512_dpbusd_epi32(a[u][j], c, word(q.high + 4 * g));
      b[u][j] = _mm512_dpbusd_epi32(b[u][j], c, word(q.low + 4 * g));
    }
#else
    const __m512i even = _mm512_and_si512(c, _mm512_set1_epi16(0xFF));
    const __m512i odd = _mm512_srli_epi16(c, 8);
    for (int u = 0; u < users; ++u) {
      const int16_t* q = sources[u]->quantised.whole + 4 * g;
      a[u][j] = _mm512_add_epi32(a[u][j], _mm512_madd_epi16(even, word(q)));
      b[u][j] = _mm512_add_epi32(b[u][j], _mm512_madd_epi16(odd, word(q + 2)));
    }
#endif
  };
  int g = 0;
  for (; g + kSums <= groups; g += kSums)
    for (int j = 0; j < kSums; ++j) add_group(g + j, j);
  if (g < groups) add_group(g, 0);
  for (int u = 0; u < users; ++u) {
    if (kSums == 2) {
      a[u][0] = _mm512_add_epi32(a[u][0], a[u][kSums - 1]);
      b[u][0] = _mm512_add_epi32(b[u][0], b[u][kSums - 1]);
    }
#if defined(__AVX512VNNI__)
    a[u][0] = _mm512_slli_epi32(a[u][0], 8);
#endif
    _mm512_storeu_ps(sums + u * stride, _mm512_cvtepi32_ps(_mm512_add_epi32(a[u][0], b[u][0])));
  }
}

#elif defined(__AVX2__)

template <int users>
inline void code_sums(const Source* const* sources, int64_t panel, float* sums, int64_t stride) {
  const int groups = (sources[0]->dim + 3) / 4;
  const uint8_t* code = sources[0]->codes + panel * groups * 4 * kLanes;
  for (int half = 0; half < 2; ++half, code += 32) {
    __m256i a[users], b[users];
    for (int u = 0; u < users; ++u) {
      a[u] = _mm256_setzero_si256();
      b[u] = _mm256_set1_epi32(sources[u]->quantised.offset);
    }
    for (int g = 0; g < groups; ++g) {
      const __m256i c =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(code + g * 4 * kLanes));
      const __m256i even = _mm256_and_si256(c, _mm256_set1_epi16(0xFF));
      const __m256i odd = _mm256_srli_epi16(c, 8);
      for (int u = 0; u < users; ++u) {
        int32_t q[2];
        __builtin_memcpy(q, sources[u]->quantised.whole + 4 * g, sizeof q);
        // Not vpmaddubsw: it saturates at 32767, and 255 * 127 * 2 is more.
        a[u] = _mm256_add_epi32(a[u], _mm256_madd_epi16(even, _mm256_set1_epi32(q[0])));
        b[u] = _mm256_add_epi32(b[u], _mm256_madd_epi16(odd, _mm256_set1_epi32(q[1])));
      }
    }
    for (int u = 0; u < users; ++u)
      _mm256_storeu_ps(sums + u * stride + half * 8,
                       _mm256_cvtepi32_ps(_mm256_add_epi32(a[u], b[u])));
  }
}

#else

template <int users>
inline void code_sums(const Source* const* sources, int64_t panel, float* sums, int64_t stride) {
  const int groups = (sources[0]->dim + 3) / 4;
  for (int u = 0; u < users; ++u) {
    const uint8_t* code = sources[0]->codes + panel * groups * 4 * kLanes;
    const int16_t* q = sources[u]->quantised.whole;
    uint32_t total[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) total[lane] = uint32_t(sources[u]->quantised.offset);
    for (int g = 0; g < groups; ++g, code += 4 * kLanes, q += 4)
      for (int lane = 0; lane < kLanes; ++lane)
        total[lane] += uint32_t(code[4 * lane] * q[0] + code[4 * lane + 2] * q[1] +
                                code[4 * lane + 1] * q[2] + code[4 * lane + 3] * q[3]);
    for (int lane = 0; lane < kLanes; ++lane)
      sums[u * stride + lane] = float(int32_t(total[lane]));
  }
}

#endif

template <int users>
__attribute__((noinline)) void sum_users(const Source* const* sources, int64_t first,
                                         int64_t count, const void* ahead, int64_t lines,
                                         float* sums) {
  int64_t line = 0;
  for (int64_t panel = 0; panel < count; ++panel) {
    for (const int64_t end = lines * (panel + 1) / count; line < end; ++line)
      fetch_line(ahead, line);
    code_sums<users>(sources, first + panel, sums + panel * kLanes, count * kLanes);
  }
}

void sum_tile(const Source* const* sources, int users, int64_t first, int64_t count,
              const void* ahead, int64_t lines, float* sums) {
  if (users == 1) return sum_users<1>(sources, first, count, ahead, lines, sums);
  if (users == 2) return sum_users<2>(sources, first, count, ahead, lines, sums);
  if (users == 3) return sum_users<3>(sources, first, count, ahead, lines, sums);
  sum_users<kTileUsers>(sources, first, count, ahead, lines, sums);
}

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
  Lanes estimate, upper, heaviness;
};

inline Bounded bounded_of(const Source& source, int64_t panel, const float* panel_sums) {
  const QuantisedQuery& q = source.quantised;
  const Lanes sums = load_lanes(panel_sums);
  const Lanes scales = load_lanes(source.scales + panel * kLanes);
  Bounded b;
  for (int i = 0; i < kRegs; ++i) {
    b.estimate.reg[i] = fma(scales.reg[i], mul(sums.reg[i], set1(q.step)), set1(q.base));
    b.upper.reg[i] = fma(scales.reg[i], set1(q.spread), set1(q.margin));
  }
  if (source.bias || source.call_bias) {
    b.estimate = biased(source, panel, b.estimate);
    const float* const parts[2] = {biases_of(source, panel), call_biases_of(source, panel)};
    for (const float* part : parts) {
      if (!part) continue;
      const Lanes bias = load_lanes(part);
      for (int i = 0; i < kRegs; ++i)
        b.upper.reg[i] = fma(absolute(bias.reg[i]), set1(0x1p-21f), b.upper.reg[i]);
    }
  }
  b.upper = add(b.estimate, b.upper);
  for (int i = 0; i < kRegs; ++i)
    b.heaviness.reg[i] = fma(scales.reg[i], set1(2.0f * q.spread), b.upper.reg[i]);
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

// Standard deviations of estimated log-weights: numbers near 1 and below wherever they matter, so
// that their squares are in range whatever the scales are.
inline Lanes deviations_of(const Lanes& scales, float deviation) {
  Lanes a;
  for (int i = 0; i < kRegs; ++i)
    a.reg[i] = smaller(mul(scales.reg[i], set1(deviation)), set1(1e9f));
  return a;
}

// Estimated weights, rid of the mean of exp(rounding error), exp(deviation^2 / 2).
inline Lanes estimated_weights_of(const Lanes& estimates, const Lanes& deviations, uint32_t lanes,
                                  float reference, float inv_t) {
  Lanes w;
  for (int i = 0; i < kRegs; ++i) {
    const Reg x = mul(sub(estimates.reg[i], set1(reference)), set1(inv_t));
    const Reg a = deviations.reg[i];
    w.reg[i] = fma(mul(a, a), set1(-0.5f), x);
  }
  exp_all<kRegs>(w.reg);
  for (int i = 0; i < kRegs; ++i) w.reg[i] = keep(w.reg[i], lanes >> (i * kWidth));
  return w;
}

// Sums over several panels, lane by lane.
struct Totals {
  Lanes budget;                         // upper bounds of all
  Lanes mass, upper, scaled, variance;  // of those that are not noted
};

inline Totals no_totals() {
  Totals t;
  for (int i = 0; i < kRegs; ++i)
    t.budget.reg[i] = t.mass.reg[i] = t.upper.reg[i] = t.scaled.reg[i] = t.variance.reg[i] =
        set1(0.0f);
  return t;
}

inline void add_estimated(const Lanes& estimates, const Lanes& scales, const Lanes& upper_weights,
                          uint32_t lanes, float reference, float inv_t, float deviation,
                          Totals* t) {
  const Lanes deviations = deviations_of(scales, deviation);
  const Lanes mass = estimated_weights_of(estimates, deviations, lanes, reference, inv_t);
  for (int i = 0; i < kRegs; ++i) {
    const Reg scaled = mul(mass.reg[i], deviations.reg[i]);
    t->mass.reg[i] = add(t->mass.reg[i], mass.reg[i]);
    t->upper.reg[i] = add(t->upper.reg[i], keep(upper_weights.reg[i], lanes >> (i * kWidth)));
    t->scaled.reg[i] = add(t->scaled.reg[i], scaled);
    t->variance.reg[i] = fma(scaled, scaled, t->variance.reg[i]);
  }
}

inline void keep_totals(const Totals& t, Estimates* sums) {
  sums->mass += double(sum_of(t.mass));
  sums->upper += double(sum_of(t.upper));
  sums->scaled += double(sum_of(t.scaled));
  sums->variance += double(sum_of(t.variance));
}

void add_estimates(const float* estimates, const float* uppers, const float* scales,
                   uint32_t lanes, float reference, float inv_t, float deviation,
                   Estimates* sums) {
  Totals t = no_totals();
  const Lanes weights = upper_weights_of(load_lanes(uppers), lanes, reference, inv_t);
  add_estimated(load_lanes(estimates), load_lanes(scales), weights, lanes, reference, inv_t,
                deviation, &t);
  keep_totals(t, sums);
}

float weigh_uppers(const float* uppers, uint32_t lanes, float reference, float inv_t,
                   float* weights) {
  const Lanes w = upper_weights_of(load_lanes(uppers), lanes, reference, inv_t);
  store_lanes(weights, w);
  return sum_of(w);
}

// ---- Scans -----------------------------------------------------------------------------------

// Panels are taken in groups of 8 visits: their sums are formed first, while the registers hold
// nothing else, and they share one comparison with the limit. A group ends where the number of
// visits is a multiple of 8, so that walks in pieces of such lengths have the same groups.
constexpr int kGroup = 8;

struct Group {
  int count;  // of panels with eligible lanes
  int64_t panels[kGroup];
  uint32_t lanes[kGroup];
  const float* sums[kGroup];
  float own[kGroup * kLanes];
};

// Takes the walk's next group.
inline void take_group(const Source& source, Scan* walk, Group* group) {
  int64_t end = walk->visit / kGroup * kGroup + kGroup;
  if (end > walk->count) end = walk->count;
  int visits = 0;
  group->count = 0;
  int64_t first = 0;
  for (; walk->visit < end; ++walk->visit, ++visits) {
    const int64_t panel = walk->first + walk->offset * walk->step;
    if (visits == 0) first = panel;
    walk->offset += walk->stride;
    if (walk->offset >= walk->count) walk->offset -= walk->count;
    const uint32_t lanes = lanes_of(source, panel);
    if (!lanes) continue;
    group->panels[group->count] = panel;
    group->lanes[group->count++] = lanes;
  }
  const Source* const self = &source;
  if (source.tile) {
    for (int i = 0; i < group->count; ++i)
      group->sums[i] = source.tile + (group->panels[i] - source.tile_first) * kLanes;
    return;
  }
  const bool run = group->count == visits && walk->step == 1 && walk->stride == 1;
  if (run) sum_users<1>(&self, first, visits, nullptr, 0, group->own);
  for (int i = 0; i < group->count; ++i) {
    if (!run) sum_users<1>(&self, group->panels[i], 1, nullptr, 0, group->own + i * kLanes);
    group->sums[i] = group->own + i * kLanes;
  }
}

// Puts a walk behind the visit of a panel that comes after `start`.
inline void go_to(const Scan& start, int64_t panel, Scan* walk) {
  walk->visit = start.visit;
  walk->offset = start.offset;
  do {
    walk->panel = walk->first + walk->offset * walk->step;
    ++walk->visit;
    walk->offset += walk->stride;
    if (walk->offset >= walk->count) walk->offset -= walk->count;
  } while (walk->panel != panel);
}

inline void note(const Source& source, const Bounded& b, int64_t panel, uint32_t lanes,
                 CodeScan* scan) {
  float estimates[kLanes], uppers[kLanes];
  store_lanes(estimates, b.estimate);
  store_lanes(uppers, b.upper);
  for (; lanes; lanes &= lanes - 1) {
    const int lane = __builtin_ctz(lanes);
    const int64_t position = panel * kLanes + lane;
    scan->noted[scan->n_noted++] = {position, estimates[lane], uppers[lane],
                                    source.scales[position]};
  }
}

bool scan_codes(const Source& source, CodeScan* scan) {
  Scan* const walk = &scan->walk;
  const float reference = walk->reference, inv_t = walk->inv_temperature;
  const float cut = scan->cut, deviation = scan->deviation;
  Group group;
  walk->lanes = 0;
  // A stop inside a group leaves it to the next call to go on there, panel by panel.
  while (walk->visit < walk->count) {
    if (scan->room - scan->n_noted < kGroup * kLanes) return true;
    const bool whole = walk->visit % kGroup == 0;
    const Scan start = *walk;
    const int64_t n_noted = scan->n_noted;
    take_group(source, walk, &group);
    const auto add_panel = [&](int i, const Bounded& b, const Lanes& weights, Totals* totals) {
      const int64_t panel = group.panels[i];
      const uint32_t noted = above(b.heaviness, cut, true) & group.lanes[i];
      if (noted) note(source, b, panel, noted, scan);
      add_estimated(b.estimate, load_lanes(source.scales + panel * kLanes), weights,
                    group.lanes[i] & ~noted, reference, inv_t, deviation, totals);
    };
    if (whole) {
      Totals totals = no_totals();
      for (int i = 0; i < group.count; ++i) {
        const Bounded b = bounded_of(source, group.panels[i], group.sums[i]);
        const Lanes weights = upper_weights_of(b.upper, group.lanes[i], reference, inv_t);
        totals.budget = add(totals.budget, weights);
        add_panel(i, b, weights, &totals);
      }
      const double next = walk->mass + double(sum_of(totals.budget));
      if (next <= walk->limit) {
        walk->mass = next;
        keep_totals(totals, &scan->estimates);
        continue;
      }
      scan->n_noted = n_noted;
    }
    Totals totals = no_totals();
    for (int i = 0; i < group.count; ++i) {
      const Bounded b = bounded_of(source, group.panels[i], group.sums[i]);
      const Lanes weights = upper_weights_of(b.upper, group.lanes[i], reference, inv_t);
      const double next = walk->mass + double(sum_of(weights));
      if (!(next <= walk->limit)) {
        keep_totals(totals, &scan->estimates);
        store_lanes(walk->scores, b.estimate);
        store_lanes(scan->uppers, b.upper);
        go_to(start, group.panels[i], walk);
        walk->lanes = group.lanes[i];
        return true;
      }
      walk->mass = next;
      add_panel(i, b, weights, &totals);
    }
    keep_totals(totals, &scan->estimates);
  }
  return false;
}

bool scan_codes_above(const Source& source, CodeScan* scan) {
  Scan* const walk = &scan->walk;
  const float reference = walk->reference;
  Group group;
  walk->lanes = 0;
  while (walk->visit < walk->count) {
    const Scan start = *walk;
    take_group(source, walk, &group);
    for (int i = 0; i < group.count; ++i) {
      const Bounded b = bounded_of(source, group.panels[i], group.sums[i]);
      const uint32_t lanes = above(b.upper, reference, true) & group.lanes[i];
      if (!lanes) continue;
      go_to(start, group.panels[i], walk);
      walk->lanes = lanes;
      return true;
    }
  }
  return false;
}

}  // namespace
}  // namespace fastrank
