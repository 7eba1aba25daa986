// The hot core: panels -> scores -> a running mass or a threshold, stopping where something
// happens. Included once by each scan_*.cpp, which is compiled for one instruction set and names
// it in FASTRANK_ISA. Everything is in an unnamed namespace and nothing comes from std::, so no
// code for a newer CPU can be picked by the linker for the rest of the program.
//
// v3 and v4 give the same bits: a panel is 16 lanes for both, sums over dimensions run in four
// chains joined in one order, sums over lanes go by one tree, and exp is one polynomial.

#include "elementary.h"
#include "kernels.h"
#include "philox.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fastrank {
namespace {

// ---- Registers: what differs between instruction sets ---------------------------------------

#if defined(__AVX512F__)

using Reg = __m512;
constexpr int kChains = 4;
inline Reg set1(float x) { return _mm512_set1_ps(x); }
inline Reg load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Reg a) { _mm512_storeu_ps(p, a); }
inline Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
inline Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
inline Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
inline Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
inline uint32_t above(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline uint32_t at_least(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline Reg keep(Reg a, uint32_t lanes) { return _mm512_maskz_mov_ps(__mmask16(lanes), a); }
inline Reg select_above(Reg a, Reg b, Reg yes, Reg no) {
  return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), yes);
}
inline Reg add_exponent(Reg a, Reg integer) {
  return _mm512_castsi512_ps(_mm512_add_epi32(
      _mm512_castps_si512(a), _mm512_slli_epi32(_mm512_castps_si512(integer), 23)));
}

#elif defined(__AVX2__)

using Reg = __m256;
constexpr int kChains = 4;
inline Reg set1(float x) { return _mm256_set1_ps(x); }
inline Reg load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Reg a) { _mm256_storeu_ps(p, a); }
inline Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
inline Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
inline Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
inline Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
inline uint32_t above(Reg a, Reg b) {
  return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
}
inline uint32_t at_least(Reg a, Reg b) {
  return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
}
inline Reg keep(Reg a, uint32_t lanes) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(int(lanes)), bit);
  return _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, bit)));
}
inline Reg select_above(Reg a, Reg b, Reg yes, Reg no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
}
inline Reg add_exponent(Reg a, Reg integer) {
  return _mm256_castsi256_ps(_mm256_add_epi32(
      _mm256_castps_si256(a), _mm256_slli_epi32(_mm256_castps_si256(integer), 23)));
}

#else  // the baseline: four lanes of the compiler's portable vectors, no fused multiply-add

typedef float Reg __attribute__((vector_size(16)));
typedef int32_t Bits __attribute__((vector_size(16)));
typedef float Unaligned __attribute__((vector_size(16), aligned(4), may_alias));
constexpr int kChains = 2;
inline Reg set1(float x) { return Reg{x, x, x, x}; }
inline Reg load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
inline void store(float* p, Reg a) { *reinterpret_cast<Unaligned*>(p) = a; }
inline Reg add(Reg a, Reg b) { return a + b; }
inline Reg sub(Reg a, Reg b) { return a - b; }
inline Reg mul(Reg a, Reg b) { return a * b; }
inline Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }
inline uint32_t mask_of(Bits yes) {
  return uint32_t(-yes[0] - 2 * yes[1] - 4 * yes[2] - 8 * yes[3]);
}
inline uint32_t above(Reg a, Reg b) { return mask_of(a > b); }
inline uint32_t at_least(Reg a, Reg b) { return mask_of(a >= b); }
inline Reg keep(Reg a, uint32_t lanes) {
  const Bits bit = {1, 2, 4, 8};
  return Reg(Bits(a) & ((bit & int32_t(lanes)) == bit));
}
inline Reg select_above(Reg a, Reg b, Reg yes, Reg no) {
  const Bits mask = a > b;
  return Reg((mask & Bits(yes)) | (~mask & Bits(no)));
}
inline Reg add_exponent(Reg a, Reg integer) {
  typedef uint32_t Words __attribute__((vector_size(16)));
  return Reg(Words(a) + (Words(integer) << 23));
}

#endif

constexpr int kWidth = int(sizeof(Reg) / sizeof(float));
constexpr int kRegs = kLanes / kWidth;

// One panel's worth of lanes.
struct Lanes {
  Reg reg[kRegs];
};

// Lanes j and j + 8, then j + 4, then j + 2, then j + 1.
inline float sum_of(const Lanes& a) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const __m256 low = _mm512_castps512_ps256(a.reg[0]);
  const __m256 high = _mm512_extractf32x8_ps(a.reg[0], 1);
