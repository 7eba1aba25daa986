// From what the caller has to what the kernels take: packing, filters, checks.

#include <cmath>
#include <cstring>
#include <limits>

#include "sampling.h"

namespace fastrank {
namespace {

int64_t first_not_finite(const float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (!std::isfinite(values[i])) return i;
  return -1;
}

// Bits of the largest magnitude: those of an infinity or more if one is not finite. A loop that
// compilers vectorise, for a bias is as long as the catalog.
uint32_t largest_magnitude(const float* values, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    largest = std::max(largest, bits & 0x7FFFFFFFu);
  }
  return largest;
}

}  // namespace

Code check_request(const Catalog& catalog, const Request& request, int64_t* where,
                   double* bound) {
  *where = first_not_finite(request.query, catalog.dim);
  if (*where >= 0) return kQueryNotFinite;
  double square = 0.0;
  for (int32_t c = 0; c < catalog.dim; ++c) square += double(request.query[c]) * request.query[c];
  *bound = std::sqrt(square) * catalog.max_norm + catalog.max_bias;
  if (request.bias) {
    const uint32_t bits = largest_magnitude(request.bias, catalog.n_items);
    float largest;
    std::memcpy(&largest, &bits, sizeof largest);
    if (!std::isfinite(largest)) {
      *where = first_not_finite(request.bias, catalog.n_items);
      return kBiasNotFinite;
    }
    *bound += largest;
  }
  // Every partial sum of the dot product is below the bound, but for rounding: half is room.
  return *bound > 0.5 * double(std::numeric_limits<float>::max()) ? kScoreOverflow : kOk;
}

int64_t make_filter(int64_t n_items, const int64_t* allowed, int64_t n_allowed,
                    const int64_t* excluded, int64_t n_excluded, uint16_t* eligible) {
  const int64_t n_panels = panel_count(n_items);
  std::memset(eligible, allowed ? 0 : 0xFF, size_t(n_panels) * sizeof *eligible);
  int64_t count = 0;
  if (allowed) {
    for (int64_t j = 0; j < n_allowed; ++j) {
      uint16_t& word = eligible[allowed[j] / kLanes];
      const uint16_t bit = uint16_t(1u << (allowed[j] % kLanes));
      count += !(word & bit);
      word |= bit;
    }
  } else {
    count = n_items;
    if (n_items % kLanes) eligible[n_panels - 1] = uint16_t((1u << (n_items % kLanes)) - 1);
  }
  for (int64_t j = 0; j < n_excluded; ++j) {
    uint16_t& word = eligible[excluded[j] / kLanes];
    const uint16_t bit = uint16_t(1u << (excluded[j] % kLanes));
    count -= (word & bit) != 0;
    word &= uint16_t(~bit);
  }
  return count;
}

int64_t pack(const float* vectors, int64_t n_rows, int32_t dim, int64_t first, float* panels,
             double* max_square) {
  const int64_t last_panel = panel_count(first + n_rows) - 1;
  float* const last = panels + last_panel * dim * kLanes;
  if ((first + n_rows) % kLanes) std::memset(last, 0, sizeof(float) * size_t(dim) * kLanes);
  for (int64_t row = 0; row < n_rows; ++row) {
    const float* vector = vectors + row * dim;
    float* panel = panels + (first + row) / kLanes * dim * kLanes + (first + row) % kLanes;
    double square = 0.0;
    for (int32_t c = 0; c < dim; ++c) {
      panel[c * kLanes] = vector[c];
      square += double(vector[c]) * vector[c];
    }
    if (!std::isfinite(square)) return row * dim + first_not_finite(vector, dim);
    *max_square = std::max(*max_square, square);
  }
  return -1;
}

Source make_source(const Catalog& catalog, const Request& request) {
  Source source = {};
  source.panels = catalog.panels;
  source.vectors = catalog.vectors;
  source.bias = catalog.bias;
  source.call_bias = request.bias;
  source.eligible = request.eligible;
  source.query = request.query;
  source.n_panels = panel_count(catalog.n_items);
  source.dim = catalog.dim;
  const int64_t tail = catalog.n_items - (source.n_panels - 1) * kLanes;
  source.last_lanes = uint16_t((1u << tail) - 1);
  if (request.bias)
    std::memcpy(source.call_bias_tail, request.bias + (source.n_panels - 1) * kLanes,
                sizeof(float) * size_t(tail));
  return source;
}

}  // namespace fastrank
