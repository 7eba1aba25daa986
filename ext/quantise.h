// Between float32 and int8: see quantise.cpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace fastrank {

// A sum of codes' errors is sub-Gaussian: its cumulant generating function is at most this factor
// times that of a normal variate of the same variance (docs/explanation/int8-bounds.md, k of "What
// is random").
constexpr double kSubGaussian = 1.066;

// A request's query as integers, with bounds on the errors of scores due to that and to the codes.
class CodeQuery {
 public:
  CodeQuery(const Catalog&, const Request&, const Largest&);  // as check_request finds them

  bool usable = false;  // not if float32 could overflow, or a query is too small to be divided
  QuantisedQuery view = {};
  double norm = 0.0;           // of the query in the codes' units
  double largest_value = 0.0;  // its largest absolute value
  // Per unit of scale: |estimate - score| is below scale * certain + margin(). For all items
  // together, except with a probability of 1e-9 / 3 over the codes' dither, it is below scale *
  // spread + margin().
  double certain = 0.0, spread = 0.0;
  double per_scale = 0.0;  // the part of both that is not random: roundings, the query's own error
  double constant = 0.0;   // the same, that does not grow with the scale
  double margin() const { return 1.001 * constant; }
  double bias_rounding = 0.0;  // what adding biases can do to |estimate - score| besides
  double residue = 0.0;        // |query - its whole numbers|
  // What the estimate's own roundings do: the rest of per_scale, except residue * code_norm; and of
  // constant the part of the float32 score.
  double own_rounding = 0.0, own_constant = 0.0;
  double max_scale, code_norm, code_moment, tolerance;  // the catalog's
  int64_t n_items;
  int32_t dim;

 private:
  std::vector<int8_t> high, low;
  std::vector<int16_t> whole;
};

// Lets a source find its items by codes.
void use_codes(const Catalog&, const CodeQuery&, Source*);

}  // namespace fastrank