#else
  const __m256 low = a.reg[0], high = a.reg[1];
#endif
  const __m256 eight = _mm256_add_ps(low, high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
  const Reg four = (a.reg[0] + a.reg[2]) + (a.reg[1] + a.reg[3]);
  return (four[0] + four[2]) + (four[1] + four[3]);
#endif
}

// sum_of for four panels at once.
inline void sums_of(const Lanes* a, float* sums) {
#if defined(__AVX2__)
  __m128 four[4];
  for (int i = 0; i < 4; ++i) {
#if defined(__AVX512F__)
    const __m256 low = _mm512_castps512_ps256(a[i].reg[0]);
    const __m256 high = _mm512_extractf32x8_ps(a[i].reg[0], 1);
#else
    const __m256 low = a[i].reg[0], high = a[i].reg[1];
#endif
    const __m256 eight = _mm256_add_ps(low, high);
    four[i] = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  }
  const __m128 two01 =
      _mm_add_ps(_mm_movelh_ps(four[0], four[1]), _mm_movehl_ps(four[1], four[0]));
  const __m128 two23 =
      _mm_add_ps(_mm_movelh_ps(four[2], four[3]), _mm_movehl_ps(four[3], four[2]));
  _mm_storeu_ps(sums, _mm_add_ps(_mm_shuffle_ps(two01, two23, _MM_SHUFFLE(2, 0, 2, 0)),
                                 _mm_shuffle_ps(two01, two23, _MM_SHUFFLE(3, 1, 3, 1))));
#else
  for (int i = 0; i < 4; ++i) sums[i] = sum_of(a[i]);
#endif
}

// ---- The same for every instruction set -----------------------------------------------------

inline Lanes load_lanes(const float* p) {
  Lanes a;
  for (int i = 0; i < kRegs; ++i) a.reg[i] = load(p + i * kWidth);
  return a;
}

inline void store_lanes(float* p, const Lanes& a) {
  for (int i = 0; i < kRegs; ++i) store(p + i * kWidth, a.reg[i]);
}

inline Lanes add(const Lanes& a, const Lanes& b) {
  Lanes c;
  for (int i = 0; i < kRegs; ++i) c.reg[i] = add(a.reg[i], b.reg[i]);
  return c;
}

inline uint32_t above(const Lanes& a, float threshold, bool or_equal) {
  uint32_t lanes = 0;
  for (int i = 0; i < kRegs; ++i) {
    const Reg t = set1(threshold);
    lanes |= (or_equal ? at_least(a.reg[i], t) : above(a.reg[i], t)) << (i * kWidth);
  }
  return lanes;
}

// x[i] = exp(x[i]), i < n, to 2 ulp; 0 below -87.3 (so never denormal), +inf above 88.3. Step by
// step for all n: one after the other, their long chains would fill the CPU's queues and wait.
template <int n>
inline void exp_all(Reg* x) {
  const Reg magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  Reg shifted[n], k[n], r[n], p[n];
  for (int i = 0; i < n; ++i) shifted[i] = fma(x[i], set1(0x1.715476p+0f), magic);
  for (int i = 0; i < n; ++i) k[i] = sub(shifted[i], magic);
  for (int i = 0; i < n; ++i) r[i] = fma(k[i], set1(-0x1.63p-1f), x[i]);
  for (int i = 0; i < n; ++i) r[i] = fma(k[i], set1(0x1.bd0106p-13f), r[i]);
  for (int i = 0; i < n; ++i) p[i] = fma(set1(0x1.6d110ap-10f), r[i], set1(0x1.120b6ep-7f));
  for (int i = 0; i < n; ++i) p[i] = fma(p[i], r[i], set1(0x1.55551ap-5f));
  for (int i = 0; i < n; ++i) p[i] = fma(p[i], r[i], set1(0x1.5554dcp-3f));
  for (int i = 0; i < n; ++i) p[i] = fma(p[i], r[i], set1(0.5f));
  for (int i = 0; i < n; ++i) p[i] = fma(p[i], mul(r[i], r[i]), add(r[i], set1(1.0f)));
  for (int i = 0; i < n; ++i) {
    p[i] = add_exponent(p[i], shifted[i]);  // the low bits of `shifted` hold k
    p[i] = select_above(set1(-87.3f), x[i], set1(0.0f), p[i]);
    x[i] = select_above(x[i], set1(88.3f), set1(__builtin_inff()), p[i]);
  }
}

