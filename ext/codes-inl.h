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
// One panel at a time: two, read side by side, are no longer a run to the CPU's prefetchers, and a
// scan of a million items takes three times as long.
#if defined(__AVX512F__)

inline __m512i word(const void* p) {
  int32_t value;
  __builtin_memcpy(&value, p, sizeof value);
  return _mm512_set1_epi32(value);
}

template <int users>
inline void code_sums(const Source* const* sources, int64_t panel, float* sums, int64_t stride) {
  const int64_t groups = (sources[0]->dim + 3) / 4;
  const uint8_t* code = sources[0]->codes + panel * groups * 4 * kLanes;
  constexpr int kSums = users == 1 ? 2 : 1;  // enough of them to hide their latency
  __m512i a[users][kSums], b[users][kSums];
  for (int u = 0; u < users; ++u) {
    for (int j = 0; j < kSums; ++j) a[u][j] = b[u][j] = _mm512_setzero_si512();
    b[u][0] = _mm512_set1_epi32(sources[u]->quantised.offset);
  }
  const auto add_group = [&](int64_t g, int j) {
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
  int64_t g = 0;
  for (; g + 4 <= groups; g += 4)
    for (int j = 0; j < 4; ++j) add_group(g + j, j % kSums);
  for (; g < groups; ++g) add_group(g, 0);
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
  const int64_t groups = (sources[0]->dim + 3) / 4;
  const uint8_t* code = sources[0]->codes + panel * groups * 4 * kLanes;
  for (int half = 0; half < 2; ++half, code += 32) {
    __m256i a[users], b[users];
    for (int u = 0; u < users; ++u) {
      a[u] = _mm256_setzero_si256();
      b[u] = _mm256_set1_epi32(sources[u]->quantised.offset);
    }
    for (int64_t g = 0; g < groups; ++g) {
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
  const int64_t groups = (sources[0]->dim + 3) / 4;
  for (int u = 0; u < users; ++u) {
    const uint8_t* code = sources[0]->codes + panel * groups * 4 * kLanes;
    const int16_t* q = sources[u]->quantised.whole;
    uint32_t total[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) total[lane] = uint32_t(sources[u]->quantised.offset);
    for (int64_t g = 0; g < groups; ++g, code += 4 * kLanes, q += 4)
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
                                         int64_t count, const Ahead& ahead, float* sums) {
  const int64_t row_lines = ahead.n_rows * ahead.row_lines;
  int64_t line = 0, row_line = 0, row = 0, line_of_row = 0;
  for (int64_t panel = 0; panel < count; ++panel) {
    for (const int64_t end = ahead.run_lines * (panel + 1) / count; line < end; ++line)
      fetch_line(ahead.run, line);
    for (const int64_t end = row_lines * (panel + 1) / count; row_line < end; ++row_line) {
      fetch_line(ahead.rows[row], line_of_row);
      if (++line_of_row < ahead.row_lines) continue;
      line_of_row = 0;
      ++row;
    }
    code_sums<users>(sources, first + panel, sums + panel * kLanes, count * kLanes);
  }
}

void sum_tile(const Source* const* sources, int users, int64_t first, int64_t count,
              const Ahead& ahead, float* sums) {
  if (users == 1) return sum_users<1>(sources, first, count, ahead, sums);
  if (users == 2) return sum_users<2>(sources, first, count, ahead, sums);
  if (users == 3) return sum_users<3>(sources, first, count, ahead, sums);
  sum_users<kTileUsers>(sources, first, count, ahead, sums);
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

inline Lanes estimates_of(const Source& source, int64_t panel, const float* panel_sums,
                          const Lanes& scales) {
  const QuantisedQuery& q = source.quantised;
  const Lanes sums = load_lanes(panel_sums);
  Lanes estimates;
  for (int i = 0; i < kRegs; ++i)
    estimates.reg[i] = fma(scales.reg[i], mul(sums.reg[i], set1(q.step)), set1(q.base));
  return biased(source, panel, estimates);
}

// Upper bounds of the float32 scores.
inline Lanes uppers_of(const Source& source, int64_t panel, const Lanes& estimates,
                       const Lanes& scales) {
  const QuantisedQuery& q = source.quantised;
  Lanes reach;
  for (int i = 0; i < kRegs; ++i) reach.reg[i] = fma(scales.reg[i], set1(q.certain), set1(q.margin));
  const float* const parts[2] = {biases_of(source, panel), call_biases_of(source, panel)};
  for (const float* part : parts) {
    if (!part) continue;
    const Lanes bias = load_lanes(part);
    for (int i = 0; i < kRegs; ++i)
      reach.reg[i] = fma(absolute(bias.reg[i]), set1(0x1p-21f), reach.reg[i]);
  }
  return add(estimates, reach);
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

// exp(x) within 3e-6 of it, which ErrorLaw adds to what it bounds; 0 below -87, in lanes that are
// not given, and e^88 above 88.
inline Reg rough_exp(Reg x, uint32_t lanes) {
  const Reg magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  x = smaller(x, set1(88.0f));
  const Reg shifted = fma(x, set1(0x1.715476p+0f), magic);
  const Reg r = fma(sub(shifted, magic), set1(-0x1.62e43p-1f), x);
  Reg p = fma(set1(0x1.54096cp-5f), r, set1(0x1.57cef2p-3f));
  p = fma(p, r, set1(0x1.00040cp-1f));
  p = fma(p, r, set1(0x1.fffba8p-1f));
  p = fma(p, r, set1(1.0f));
  return keep(add_exponent(p, shifted), lanes & above(x, set1(-87.0f)));
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
    w.reg[i] = rough_exp(fma(mul(a, a), set1(-0.5f), x), lanes >> (i * kWidth));
  }
  return w;
}

// How a pass bounds weights. Linear: by the estimated weight times intercept + slope * deviation,
// so that the sums of estimates bound a sum of weights at no further cost; the factor is a chord of
// exp(certain * scale + ...), which is convex. That is loose where the factor varies much, and
// leaves no room for biases: then the bounds of the scores are taken.
struct Bounds {
  bool linear;
  float reference, inv_t, deviation, intercept, slope;
};

inline Bounds bounds_of(const CodeScan& scan) {
  return {scan.linear,      scan.walk.reference, scan.walk.inv_temperature,
          scan.deviation,   scan.intercept,      scan.slope};
}

inline Lanes bounded_weights_of(const Bounds& bounds, const Lanes& estimates, const Lanes& uppers,
                                const Lanes& scales, uint32_t lanes) {
  if (!bounds.linear) return upper_weights_of(uppers, lanes, bounds.reference, bounds.inv_t);
  const Lanes deviations = deviations_of(scales, bounds.deviation);
  Lanes w = estimated_weights_of(estimates, deviations, lanes, bounds.reference, bounds.inv_t);
  for (int i = 0; i < kRegs; ++i)
    w.reg[i] = mul(w.reg[i], fma(deviations.reg[i], set1(bounds.slope), set1(bounds.intercept)));
  return w;
}

// Sums over several panels, lane by lane.
struct Totals {
  Lanes mass, scaled, variance;  // of estimates
  Lanes budget;                  // of the bounds, where they are not linear
};

inline void clear(Totals* t) {
  for (int i = 0; i < kRegs; ++i)
    t->mass.reg[i] = t->scaled.reg[i] = t->variance.reg[i] = t->budget.reg[i] = set1(0.0f);
}

inline void add_estimated(const Lanes& weights, const Lanes& deviations, Totals* t) {
  for (int i = 0; i < kRegs; ++i) {
    const Reg scaled = mul(weights.reg[i], deviations.reg[i]);
    t->mass.reg[i] = add(t->mass.reg[i], weights.reg[i]);
    t->scaled.reg[i] = add(t->scaled.reg[i], scaled);
    t->variance.reg[i] = fma(scaled, scaled, t->variance.reg[i]);
  }
}

inline void keep_totals(const Totals& t, double sign, Estimates* sums) {
  sums->mass += sign * double(sum_of(t.mass));
  sums->scaled += sign * double(sum_of(t.scaled));
  sums->variance += sign * double(sum_of(t.variance));
}

void add_estimates(const float* estimates, const float* scales, uint32_t lanes, float reference,
                   float inv_t, float deviation, Estimates* sums) {
  Totals t;
  clear(&t);
  const Lanes a = deviations_of(load_lanes(scales), deviation);
  add_estimated(estimated_weights_of(load_lanes(estimates), a, lanes, reference, inv_t), a, &t);
  keep_totals(t, 1.0, sums);
}

float weigh_codes(const Source& source, CodeScan* scan) {
  const Lanes weights =
      bounded_weights_of(bounds_of(*scan), load_lanes(scan->walk.scores), load_lanes(scan->uppers),
                         load_lanes(source.scales + scan->walk.panel * kLanes), scan->walk.lanes);
  store_lanes(scan->walk.weights, weights);
  return sum_of(weights);
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
  if (source.tile.dots && !source.eligible) {  // a run, as tiles are
    const int64_t first = walk->first + walk->offset;
    const float* const sums = source.tile.dots + (first - source.tile.first) * kLanes;
    group->count = int(end - walk->visit);
    for (int i = 0; i < group->count; ++i) {
      group->panels[i] = first + i;
      group->lanes[i] = lanes_of(source, first + i);
      group->sums[i] = sums + i * kLanes;
    }
    walk->visit = end;
    walk->offset = end == walk->count ? 0 : walk->offset + group->count;
    return;
  }
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
  if (source.tile.dots) {
    for (int i = 0; i < group->count; ++i)
      group->sums[i] = source.tile.dots + (group->panels[i] - source.tile.first) * kLanes;
    return;
  }
  const bool run = group->count == visits && walk->step == 1 && walk->stride == 1;
  if (run) sum_users<1>(&self, first, visits, {}, group->own);
  for (int i = 0; i < group->count; ++i) {
    if (!run) sum_users<1>(&self, group->panels[i], 1, {}, group->own + i * kLanes);
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

inline void note(const Source& source, const Lanes& estimates, const Lanes& heaviness,
                 int64_t panel, uint32_t lanes, CodeScan* scan) {
  float e[kLanes], h[kLanes];
  store_lanes(e, estimates);
  store_lanes(h, heaviness);
  for (; lanes; lanes &= lanes - 1) {
    const int lane = __builtin_ctz(lanes);
    const int64_t position = panel * kLanes + lane;
    scan->noted[scan->n_noted++] = {position, e[lane], h[lane], source.scales[position],
                                    __builtin_nanf("")};
  }
}

inline Lanes plus(const Lanes& a, const Lanes& scales, float factor) {
  Lanes b;
  for (int i = 0; i < kRegs; ++i) b.reg[i] = fma(scales.reg[i], set1(factor), a.reg[i]);
  return b;
}

inline Lanes heaviness_of(const Source& source, const CodeScan& scan, const Lanes& uppers,
                          const Lanes& scales) {
  return plus(uppers, scales, scan.noting - source.quantised.certain);
}

// What one panel of a scan brings: it goes to the totals. Which lanes are heavy is known at once, what
// is made of them waits until the group is passed: branches that cannot be predicted would hold up
// the panels that follow.
struct Panel {
  Lanes estimates, heaviness, weights;
  uint32_t heavy;
};

template <bool linear>
inline void add_panel(const Source& source, const Bounds& bounds, const CodeScan& scan,
                      const Group& group, int i, Totals* totals, Panel* panel) {
  const uint32_t lanes = group.lanes[i];
  const Lanes scales = load_lanes(source.scales + group.panels[i] * kLanes);
  const Lanes estimates = estimates_of(source, group.panels[i], group.sums[i], scales);
  Lanes heaviness;
  if (linear) {
    heaviness = plus(estimates, scales, scan.noting);
    for (int r = 0; r < kRegs; ++r)
      heaviness.reg[r] = add(heaviness.reg[r], set1(source.quantised.margin));
  } else {
    const Lanes uppers = uppers_of(source, group.panels[i], estimates, scales);
    totals->budget =
        add(totals->budget, upper_weights_of(uppers, lanes, bounds.reference, bounds.inv_t));
    heaviness = heaviness_of(source, scan, uppers, scales);
  }
  const Lanes deviations = deviations_of(scales, bounds.deviation);
  const Lanes weights =
      estimated_weights_of(estimates, deviations, lanes, bounds.reference, bounds.inv_t);
  add_estimated(weights, deviations, totals);
  *panel = {estimates, heaviness, weights, above(heaviness, scan.cut, true) & lanes};
}

// Notes what is heavy of a panel, and adds it to the totals of what is noted.
inline void note_panel(const Source& source, const Bounds& bounds, const Panel& panel,
                       int64_t index, CodeScan* scan, Totals* noted) {
  note(source, panel.estimates, panel.heaviness, index, panel.heavy, scan);
  Lanes kept;
  for (int r = 0; r < kRegs; ++r)
    kept.reg[r] = keep(panel.weights.reg[r], panel.heavy >> (r * kWidth));
  const Lanes scales = load_lanes(source.scales + index * kLanes);
  add_estimated(kept, deviations_of(scales, bounds.deviation), noted);
}

template <bool linear>
inline double budget_of(const Bounds& bounds, const Totals& totals) {
  return linear ? double(bounds.intercept) * double(sum_of(totals.mass)) +
                      double(bounds.slope) * double(sum_of(totals.scaled))
                : double(sum_of(totals.budget));
}

// Goes on from where a walk stands to the end of its group. Whether it stopped: at the end of the
// walk, or where the limit would be passed, which a whole group leaves to be gone through panel by
// panel.
template <bool linear>
bool scan_group(const Source& source, const Bounds& bounds, CodeScan* scan) {
  Scan* const walk = &scan->walk;
  const Scan start = *walk;
  Group group;
  take_group(source, walk, &group);
  Panel panels[kGroup];
  Totals totals, noted;
  clear(&totals);
  for (int i = 0; i < group.count; ++i)
    add_panel<linear>(source, bounds, *scan, group, i, &totals, &panels[i]);
  const double whole = walk->mass + budget_of<linear>(bounds, totals);
  if (whole <= walk->limit) {
    walk->mass = whole;
    keep_totals(totals, 1.0, &scan->estimates);
    uint32_t any = 0;
    for (int i = 0; i < group.count; ++i) any |= uint32_t(panels[i].heavy != 0) << i;
    if (!any) return false;
    clear(&noted);
    for (; any; any &= any - 1) {
      const int i = __builtin_ctz(any);
      note_panel(source, bounds, panels[i], group.panels[i], scan, &noted);
    }
    keep_totals(noted, -1.0, &scan->estimates);
    return false;
  }
  for (int i = 0; i < group.count; ++i) {
    const int64_t panel = group.panels[i];
    const Lanes scales = load_lanes(source.scales + panel * kLanes);
    const Lanes estimates = estimates_of(source, panel, group.sums[i], scales);
    const Lanes uppers = uppers_of(source, panel, estimates, scales);
    const Lanes weights = bounded_weights_of(bounds, estimates, uppers, scales, group.lanes[i]);
    const double next = walk->mass + double(sum_of(weights));
    if (!(next <= walk->limit)) {
      store_lanes(walk->scores, estimates);
      store_lanes(walk->weights, weights);
      store_lanes(scan->uppers, uppers);
      store_lanes(scan->heaviness, heaviness_of(source, *scan, uppers, scales));
      go_to(start, panel, walk);
      walk->lanes = group.lanes[i];
      return true;
    }
    walk->mass = next;
    clear(&totals);
    clear(&noted);
    add_panel<linear>(source, bounds, *scan, group, i, &totals, &panels[i]);
    keep_totals(totals, 1.0, &scan->estimates);
    if (panels[i].heavy) note_panel(source, bounds, panels[i], panel, scan, &noted);
    keep_totals(noted, -1.0, &scan->estimates);
  }
  return false;
}

bool scan_codes(const Source& source, CodeScan* scan) {
  const Bounds bounds = bounds_of(*scan);
  scan->walk.lanes = 0;
  while (scan->walk.visit < scan->walk.count) {
    if (scan->room - scan->n_noted < kGroup * kLanes) return true;
    if (bounds.linear ? scan_group<true>(source, bounds, scan)
                      : scan_group<false>(source, bounds, scan))
      return true;
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
      const int64_t panel = group.panels[i];
      const Lanes scales = load_lanes(source.scales + panel * kLanes);
      const Lanes uppers = uppers_of(
          source, panel, estimates_of(source, panel, group.sums[i], scales), scales);
      const uint32_t lanes = above(uppers, reference, true) & group.lanes[i];
      if (!lanes) continue;
      go_to(start, panel, walk);
      walk->lanes = lanes;
      return true;
    }
  }
  return false;
}

}  // namespace
}  // namespace fastrank
