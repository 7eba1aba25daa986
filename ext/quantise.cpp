// int8 storage: converts vectors to codes, and queries to integers. docs/explanation/int8-bounds.md
// explains in "Codes" why codes are dithered.

#include "quantise.h"

#include <cmath>
#include <cstring>

#include "elementary.h"
#include "philox.h"

namespace fastrank {
namespace {

constexpr double kLargestCode = 125.0;  // a dither of 1 and a half more stay below 127
constexpr double kLargestWhole = 32600.0;  // of a query: 256 * 127 + 127 is the most
constexpr float kSmallestScale = 0x1p-100f;
constexpr uint32_t kDither = 5;  // a purpose, beside those of the samplers; the key is 0: equal
                                 // catalogs have equal versions

// The sum of two uniforms on (-1/2, 1/2), of 16 bits each.
double triangle(uint32_t word) {
  return (double(word & 0xFFFF) + double(word >> 16) - 65535.0) * 0x1p-16;
}

}  // namespace

int64_t quantise(const float* vectors, int64_t n_rows, int32_t dim, int64_t first,
                 const float* center, const float* unit, uint8_t* codes, float* scales,
                 float* kept, Extremes* extremes) {
  const int64_t groups = (dim + 3) / 4, stride = 4 * groups;
  for (int64_t row = 0; row < n_rows; ++row) {
    const float* vector = vectors + row * dim;
    const int64_t item = first + row;
    double square = 0.0, largest = 0.0;
    for (int32_t c = 0; c < dim; ++c) {
      if (!std::isfinite(vector[c])) return row * dim + c;
      square += double(vector[c]) * vector[c];
      largest = std::max(largest, std::fabs((double(vector[c]) - center[c]) / unit[c]));
    }
    const float scale = std::max(float(largest / kLargestCode), kSmallestScale);
    uint8_t* code = codes + row / kLanes * groups * 4 * kLanes + row % kLanes * 4;
    double error = 0.0, norm = 0.0;
    for (int64_t g = 0; g < groups; ++g) {
      const Block random = philox4x32_10(
          Block{{uint32_t(g), uint32_t(item), uint32_t(item >> 32), kDither}}, 0, 0);
      for (int j = 0; j < 4; ++j) {
        const int64_t c = 4 * g + j;
        double whole = 0.0;
        if (c < dim) {
          const double v = (double(vector[c]) - center[c]) / (double(unit[c]) * scale);
          whole = std::floor(v + triangle(random.word[j]) + 0.5);
          error += (v - whole) * (v - whole);
          norm += whole * whole;
        }
        code[g * 4 * kLanes + j] = uint8_t(int(whole) + 128);
      }
    }
    scales[row] = scale;
    std::memcpy(kept + row * stride, vector, sizeof(float) * size_t(dim));
    extremes->square = std::max(extremes->square, square);
    extremes->code_error = std::max(extremes->code_error, std::sqrt(error));
    extremes->code_norm = std::max(extremes->code_norm, std::sqrt(norm));
    extremes->scale = std::max(extremes->scale, double(scale));
  }
  return -1;
}

CodeQuery::CodeQuery(const Catalog& catalog, const Request& request, const Largest& of)
    : max_scale(catalog.quantised.max_scale),
      code_norm(catalog.quantised.code_norm),
      code_moment(catalog.quantised.code_moment),
      tolerance(catalog.quantised.tolerance),
      n_items(catalog.n_items),
      dim(catalog.dim) {
  const Quantised& codes = catalog.quantised;
  const int64_t groups = (catalog.dim + 3) / 4;
  std::vector<double> query(size_t(4 * groups), 0.0);
  double largest = 0.0, square = 0.0, centered = 0.0, center_square = 0.0, plain_square = 0.0;
  for (int32_t c = 0; c < catalog.dim; ++c) {
    query[size_t(c)] = double(request.query[c]) * codes.unit[c];
    largest = std::max(largest, std::fabs(query[size_t(c)]));
    square += query[size_t(c)] * query[size_t(c)];
    plain_square += double(request.query[c]) * request.query[c];
    centered += double(request.query[c]) * codes.center[c];
    center_square += double(codes.center[c]) * codes.center[c];
  }
  norm = std::sqrt(square);
  const double center_norm = std::sqrt(center_square);
  const double plain_norm = std::sqrt(plain_square);
  const double reach = (norm * (codes.code_norm + codes.code_error) * codes.max_scale +
                        plain_norm * center_norm + of.score);
  // The sum of products stays below 2^31.
  const double most = std::min(kLargestWhole, 0.9 * 0x1p31 * largest / (codes.code_norm * norm));
  float step = float(largest / most);
  usable = reach < 0x1p120 && (largest == 0.0 || step > 0x1p-100f) && codes.code_norm < 0x1p24;
  if (!usable) return;
  if (largest == 0.0) step = 1.0f;

  high.resize(size_t(4 * groups));
  low.resize(size_t(4 * groups));
  whole.resize(size_t(4 * groups));
  int64_t sum = 0;
  double error = 0.0;
  for (int64_t c = 0; c < 4 * groups; ++c) {
    const double value = query[size_t(c)];
    const int32_t q = int32_t(std::lrint(value / step));
    const int32_t upper = (q + 128) >> 8;
    high[size_t(c)] = int8_t(upper);
    low[size_t(c)] = int8_t(q - 256 * upper);
    static constexpr int kPlace[4] = {0, 2, 1, 3};
    whole[size_t(c / 4 * 4 + kPlace[c % 4])] = int16_t(q);
    sum += q;
    error += (value - double(q) * step) * (value - double(q) * step);
  }
  residue = std::sqrt(error);

  // The effect of float32 rounding, on the score itself and on the estimate, relative to the sum of
  // the absolute values of all terms. An estimate alone is rounded four times: its sum, that times
  // the step, the center's part, and the total.
  const double epsilon = 0x1p-24 * (0.5 * catalog.dim + 16.0), own_epsilon = 0x1p-22;
  const double terms = norm * (codes.code_norm + codes.code_error);
  const double center_terms = plain_norm * center_norm;
  own_rounding = own_epsilon * terms;
  own_constant = own_epsilon * center_terms + 0x1p-120;
  per_scale = codes.code_norm * residue + epsilon * terms;
  constant = epsilon * center_terms + 0x1p-120;
  // The score and the estimate are each rounded by at most 2^-24 of themselves when the catalog's
  // bias is added, and again with the call's bias. Their parts without biases are in epsilon. Items
  // with equal scores may all be rounded in one direction, so this error does not average out.
  bias_rounding = 1.001 * 0x1p-22 * of.bias;
  certain = 1.001 * (codes.code_error * norm + per_scale);
  // Each of n errors, of deviation norm / 2, exceeds m deviations with a probability of 2 exp(-m^2
  // / 2 k).
  const double deviations = std::sqrt(2.0 * kSubGaussian * log(6e9 * double(n_items)));
  spread = std::min(certain, 1.001 * (0.5 * deviations * norm + per_scale));
  largest_value = largest;

  view.high = high.data();
  view.low = low.data();
  view.whole = whole.data();
  view.offset = int32_t(uint32_t(-128 * sum));
  view.step = step;
  view.base = float(centered);
  view.certain = float(certain);
  view.margin = float(1.001 * constant);
}

void use_codes(const Catalog& catalog, const CodeQuery& query, Source* source) {
  source->codes = catalog.quantised.codes;
  source->scales = catalog.quantised.scales;
  source->quantised = query.view;
  source->query_of_codes = &query;
}

}  // namespace fastrank