// Subtracting before scaling keeps the differences of nearby scores exact; one fma of score and
// 1 / T against a product would lose the law at small T.
template <int panels>
inline void weights_of(const Lanes* scores, const uint32_t* lanes, float reference, float inv_t,
                       Lanes* weights) {
  constexpr int n = panels * kRegs;
  Reg x[n];
  for (int i = 0; i < n; ++i)
    x[i] = mul(sub(scores[i / kRegs].reg[i % kRegs], set1(reference)), set1(inv_t));
  exp_all<n>(x);
  for (int i = 0; i < n; ++i)
    weights[i / kRegs].reg[i % kRegs] = keep(x[i], lanes[i / kRegs] >> (i % kRegs * kWidth));
}

inline Lanes weights_of(const Lanes& scores, uint32_t lanes, float reference, float inv_t) {
  Lanes weights;
  weights_of<1>(&scores, &lanes, reference, inv_t, &weights);
  return weights;
}

// Dot products of some users with `regs` registers of items, whose dimensions lie kLanes apart.
// Sums run in kChains chains over dimensions c % kChains, joined in one order: a panel scored alone
// or together with others gives the same bits.
template <int users, int regs>
inline void dot(const float* const* queries, const float* items, int64_t dim,
                Reg (&total)[users][regs]) {
  Reg sum[users][regs][kChains];
  for (int u = 0; u < users; ++u)
    for (int i = 0; i < regs; ++i)
      for (int j = 0; j < kChains; ++j) sum[u][i][j] = set1(0.0f);
  int64_t c = 0;
  const auto add_product = [&](int j) {  // of dimension c + j
    const float* row = items + (c + j) * kLanes;
    for (int u = 0; u < users; ++u) {
      const Reg q = set1(queries[u][c + j]);
      for (int i = 0; i < regs; ++i) sum[u][i][j] = fma(load(row + i * kWidth), q, sum[u][i][j]);
    }
  };
  for (; c + kChains <= dim; c += kChains)
    for (int j = 0; j < kChains; ++j) add_product(j);
  for (int j = 0; j < kChains - 1; ++j)
    if (c + j < dim) add_product(j);
  for (int u = 0; u < users; ++u) {
    for (int i = 0; i < regs; ++i) {
      total[u][i] = add(sum[u][i][0], sum[u][i][1]);
      if (kChains == 4)
        total[u][i] = add(total[u][i], add(sum[u][i][kChains - 2], sum[u][i][kChains - 1]));
    }
  }
}

// The same sums over row-major vectors: chain c % 4 of a vector stands in lane c % 4.
inline void dots_of_rows(const Source& source, int64_t panel, float* dots) {
  const int64_t stride = (source.dim + 3) / 4 * 4;
  const float* row = source.vectors + panel * kLanes * stride;
#if defined(__AVX2__)
  for (int i = 0; i < kLanes; i += 4, row += 4 * stride) {
    __m128 a = _mm_setzero_ps(), b = a, c = a, d = a;
    for (int64_t j = 0; j < stride; j += 4) {
      const __m128 q = _mm_loadu_ps(source.query + j);
      a = _mm_fmadd_ps(_mm_loadu_ps(row + j), q, a);
      b = _mm_fmadd_ps(_mm_loadu_ps(row + stride + j), q, b);
      c = _mm_fmadd_ps(_mm_loadu_ps(row + 2 * stride + j), q, c);
      d = _mm_fmadd_ps(_mm_loadu_ps(row + 3 * stride + j), q, d);
    }
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(dots + i, _mm_add_ps(_mm_add_ps(a, b), _mm_add_ps(c, d)));
  }
#else
  for (int i = 0; i < kLanes; ++i, row += stride) {
    float even = 0.0f, odd = 0.0f;
    for (int64_t j = 0; j < stride; j += 2) {
      even = row[j] * source.query[j] + even;
      odd = row[j + 1] * source.query[j + 1] + odd;
    }
    dots[i] = even + odd;
  }
#endif
}

