// What tests look into the core by: a module of its own, fastrank._probes, that no wheel holds. It is
// linked from the objects that _native is linked from, and has its own copy of them, so what is
// chosen or forced in one is not in the other: `isa_select` here, and `forced()` there.
#pragma once

#include "kernels.h"

namespace fastrank {

// A chunk size in panels instead of the chunk law's; 0 restores it. Returns the last.
int64_t force_chunk_panels(Forced*, int64_t count);

// Codes are used from so many eligible items on, instead of where they pay; 0 restores that.
// Returns the last.
int64_t force_few_items(Forced*, int64_t count);

// At how many panels a scan for scores above `reference` stops, if an equal score counts as above up
// to this row.
Code count_stops(const Catalog&, const Request&, float reference, int64_t row, int64_t* stops,
                 int64_t* where);

// What codes say of the scores of all items, (16 * n_panels) each. *usable: whether they say anything
// about this request.
Code estimate_all(const Catalog&, const Request&, float* estimates, float* uppers, bool* usable,
                  int64_t* where);

// Upper bounds of weights, as scans over codes form them, of 16 * n_panels upper bounds of scores.
void upper_weights(const float* uppers, int64_t n_panels, float reference, float inv_temperature,
                   float* weights);

// What a pass at this temperature bounds all items' weights by, (16 * n_panels): one by one, and *sum
// as it spends a budget on all of them. *linear: how (CodeScan).
Code bound_all(const Catalog&, const Request&, double temperature, float reference, float* weights,
               double* sum, bool* linear, bool* usable, int64_t* where);

// What ErrorLaw (error_law.h) makes of sums over unscored items (mass, scaled, variance, cut) beside
// so many heavy ones: *bound; and how far an item is noted, *noting and *window.
Code error_bound(const Catalog&, const Request&, double temperature, const double* sums,
                 int64_t n_heavy, double* bound, double* noting, double* window, bool* usable,
                 int64_t* where);

}  // namespace fastrank
