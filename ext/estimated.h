// The passes over int8 codes: Jumps and Best on upper bounds, thinned by the float32 score.
//
// Jumps. An item's budget is spent on an upper bound of its weight. Where that runs out, the item's
// float32 score is computed, and it enters if the budget was spent on its true weight too: the
// remainder, an Exp(1) variate given that it is below the bound, is then one given that it is below
// the true weight. If not, the item does not pass, and the next budget is a fresh one. So rankings
// follow the law of the float32 scores exactly, whatever the bounds are.
//
// The normaliser. Items are heavy if score + 2 spread * scale reaches a cut. The heavy ones add their
// true weights, all others estimates, whose errors are independent with mean 0 (quantise.cpp).
// Which items are heavy hangs on true scores alone: to choose by estimates would take out those that
// erred upwards and leave a bias. A scan can only see upper bounds, so it notes a few too many.

#include <cmath>

#include "quantise.h"

class EstimatedJumps : public Jumps {
 public:
  EstimatedJumps(const Kernels& kernels, const Source& source, const Source& exact,
                 const CodeQuery& query, double temperature, uint64_t seed, double tolerance,
                 int64_t n_eligible)
      : Jumps(kernels, exact, temperature, seed),
        codes_(source),
        query_(query),
        tolerance_(tolerance),
        n_eligible_(n_eligible),
        deviation_(query.norm * order.inv_temperature / 2.0) {}

  void begin(int64_t chunk, const Candidate* floor, Partial* out) {
    Jumps::begin(chunk, floor, out);
    estimates_ = {0.0, 0.0, 0.0, 0.0};
    visited_ = futile_ = 0;
    doubtful_ = false;
    pilot_ = chunk == 0;
    heavy_.clear();
  }

  void walk(Scan scan) {
    while (!limited_ && next_panel(source_, &scan)) {
      kernels_.score_panel(source_, scan.panel, scan.scores);
      fill(&scan);
    }
    ...
  }
};