inline Lanes panel_dots(const Source& source, int64_t panel) {
  if (source.vectors) {
    float dots[kLanes];
    dots_of_rows(source, panel, dots);
    return load_lanes(dots);
  }
  // `dot` for one user, but with indices instead of pointers: this loop runs behind memory, and the
  // tighter one that comes of `dot` is 5 to 10 % slower at a million items.
  const int dim = source.dim;
  const float* row = source.panels + panel * dim * kLanes;
  const float* query = source.query;
  Lanes sum[kChains];
  for (int j = 0; j < kChains; ++j)
    for (int i = 0; i < kRegs; ++i) sum[j].reg[i] = set1(0.0f);
  int c = 0;
  for (; c + kChains <= dim; c += kChains) {
    for (int j = 0; j < kChains; ++j) {
      const Reg q = set1(query[c + j]);
      for (int i = 0; i < kRegs; ++i)
        sum[j].reg[i] = fma(load(row + (c + j) * kLanes + i * kWidth), q, sum[j].reg[i]);
    }
  }
  for (int j = 0; c < dim; ++c, ++j) {
    const Reg q = set1(query[c]);
    for (int i = 0; i < kRegs; ++i)
      sum[j].reg[i] = fma(load(row + c * kLanes + i * kWidth), q, sum[j].reg[i]);
  }
  Lanes dots = add(sum[0], sum[1]);
  if (kChains == 4) dots = add(dots, add(sum[kChains - 2], sum[kChains - 1]));
  return dots;
}

// A tile over codes holds sums of codes: float32 scores then come from the vectors.
inline bool has_dots(const Source& source) { return source.tile.dots && !source.codes; }

inline Lanes tile_dots(const Source& source, int64_t panel) {
  return load_lanes(source.tile.dots + (panel - source.tile.first) * kLanes);
}

inline const float* biases_of(const Source& source, int64_t panel) {
  return source.bias ? source.bias + panel * kLanes : nullptr;
}

inline const float* call_biases_of(const Source& source, int64_t panel) {
  if (!source.call_bias) return nullptr;
  return panel == source.n_panels - 1 ? source.call_bias_tail
                                      : source.call_bias + panel * kLanes;
}

inline Lanes biased(const Source& source, int64_t panel, Lanes score) {
  if (const float* biases = biases_of(source, panel)) score = add(score, load_lanes(biases));
  if (const float* biases = call_biases_of(source, panel)) score = add(score, load_lanes(biases));
  return score;
}

inline uint32_t lanes_of(const Source& source, int64_t panel) {
  if (source.eligible) return source.eligible[panel];
  return panel == source.n_panels - 1 ? source.last_lanes : 0xFFFFu;
}

}  // namespace
}  // namespace fastrank

#include "functions-inl.h"

