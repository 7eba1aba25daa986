// From what the caller has to what the kernels take: packing, filters, checks.

#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#include "sampling.h"

namespace fastrank {
namespace {

int64_t first_not_finite(const float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (!std::isfinite(values[i])) return i;
  return -1;
}

// Every partial sum of a dot product is below its largest score, but for rounding: half is room.
constexpr float kLargestScore = 0.5f * std::numeric_limits<float>::max();

float largest_magnitude(const float* values, int64_t count) {
  const uint32_t bits = kernels().largest_magnitude(values, count);
  float largest;
  std::memcpy(&largest, &bits, sizeof largest);
  return largest;
}

// Multiply and fold (as wyhash does): two bijections of 64 bits would let chosen rows collide for
// any key, the upper half of a product does not.
uint64_t hash_of(const unsigned char* row, int64_t width, uint64_t key) {
  __extension__ using Wide = unsigned __int128;
  uint64_t hash = key;
  for (; width > 0; row += 8, width -= 8) {
    uint64_t word = 0;
    std::memcpy(&word, row, width < 8 ? 4 : 8);
    const Wide product = Wide(word ^ key) * (hash ^ 0x9E3779B97F4A7C15u);
    hash = uint64_t(product) ^ uint64_t(product >> 64);
  }
  return hash;
}

// Of given scores. They are the caller's, who might change them meanwhile: no look at them is
// believed twice.
Code check_scores(const float* scores, int64_t count, int64_t* where, Largest* largest) {
  const float highest = largest_magnitude(scores, count);
  largest->score = double(highest);
  if (highest <= kLargestScore) return kOk;
  for (*where = 0; *where < count - 1; ++*where)
    if (!(std::fabs(scores[*where]) <= kLargestScore)) break;
  return std::isfinite(scores[*where]) ? kScoreOverflow : kQueryNotFinite;
}

}  // namespace

Code check_request(const Catalog& catalog, const Request& request, int64_t* where,
                   Largest* largest) {
  if (scores_are_given(catalog)) {
    if (catalog.scores_known) return kOk;
    return check_scores(request.query, catalog.n_items, where, largest);
  }
  *where = first_not_finite(request.query, catalog.dim);
  if (*where >= 0) return kQueryNotFinite;
  double square = 0.0;
  for (int32_t c = 0; c < catalog.dim; ++c) square += double(request.query[c]) * request.query[c];
  largest->bias = catalog.max_bias;
  if (request.bias) {
    const float call_bias = largest_magnitude(request.bias, catalog.n_items);
    if (!std::isfinite(call_bias)) {
      *where = std::max<int64_t>(0, first_not_finite(request.bias, catalog.n_items));
      return kBiasNotFinite;
    }
    largest->bias += call_bias;
  }
  const double dot = std::sqrt(square) * catalog.max_norm;
  largest->score = (request.function ? double(kLargestMade) : dot) + largest->bias;
  return std::max(dot, largest->score) > double(kLargestScore) ? kScoreOverflow : kOk;
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

Code find_rows(const unsigned char* rows, int64_t n_rows, const unsigned char* wanted,
               int64_t n_wanted, int64_t width, uint64_t key, const Poll& poll,
               int64_t* positions) {
  Interrupt interrupt(poll);
  try {
    // A slot holds the first of equal wanted rows; the others point to it.
    size_t size = 16;
    while (size < 2 * size_t(n_wanted)) size *= 2;
    const size_t mask = size - 1;
    std::vector<int32_t> slots(size, -1);
    std::vector<int32_t> first(static_cast<size_t>(n_wanted));
    // Calls visit(row, its slot) for each; far ahead of it memory is asked for what it will read.
    const auto each = [&](const unsigned char* from, int64_t count, const auto& visit) {
      constexpr int64_t kBlock = 32;
      size_t start[kBlock];
      for (int64_t begin = 0; begin < count; begin += kBlock) {
        const int64_t end = std::min(count, begin + kBlock);
        interrupt.check(1);
        for (int64_t i = begin; i < end; ++i) {
          start[i - begin] = hash_of(from + i * width, width, key) & mask;
          __builtin_prefetch(&slots[start[i - begin]]);
        }
        for (int64_t i = begin; i < end; ++i)
          __builtin_prefetch(wanted + std::max(0, slots[start[i - begin]]) * width);
        for (int64_t i = begin; i < end; ++i) {
          size_t slot = start[i - begin];
          while (slots[slot] >= 0 &&
                 std::memcmp(wanted + slots[slot] * width, from + i * width, size_t(width)) != 0)
            slot = (slot + 1) & mask;
          visit(i, slot);
        }
      }
    };
    each(wanted, n_wanted, [&](int64_t j, size_t slot) {
      if (slots[slot] < 0) slots[slot] = int32_t(j);
      first[size_t(j)] = slots[slot];
      positions[j] = -1;
    });
    each(rows, n_rows, [&](int64_t row, size_t slot) {
      if (slots[slot] >= 0) positions[slots[slot]] = row;
    });
    for (int64_t j = 0; j < n_wanted; ++j) positions[j] = positions[first[size_t(j)]];
    return kOk;
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  } catch (const Interrupted&) {
    return kInterrupted;
  }
}

bool ascends(const int64_t* values, int64_t count) {
  return kernels().each_above_last(values, count);
}

uint16_t highest_label(const uint16_t* labels, int64_t count) {
  return kernels().largest_label(labels, count);
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

Source make_source(const Catalog& catalog, const Request& request, int64_t* fault) {
  Source source = {};
  source.panels = catalog.panels;
  source.vectors = catalog.vectors;
  source.bias = catalog.bias;
  source.call_bias = request.bias;
  source.eligible = request.eligible;
  if (scores_are_given(catalog)) {
    source.scores = request.query;
  } else {
    source.query = request.query;
  }
  source.function = request.function;
  source.labels = request.labels;
  source.n_labels = request.n_labels;
  source.fault = fault;
  source.rows = catalog.rows;
  source.panel_rows = catalog.panel_rows;
  source.n_panels = panel_count(catalog.n_items);
  source.dim = catalog.dim;
  const int64_t tail = catalog.n_items - (source.n_panels - 1) * kLanes;
  source.last_lanes = uint16_t((1u << tail) - 1);
  const int64_t first = (source.n_panels - 1) * kLanes;
  if (request.bias)
    std::memcpy(source.call_bias_tail, request.bias + first, sizeof(float) * size_t(tail));
  if (source.scores)
    std::memcpy(source.scores_tail, source.scores + first, sizeof(float) * size_t(tail));
  return source;
}

}  // namespace fastrank
