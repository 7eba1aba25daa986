// Between float32 and int8: see quantise.cpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace fastrank {

// A request's query in whole numbers, and bounds on what that and the codes' errors do to scores.
class CodeQuery {
 public:
  CodeQuery(const Catalog&, const Request&, const Largest&);  // as check_request finds them

  bool usable = false;  // not if float32 could overflow, or a query is too small to be divided
  QuantisedQuery view = {};
  double norm = 0.0;           // of the query in the codes' units
  double largest_value = 0.0;  // its largest absolute value
  double spread = 0.0;     // per unit of scale: |estimate - score| is below scale * spread + margin
  double per_scale = 0.0;  // the part of it that is not random: roundings, the query's own error
  double constant = 0.0;   // the same, that does not grow with the scale
  double bias_rounding = 0.0;  // what adding biases can do to |estimate - score| besides
  double residue = 0.0;    // |query - its whole numbers|
  double margin() const { return 1.001 * constant; }
  double rounding = 0.0;   // the part of per_scale that is not residue * code_norm
  double max_scale, code_moment, tolerance;  // the catalog's
  int64_t n_items;

 private:
  std::vector<int8_t> high, low;
  std::vector<int16_t> whole;
};

// Lets a source find its items by codes.
void use_codes(const Catalog&, const CodeQuery&, Source*);

}  // namespace fastrank