namespace fastrank {
namespace {

// Where the scores of a panel come from: its vectors, a function of them, a tile, or the caller.
enum class From { kPanels, kFunction, kTile, kCaller };

template <From from>
inline Lanes scores_of(const Source& source, int64_t panel) {
  if (from == From::kCaller) {
    const float* scores = panel == source.n_panels - 1 ? source.scores_tail
                                                       : source.scores + panel * kLanes;
    // 0.0 of a -0.0, as it comes out of vectors.
    return add(load_lanes(scores), Lanes{});
  }
  if (from == From::kTile) return biased(source, panel, tile_dots(source, panel));
  const Lanes dots = panel_dots(source, panel);
  if (from == From::kPanels) return biased(source, panel, dots);
  alignas(64) float scores[kLanes];
  store_lanes(scores, dots);
  apply(source, panel, 1, scores);
  return biased(source, panel, load_lanes(scores));
}

enum class Stop { kMass, kLabels, kAbove, kSum };

constexpr bool at_limit(Stop stop) { return stop == Stop::kMass || stop == Stop::kLabels; }

// Whether a panel's labels are: then its sum is added, and nothing waits.
inline bool all_equal(const uint16_t* labels) {
#if defined(__AVX2__)
  const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(labels));
  const __m256i first = _mm256_broadcastw_epi16(_mm256_castsi256_si128(all));
  return _mm256_movemask_epi8(_mm256_cmpeq_epi16(all, first)) == -1;
#else
  for (int i = 1; i < kLanes; ++i)
    if (labels[i] != labels[0]) return false;
  return true;
#endif
}

template <int copies>
void add_by_label(const Source& source, const Weighed& weighed) {
  double* const sums = weighed.sums;
  const double unit = weighed.unit;
  for (int64_t p = 0; p < weighed.count; ++p) {
    const float* weights = weighed.weights + p * kLanes;
    const uint16_t* labels = source.labels + weighed.panels[p] * kLanes;
    if (all_equal(labels)) {
      sums[int64_t(labels[0]) * copies] += double(sum_of(load_lanes(weights))) * unit;
      continue;
    }
    double terms[kLanes];
    for (int i = 0; i < kLanes; ++i) terms[i] = double(weights[i]) * unit;
    for (int i = 0; i < kLanes; ++i) sums[int64_t(labels[i]) * copies + i % copies] += terms[i];
  }
}

// Not part of the scan's loop, which needs the registers.
__attribute__((noinline)) void add_weighed(const Source& source, Weighed* weighed) {
  weighed->copies == 1 ? add_by_label<1>(source, *weighed)
                       : add_by_label<kLabelCopies>(source, *weighed);
  weighed->count = 0;
}

inline void keep_for_labels(const Source& source, Weighed* weighed, int64_t panel,
                            const Lanes& weights) {
  store_lanes(weighed->weights + weighed->count * kLanes, weights);
  weighed->panels[weighed->count++] = panel;
  if (weighed->count == Weighed::kRoom) add_weighed(source, weighed);
}

// Passes `panel` and those after it, four at a time, until one of the four might stop the scan or
// fewer than four are left; returns how many. `mass` is what one by one gives, but no sum waits for
// the one before: weights are never negative or NaN, so no sum on the way passes what the last one
// does not. A panel that is not eligible adds 0.
template <Stop stop, From from>
int64_t pass_fours(const Source& source, const Scan& state, int64_t panel, int64_t left,
                   double* mass) {
  int64_t passed = 0;
  for (; passed + 4 <= left; passed += 4) {
    Lanes scores[4], weights[4];
    uint32_t lanes[4];
    for (int i = 0; i < 4; ++i) {
      const int64_t next = panel + passed + i;
      scores[i] = scores_of<from>(source, next);
      lanes[i] = lanes_of(source, next);
    }
    if (!at_limit(stop)) {
      uint32_t hits = 0;
      for (int i = 0; i < 4; ++i)
        hits |= above(scores[i], state.reference, stop == Stop::kAbove) & lanes[i];
      if (hits) break;
    }
    if (stop == Stop::kAbove) continue;
    weights_of<4>(scores, lanes, state.reference, state.inv_temperature, weights);
    float sums[4];
    sums_of(weights, sums);
    double next = *mass;
    for (int i = 0; i < 4; ++i) next += double(sums[i]);
    if (at_limit(stop) && !(next <= state.limit)) break;
    *mass = next;
    if (stop == Stop::kLabels)
      for (int i = 0; i < 4; ++i)
        keep_for_labels(source, state.weighed, panel + passed + i, weights[i]);
  }
  return passed;
}

// No software prefetch: panels in a row run at the speed of reading memory, and every distance
// tried (2 to 16 KB) made them 10 to 40 % slower.
template <Stop stop, From from>
bool scan_panels(const Source& source, Scan* state) {
  const float reference = state->reference, inv_t = state->inv_temperature;
  double mass = state->mass;
  const double limit = state->limit;
  int64_t visit = state->visit, offset = state->offset;
  bool stopped = false;
  // Scores that are there, and in order, as those of a tile always are.
  if (from == From::kCaller ? state->step == 1 && state->stride == 1
                            : from == From::kTile && at_limit(stop)) {
    const int64_t passed = pass_fours<stop, from>(source, *state, state->first + offset,
                                                  state->count - visit, &mass);
    visit += passed;
    offset += passed;
  }
  while (visit < state->count) {
    const int64_t panel = state->first + offset * state->step;
    ++visit;
    offset += state->stride;
    if (offset >= state->count) offset -= state->count;
    uint32_t lanes = lanes_of(source, panel);
    if (!lanes) continue;
    const Lanes scores = scores_of<from>(source, panel);
    if (stop == Stop::kAbove || stop == Stop::kSum) {
      const bool ties = stop == Stop::kAbove &&
                        (source.panel_rows ? source.panel_rows[panel] <= state->tie_row
                                           : panel <= state->tie_panel);
      const uint32_t hits = above(scores, reference, ties) & lanes;
      stopped = hits != 0;
      if (stop == Stop::kAbove) lanes = hits;
    }
    if (!stopped && stop != Stop::kAbove) {
      const Lanes weights = weights_of(scores, lanes, reference, inv_t);
      const double next = mass + double(sum_of(weights));
      stopped = at_limit(stop) && !(next <= limit);
      if (stopped) {
        store_lanes(state->weights, weights);
      } else {
        mass = next;
        if (stop == Stop::kLabels) keep_for_labels(source, state->weighed, panel, weights);
      }
    }
    if (stopped) {
      state->panel = panel;
      state->lanes = lanes;
      store_lanes(state->scores, scores);
      break;
    }
  }
  state->visit = visit;
  state->offset = offset;
  state->mass = mass;
  return stopped;
}

// From the start of a cache line: where chance puts it, the same code is up to 3 % slower.
template <Stop stop>
__attribute__((aligned(64))) bool scan(const Source& source, Scan* state) {
  if (source.scores) return scan_panels<stop, From::kCaller>(source, state);
  if (has_dots(source)) return scan_panels<stop, From::kTile>(source, state);
  return source.function ? scan_panels<stop, From::kFunction>(source, state)
                         : scan_panels<stop, From::kPanels>(source, state);
}

float weigh(const float* scores, uint32_t lanes, float reference, float inv_t, float* weights) {
  const Lanes w = weights_of(load_lanes(scores), lanes, reference, inv_t);
  store_lanes(weights, w);
  return sum_of(w);
}

void score_panel(const Source& source, int64_t panel, float* scores) {
  store_lanes(scores, source.scores      ? scores_of<From::kCaller>(source, panel)
                      : has_dots(source) ? scores_of<From::kTile>(source, panel)
                      : source.function  ? scores_of<From::kFunction>(source, panel)
                                         : scores_of<From::kPanels>(source, panel));
}

// What a request makes of a row's dot product.
inline float score_of_dot(const Source& source, int64_t position, float score) {
  if (source.function) score = apply_to_row(source, position, score);
  const int64_t panel = position / kLanes, lane = position % kLanes;
  if (const float* biases = biases_of(source, panel)) score += biases[lane];
  if (const float* biases = call_biases_of(source, panel)) score += biases[lane];
  return score;
}

float score_row(const Source& source, int64_t position) {
  const int64_t stride = (source.dim + 3) / 4 * 4;
  const float* row = source.vectors + position * stride;
#if defined(__AVX2__)
  __m128 sums = _mm_setzero_ps();
  for (int64_t j = 0; j < stride; j += 4)
    sums = _mm_fmadd_ps(_mm_loadu_ps(row + j), _mm_loadu_ps(source.query + j), sums);
  const __m128 pairs = _mm_add_ps(sums, _mm_movehdup_ps(sums));  // 0 + 1, and 2 + 3
  const float dot = _mm_cvtss_f32(_mm_add_ss(pairs, _mm_movehl_ps(pairs, pairs)));
#else
  float even = 0.0f, odd = 0.0f;
  for (int64_t j = 0; j < stride; j += 2) {
    even = row[j] * source.query[j] + even;
    odd = row[j + 1] * source.query[j + 1] + odd;
  }
  const float dot = even + odd;
#endif
  return score_of_dot(source, position, dot);
}

#if defined(__AVX2__)
// Rows of 4 * fours items, of which each has its sums in a register: so many hide their latency.
template <int fours>
inline void dots_of_rows(const Source& source, const int64_t* positions, float* scores) {
  const int64_t stride = (source.dim + 3) / 4 * 4;
  const float* row[4 * fours];
  __m128 sums[4 * fours];
  for (int i = 0; i < 4 * fours; ++i) {
    row[i] = source.vectors + positions[i] * stride;
    sums[i] = _mm_setzero_ps();
  }
  for (int64_t j = 0; j < stride; j += 4) {
    const __m128 q = _mm_loadu_ps(source.query + j);
    for (int i = 0; i < 4 * fours; ++i)
      sums[i] = _mm_fmadd_ps(_mm_loadu_ps(row[i] + j), q, sums[i]);
  }
  for (int i = 0; i < 4 * fours; i += 4) {
    __m128* const s = sums + i;
    _MM_TRANSPOSE4_PS(s[0], s[1], s[2], s[3]);
    _mm_storeu_ps(scores + i, _mm_add_ps(_mm_add_ps(s[0], s[1]), _mm_add_ps(s[2], s[3])));
  }
}
#endif

void score_rows(const Source& source, const int64_t* positions, int count, float* scores) {
  int i = 0;
#if defined(__AVX2__)
  for (; i + 8 <= count; i += 8) dots_of_rows<2>(source, positions + i, scores + i);
  for (; i + 4 <= count; i += 4) dots_of_rows<1>(source, positions + i, scores + i);
  if (i < count) {  // four take as long as one
    int64_t last[4];
    float dots[4];
    for (int j = 0; j < 4; ++j) last[j] = positions[i + j < count ? i + j : count - 1];
    dots_of_rows<1>(source, last, dots);
    for (int j = 0; i < count; ++i, ++j) scores[i] = dots[j];
  }
  for (i = 0; i < count; ++i) scores[i] = score_of_dot(source, positions[i], scores[i]);
#else
  for (; i < count; ++i) scores[i] = score_row(source, positions[i]);
#endif
}

// Users share each loaded row of a panel: as many as there are registers for the sums of.
#if defined(__AVX512F__)
constexpr int kTileUsers = 4;
#else
constexpr int kTileUsers = 3;
#endif

// Into the second cache: the first is this tile's.
inline void fetch_line(const void* run, int64_t line) {
  __builtin_prefetch(static_cast<const char*>(run) + line * 64, 0, 2);
}

template <int users>
void score_users(const Source* const* sources, int64_t first, int64_t count, const Ahead& ahead,
                 float* dots) {
  const int64_t dim = sources[0]->dim;
  const float* panels = sources[0]->panels + first * dim * kLanes;
  const float* queries[users];
  for (int u = 0; u < users; ++u) queries[u] = sources[u]->query;
  int64_t line = 0;
  for (int64_t panel = 0; panel < count; ++panel) {
    for (const int64_t end = ahead.run_lines * (panel + 1) / count; line < end; ++line)
      fetch_line(ahead.run, line);
    for (int i = 0; i < kRegs; ++i) {
      Reg total[users][1];
      dot(queries, panels + panel * dim * kLanes + i * kWidth, dim, total);
      for (int u = 0; u < users; ++u)
        store(dots + (u * count + panel) * kLanes + i * kWidth, total[u][0]);
    }
  }
}

void sum_tile(const Source* const* sources, int users, int64_t first, int64_t count,
              const Ahead& ahead, float* sums);

void score_tile(const Source* const* sources, int users, int64_t first, int64_t count,
                const Ahead& ahead, float* dots) {
  if (sources[0]->codes) return sum_tile(sources, users, first, count, ahead, dots);
  if (users == 1) {  // by `panel_dots`, which one user is faster with, of rows too
    for (int64_t i = 0; i < ahead.run_lines; ++i) fetch_line(ahead.run, i);
    for (int64_t panel = 0; panel < count; ++panel)
      store_lanes(dots + panel * kLanes, panel_dots(*sources[0], first + panel));
    return;
  }
  if (users == 2) return score_users<2>(sources, first, count, ahead, dots);
  if (users == 3) return score_users<3>(sources, first, count, ahead, dots);
  score_users<kTileUsers>(sources, first, count, ahead, dots);
}

// ---- Cells (kernels.h, "Tables") ------------------------------------------------------------

template <From from>
double weigh_cell_from(const Source& source, int64_t first, int64_t count, float inv_t, Cell* out) {
  float highest = -__builtin_inff();
  Lanes top;
  for (int i = 0; i < kRegs; ++i) top.reg[i] = set1(highest);
  for (int64_t p = 0; p < count; ++p) {
    const uint32_t lanes = lanes_of(source, first + p);
    float* to = out->scores + p * kLanes;
    if (!lanes) {
      store_lanes(to, Lanes{});
      continue;
    }
    const Lanes scores = scores_of<from>(source, first + p);
    store_lanes(to, scores);
    if (lanes == 0xFFFFu) {
      for (int i = 0; i < kRegs; ++i)
        top.reg[i] = select_above(scores.reg[i], top.reg[i], scores.reg[i], top.reg[i]);
    } else {
      for (uint32_t rest = lanes; rest; rest &= rest - 1) {
        const float score = to[__builtin_ctz(rest)];
        highest = score > highest ? score : highest;
      }
    }
  }
  float tops[kLanes];
  store_lanes(tops, top);
  for (int i = 0; i < kLanes; ++i) highest = tops[i] > highest ? tops[i] : highest;
  out->highest = highest;
  double mass = 0.0;
  int64_t p = 0;
  for (; p + 4 <= count; p += 4) {
    Lanes scores[4], weights[4];
    uint32_t lanes[4];
    for (int i = 0; i < 4; ++i) {
      scores[i] = load_lanes(out->scores + (p + i) * kLanes);
      lanes[i] = lanes_of(source, first + p + i);
    }
    weights_of<4>(scores, lanes, highest, inv_t, weights);
    for (int i = 0; i < 4; ++i) store_lanes(out->weights + (p + i) * kLanes, weights[i]);
    sums_of(weights, out->sums + p);
    for (int i = 0; i < 4; ++i) mass += double(out->sums[p + i]);
  }
  for (; p < count; ++p) {
    out->sums[p] = weigh(out->scores + p * kLanes, lanes_of(source, first + p), highest, inv_t,
                         out->weights + p * kLanes);
    mass += double(out->sums[p]);
  }
  return mass;
}

void weigh_depths(const uint32_t* depths, int64_t count, uint32_t reference, float* weights) {
  constexpr int kTogether = 4 * kLanes;
  for (int64_t i = 0; i < count; i += kTogether) {
    float below[kTogether] = {};
    const int64_t n = count - i < kTogether ? count - i : kTogether;
    for (int64_t j = 0; j < n; ++j) {
      const uint32_t far = depths[i + j] - reference;
      below[j] = float(int32_t(far < 0x7FFFFFFFu ? far : 0x7FFFFFFFu));
    }
    Lanes scores[4], found[4];
    const uint32_t lanes[4] = {0xFFFFu, 0xFFFFu, 0xFFFFu, 0xFFFFu};
    for (int j = 0; j < 4; ++j) scores[j] = load_lanes(below + j * kLanes);
    weights_of<4>(scores, lanes, 0.0f, -0x1p-21f, found);
    for (int j = 0; j < 4; ++j) store_lanes(below + j * kLanes, found[j]);
    for (int64_t j = 0; j < n; ++j) weights[i + j] = below[j];
  }
}

double weigh_cell(const Source& source, int64_t first, int64_t count, float inv_t, Cell* out) {
  if (has_dots(source)) return weigh_cell_from<From::kTile>(source, first, count, inv_t, out);
  return source.function ? weigh_cell_from<From::kFunction>(source, first, count, inv_t, out)
                         : weigh_cell_from<From::kPanels>(source, first, count, inv_t, out);
}

// ---- What entries take, several at a time: loops that the compiler turns into vectors --------

void exponentials(uint64_t seed, uint32_t chunk, uint32_t purpose, uint64_t first, double* out) {
  uint32_t words[4][kAhead / 2];
  for (int i = 0; i < kAhead / 2; ++i) {
    const uint64_t draw = first + uint64_t(i);
    const Block block =
        philox4x32_10(Block{{uint32_t(draw), uint32_t(draw >> 32), chunk, purpose}},
                      uint32_t(seed), uint32_t(seed >> 32));
    for (int j = 0; j < 4; ++j) words[j][i] = block.word[j];
  }
  uint64_t bits[kAhead];
  for (int i = 0; i < kAhead / 2; ++i) {
    bits[2 * i] = words[0][i] | uint64_t(words[1][i]) << 32;
    bits[2 * i + 1] = words[2][i] | uint64_t(words[3][i]) << 32;
  }
  for (int i = 0; i < kAhead; ++i) out[i] = -log_of_normal(uniform_of(bits[i]));
}

void exps(double* x) {
  for (int i = 0; i < kAhead; ++i) x[i] = exp_in_range(x[i]);
}

// ---- Arrays of the caller's: likewise --------------------------------------------------------

uint32_t largest_magnitude(const float* values, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, values + i, sizeof bits);
    bits &= 0x7FFFFFFFu;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

bool each_above_last(const int64_t* values, int64_t count) {
  constexpr int64_t kBlock = 1024;  // without a branch inside
  for (int64_t first = 1; first < count; first += kBlock) {
    const int64_t end = first + kBlock < count ? first + kBlock : count;
    int64_t yes = -1;
    for (int64_t i = first; i < end; ++i) yes &= -int64_t(values[i] > values[i - 1]);
    if (!yes) return false;
  }
  return true;
}

uint16_t largest_label(const uint16_t* labels, int64_t count) {
  uint16_t largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = labels[i] > largest ? labels[i] : largest;
  return largest;
}

}  // namespace
}  // namespace fastrank

#include "codes-inl.h"

namespace fastrank {

#define FASTRANK_JOIN_(a, b) a##b
#define FASTRANK_JOIN(a, b) FASTRANK_JOIN_(a, b)
#define FASTRANK_STRING_(a) #a
#define FASTRANK_STRING(a) FASTRANK_STRING_(a)
extern const Kernels FASTRANK_JOIN(kernels_, FASTRANK_ISA);
const Kernels FASTRANK_JOIN(kernels_, FASTRANK_ISA) = {
    FASTRANK_STRING(FASTRANK_ISA), scan<Stop::kMass>, scan<Stop::kLabels>, scan<Stop::kAbove>,
    scan<Stop::kSum>, add_weighed, weigh, score_panel, score_tile, kTileUsers, apply, exponentials, exps, score_row, score_rows,
    scan_codes, scan_codes_above, weigh_codes, add_estimates, weigh_cell, weigh_depths,
    largest_magnitude, each_above_last, largest_label};

}  // namespace fastrank
