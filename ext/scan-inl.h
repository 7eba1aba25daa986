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

// exp(x) to 2 ulp; 0 below -87.3 (so never denormal), +inf above 88.3.
inline Reg exp_of(Reg x) {
  const Reg magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Reg shifted = fma(x, set1(0x1.715476p+0f), magic);
  const Reg k = sub(shifted, magic);
  const Reg r = fma(k, set1(0x1.bd0106p-13f), fma(k, set1(-0x1.63p-1f), x));
  Reg p = fma(set1(0x1.6d110ap-10f), r, set1(0x1.120b6ep-7f));
  p = fma(p, r, set1(0x1.55551ap-5f));
  p = fma(p, r, set1(0x1.5554dcp-3f));
  p = fma(p, r, set1(0.5f));
  p = fma(p, mul(r, r), add(r, set1(1.0f)));
  p = add_exponent(p, shifted);  // the low bits of `shifted` hold k
  p = select_above(set1(-87.3f), x, set1(0.0f), p);
  return select_above(x, set1(88.3f), set1(__builtin_inff()), p);
}

// Subtracting before scaling keeps the differences of nearby scores exact; one fma of score and
// 1 / T against a product would lose the law at small T.
inline Lanes weights_of(const Lanes& scores, uint32_t lanes, float reference, float inv_t) {
  Lanes w;
  for (int i = 0; i < kRegs; ++i) {
    const Reg x = mul(sub(scores.reg[i], set1(reference)), set1(inv_t));
    w.reg[i] = keep(exp_of(x), lanes >> (i * kWidth));
  }
  return w;
}

inline Lanes scores_of(const Source& source, int64_t panel) {
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
  Lanes score = add(sum[0], sum[1]);
  if (kChains == 4) score = add(score, add(sum[kChains - 2], sum[kChains - 1]));
  if (source.bias) score = add(score, load_lanes(source.bias + panel * kLanes));
  if (source.call_bias) {
    const bool tail = panel == source.n_panels - 1;
    score = add(score, load_lanes(tail ? source.call_bias_tail
                                       : source.call_bias + panel * kLanes));
  }
  return score;
}

inline uint32_t lanes_of(const Source& source, int64_t panel) {
  if (source.eligible) return source.eligible[panel];
  return panel == source.n_panels - 1 ? source.last_lanes : 0xFFFFu;
}

enum class Stop { kMass, kAbove, kSum };

// No software prefetch: panels in a row run at the speed of reading memory, and every distance
// tried (2 to 16 KB) made them 10 to 40 % slower.
template <Stop stop>
bool scan(const Source& source, Scan* state) {
  const float reference = state->reference, inv_t = state->inv_temperature;
  double mass = state->mass;
  const double limit = state->limit;
  int64_t visit = state->visit, offset = state->offset;
  bool stopped = false;
  while (visit < state->count) {
    const int64_t panel = state->first + offset * state->step;
    ++visit;
    offset += state->stride;
    if (offset >= state->count) offset -= state->count;
    uint32_t lanes = lanes_of(source, panel);
    if (!lanes) continue;
    const Lanes scores = scores_of(source, panel);
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
      stopped = stop == Stop::kMass && !(next <= limit);
      if (stopped) {
        store_lanes(state->weights, weights);
      } else {
        mass = next;
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

float weigh(const float* scores, uint32_t lanes, float reference, float inv_t, float* weights) {
  const Lanes w = weights_of(load_lanes(scores), lanes, reference, inv_t);
  store_lanes(weights, w);
  return sum_of(w);
}

void score_panel(const Source& source, int64_t panel, float* scores) {
  store_lanes(scores, scores_of(source, panel));
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

}  // namespace

#define FASTRANK_JOIN_(a, b) a##b
#define FASTRANK_JOIN(a, b) FASTRANK_JOIN_(a, b)
#define FASTRANK_STRING_(a) #a
#define FASTRANK_STRING(a) FASTRANK_STRING_(a)
extern const Kernels FASTRANK_JOIN(kernels_, FASTRANK_ISA);
const Kernels FASTRANK_JOIN(kernels_, FASTRANK_ISA) = {
    FASTRANK_STRING(FASTRANK_ISA), scan<Stop::kMass>, scan<Stop::kAbove>,
    scan<Stop::kSum>,              weigh,             score_panel,
    exponentials,                  exps};

}  // namespace fastrank
