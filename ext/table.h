// Rankings from tables (kernels.h): what rank.cpp asks of table.cpp.
#pragma once

#include <memory>

#include "sampling.h"

namespace fastrank {

class FromTable {
 public:
  virtual ~FromTable() = default;
  virtual void rank(Ranking* out) = 0;
};

// One ranking drawn from a table, of at most k places; null if a filter makes a pass (over codes,
// if there are any) the faster way. All but the policy is borrowed.
std::unique_ptr<FromTable> from_table(const Kernels&, const Source&, const Table&, const Policy&,
                                      int64_t k, bool has_codes, Interrupt*);

}  // namespace fastrank
